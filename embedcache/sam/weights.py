"""Turns ``--model`` and ``--checkpoint`` into weights: a SAM state dict, where it came from, and its digest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from embedcache.errors import WeightsError
from embedcache.progress import Progress, Silent
from embedcache.sam.checkpoint_file import read_checkpoint
from embedcache.sam.parts import is_registered, model_types
from embedcache.sam.random_state import RANDOM_RECIPE, random_decoder_state, random_encoder_state
from embedcache.sam.registry import MODELS, ModelEntry
from embedcache.sam.search import find_or_download

__all__ = [
    "MODELS",
    "RANDOM_RECIPE",
    "ModelEntry",
    "Weights",
    "random_weights",
    "resolve_weights",
    "tensors_digest",
]

_RANDOM = "random:"


@dataclass(frozen=True, eq=False)
class Weights:
    """Weights of a whole SAM.

    Parameters
    ----------
    model_type : str
        ``vit_b``, ``vit_l``, ``vit_h``, ``vit_tiny`` or a registered one.
    source : str
        What ``--checkpoint`` needs to find them again: ``random:SEED``, a name of the registry, or an absolute
        path.
    state : dict of str to Tensor
        ``image_encoder.*``, ``prompt_encoder.*`` and ``mask_decoder.*``; as in the file. For reading only.
    untrained : bool
        Whether they are random.
    """

    model_type: str
    source: str
    state: dict[str, Tensor]
    untrained: bool

    @cached_property
    def encoder_digest(self) -> str:
        """``sha256:…`` of the image encoder's tensors; another decoder beside it gives the same digest."""
        return tensors_digest(self.encoder_state())

    def encoder_state(self) -> dict[str, Tensor]:
        """The tensors ``image_encoder.*``; none after :meth:`let_go_of_encoder`."""
        return {name: value for name, value in self.state.items() if name.startswith("image_encoder.")}

    def let_go_of_encoder(self) -> None:
        """Free the image encoder's tensors, nearly all there are, once an encoder has copied them.

        ``encoder_digest`` and the decoder's tensors stay.
        """
        self.encoder_digest  # noqa: B018 - computed while it still can be
        for name in self.encoder_state():
            del self.state[name]

    def decoder_state(self) -> dict[str, Tensor]:
        """The tensors ``prompt_encoder.*`` and ``mask_decoder.*``."""
        return {name: value for name, value in self.state.items() if not name.startswith("image_encoder.")}


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """``sha256:…`` over names in sorted order, dtypes, shapes and bytes; independent of the file they came in."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        dtype = str(tensor.dtype).removeprefix("torch.")
        digest.update(f"{name}\0{dtype}\0{','.join(map(str, tensor.shape))}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return f"sha256:{digest.hexdigest()}"


def random_weights(model_type: str, seed: int) -> Weights:
    """Untrained weights by recipe ``RANDOM_RECIPE`` (see :mod:`embedcache.sam.random_state`).

    Parameters
    ----------
    model_type : str
        ``vit_b``, ``vit_l``, ``vit_h``, ``vit_tiny`` or a registered one.
    seed : int
        0 or greater.

    Raises
    ------
    WeightsError
        When there is no such model type, or the seed is negative.
    """
    if seed < 0:
        raise WeightsError(f"A seed is 0 or greater; found {seed}.", hint="For example random:0.")
    state = random_encoder_state(model_type, seed) | random_decoder_state(seed)
    return Weights(model_type, f"{_RANDOM}{seed}", state, untrained=True)


def resolve_weights(
    model: str = "vit_b", checkpoint: str = "auto", *, progress: Progress | None = None
) -> Weights:
    """Find, check and load the weights that ``--model`` and ``--checkpoint`` ask for.

    Parameters
    ----------
    model : str
        ``vit_b``, ``vit_l``, ``vit_h``, ``vit_tiny``, a registered encoder or a name of :data:`MODELS`.
    checkpoint : str
        ``auto``, ``random:SEED``, a name of :data:`MODELS`, or a file.
    progress : Progress, optional
        Told about searches and downloads.

    Raises
    ------
    WeightsError
        When they cannot be found, are not what their digest says, or are of another model than asked.
    """
    progress = progress or Silent()
    model_type = model_type_of(model)
    if checkpoint == "auto" and model == "vit_tiny":
        checkpoint = f"{_RANDOM}0"
    if checkpoint.startswith(_RANDOM):
        return random_weights(model_type, _seed(checkpoint))
    if checkpoint == "auto" and is_registered(model_type):
        raise WeightsError(
            f"{model} is a registered encoder, and weights of it are published nowhere.",
            hint="Give --checkpoint FILE, or random:SEED.",
        )
    name = model if checkpoint == "auto" else checkpoint
    published = MODELS.get(name)
    if published is None:
        path = Path(checkpoint).expanduser().absolute()
    else:
        path = find_or_download(published, progress=progress)
    found_type, state = read_checkpoint(path, model_type)
    if found_type != model_type:
        raise WeightsError(
            f"{path} is a {found_type} checkpoint; {model_type} was asked for.",
            hint=f"Give --model {found_type}, or a checkpoint of {model_type}.",
        )
    source = str(path) if published is None else published.name
    return Weights(model_type, source, state, untrained=False)


def model_type_of(model: str) -> str:
    """The architecture that ``--model`` names.

    Raises
    ------
    WeightsError
        When there is no model of that name.
    """
    if model in MODELS:
        return MODELS[model].model_type
    if model in model_types():
        return model
    registered = [name for name in model_types() if is_registered(name)]
    near = get_close_matches(model, [*MODELS, *model_types()], n=1)
    raise WeightsError(
        f"There is no model {model!r}." + (f" Did you mean {near[0]}?" if near else ""),
        hint=f"Known: {', '.join([*MODELS, *registered])}.",
    )


def _seed(checkpoint: str) -> int:
    text = checkpoint.removeprefix(_RANDOM)
    if not text.isdecimal():
        raise WeightsError(
            f"{checkpoint!r} has no seed: {text!r} is not a number.", hint="For example random:0."
        )
    return int(text)
