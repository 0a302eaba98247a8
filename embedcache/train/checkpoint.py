"""Turns a trained decoder into one safetensors file that knows where it came from, and back.

Nothing in the file is executed when it is loaded. Its metadata holds one JSON text under ``embedcache``: all
that :class:`Checkpoint` lists, and a digest over the tensors and that text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from embedcache.errors import MismatchError, WeightsError, command
from embedcache.files import canonical_json, write_file
from embedcache.sam.decoder import Decoder
from embedcache.store import EmbeddingStore
from embedcache.train.adapter import build_model
from embedcache.train.questions.prompts import prompt_source

FORMAT = 2
METADATA_KEY = "embedcache"


@dataclass(frozen=True)
class Checkpoint:
    """A trained prompt encoder and mask decoder, and everything needed to use them again.

    Parameters
    ----------
    path : Path or None
        Where it lies.
    state : dict of str to Tensor
        ``prompt_encoder.*`` and ``mask_decoder.*``.
    embedding_space : str
        Embeddings of this space only may be decoded with it.
    recipe : dict
        How the volume was encoded; ``predict`` on a new volume repeats it.
    task : "semantic" or "instances"
    prompts, objects : str
        What it was trained with.
    threshold : float
        In logits, as SAM's ``mask_threshold``; chosen on validation.
    split : dict
        :meth:`embedcache.train.truth.split.Split.to_dict`.
    stores, labels : tuple of str
        Absolute paths of what it was trained on.
    step : int
    metric : str
    value : float
        The metric on validation, and ``prompt_source`` with it.
    prompt_source : "free" or "oracle"
    untrained : bool
        Whether the encoder had random weights.
    fingerprints : tuple of str
        Of the stores. This and all that follows is not known (empty) of a file of format 1.
    encoder_digest, model_type : str
        Of the encoder behind the embeddings.
    settings : dict
        The options it was trained with.
    adapter : bool
        Whether ``state`` holds an adapter too.
    ema : float
        Decay of the average of weights that ``state`` is; 0: the weights themselves.
    """

    path: Path | None
    state: dict[str, Tensor] = field(repr=False)
    embedding_space: str
    recipe: dict[str, Any]
    task: str
    prompts: str
    objects: str
    threshold: float
    split: dict[str, Any] = field(repr=False)
    stores: tuple[str, ...]
    labels: tuple[str, ...]
    step: int
    metric: str
    value: float
    prompt_source: str
    untrained: bool
    fingerprints: tuple[str, ...] = ()
    encoder_digest: str = ""
    model_type: str = ""
    settings: dict[str, Any] = field(default_factory=dict, repr=False)
    adapter: bool = False
    ema: float = 0.0

    def save(self, path: str | Path) -> Path:
        """Write the file, atomically; return its path."""
        path = Path(path)
        facts = {name: getattr(self, name) for name in _FACTS}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state.items()}
        text = canonical_json({"format": FORMAT, **facts})
        content = {"facts": text, "digest": content_digest(tensors, text)}
        write_file(path, to_safetensors(tensors, metadata={METADATA_KEY: canonical_json(content)}))
        return path

    @classmethod
    def load(cls, path: str | Path) -> Checkpoint:
        """Read and check a file.

        Raises
        ------
        WeightsError
            When it is missing, no checkpoint of ours, of a newer format, or its bytes were changed.
        """
        path = Path(path).absolute()
        if path.is_dir():
            path = path / "best.safetensors"
        if not path.is_file():
            raise WeightsError(f"The checkpoint {path} does not exist.")
        try:
            with safe_open(str(path), framework="pt") as stream:
                metadata = dict(stream.metadata() or {})
                tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - no mapping
        except (SafetensorError, OSError) as error:
            raise WeightsError(
                f"{path} is no checkpoint: it cannot be read as safetensors ({error})."
            ) from error
        facts = _facts(path, tensors, metadata)
        return cls(path=path, state=tensors, **facts)

    @property
    def measured_prompts(self) -> str:
        """How the figure was asked that chose it: none where oracle prompts trained and free ones chose."""
        same = prompt_source(self.prompts) == self.prompt_source
        return self.prompts if same else "none"

    def model(self) -> Decoder:
        """What was trained, on the CPU: a decoder, with an adapter before it where it has one."""
        return build_model(self.state)

    def decoder(self) -> Decoder:
        """A decoder with this state, on the CPU.

        Raises
        ------
        WeightsError
            When it has an adapter, without which the decoder means nothing; see :meth:`model`.
        """
        if self.adapter:
            raise WeightsError(f"{self.path} has an adapter before its decoder; take its model() instead.")
        return Decoder.from_state(self.state)


_FACTS: dict[str, tuple[type, ...]] = {
    "embedding_space": (str,),
    "recipe": (dict,),
    "task": (str,),
    "prompts": (str,),
    "objects": (str,),
    "threshold": (float, int),
    "split": (dict,),
    "stores": (list,),
    "labels": (list,),
    "step": (int,),
    "metric": (str,),
    "value": (float, int),
    "prompt_source": (str,),
    "untrained": (bool,),
    "fingerprints": (list,),
    "encoder_digest": (str,),
    "model_type": (str,),
    "settings": (dict,),
    "adapter": (bool,),
    "ema": (float, int),
}
"""What a checkpoint says of itself, and as which JSON values: a stranger may have written it."""

_SINCE_2 = ("fingerprints", "encoder_digest", "model_type", "settings", "adapter", "ema")
"""Those of them that a file of format 1 does not say."""


def check_space(checkpoint: Checkpoint, store: EmbeddingStore) -> None:
    """Refuse to decode a store's embeddings with a checkpoint of another embedding space.

    Raises
    ------
    MismatchError
        Naming both spaces and the fields of the recipes that differ.
    """
    if checkpoint.embedding_space == store.embedding_space:
        return
    now = store.provenance.get("recipe", {})
    differences: dict[str, tuple[object, object]] = {
        name: (checkpoint.recipe.get(name), now.get(name))
        for name in sorted(set(checkpoint.recipe) | set(now))
        if checkpoint.recipe.get(name) != now.get(name)
    }
    differences["embedding_space"] = (checkpoint.embedding_space, store.embedding_space)
    raise MismatchError(
        f"The checkpoint {checkpoint.path} was trained on embeddings of another space than those in {store.path}.",
        differences=differences,
        hint="Encode the volume by the checkpoint's recipe: "
        + command(
            "encode", "--like", checkpoint.path, "--volume", store.provenance.get("source") or "VOLUME"
        ),
    )


def content_digest(tensors: Mapping[str, Tensor], text: str) -> str:
    """``sha256:…`` over sorted names, dtypes, shapes and bytes of the tensors, and a text that goes with them."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"


def _facts(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, Any]:
    if METADATA_KEY not in metadata:
        raise WeightsError(
            f"{path} is a safetensors file, but no checkpoint of embedcache.",
            hint="Give best.safetensors or last.safetensors of a run.",
        )
    try:
        content = json.loads(metadata[METADATA_KEY])
        text = str(content["facts"])
        facts = json.loads(text)
        written = int(facts.pop("format"))
        if written > FORMAT:
            raise WeightsError(f"{path} was written by a newer embedcache.", hint="pip install -U embedcache")
        said = [name for name in _FACTS if written > 1 or name not in _SINCE_2]
        found = {name: _typed(name, facts[name]) for name in said}
        recorded = content["digest"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{path} is a damaged checkpoint: its description cannot be read.") from error
    if recorded != content_digest(tensors, text):
        raise WeightsError(f"{path} is damaged or was changed: its digest is not the one recorded in it.")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}


def _typed(name: str, value: Any) -> Any:
    if not isinstance(value, _FACTS[name]) or (isinstance(value, bool) and bool not in _FACTS[name]):
        raise TypeError(f"{name} is {type(value).__name__}")
    if isinstance(value, list) and not all(isinstance(item, str) for item in value):
        raise TypeError(f"{name} holds something other than text")
    return value
