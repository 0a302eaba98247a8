"""Turns a checkpoint of ours into a whole SAM file that stock segment-anything loads with ``strict=True``.

The image encoder of the file is the one that the embeddings came from, byte for byte in value; prompt encoder and
mask decoder are the trained ones. With another encoder the same decoder would answer nonsense, so that is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from embedcache.errors import (
    ConfigError,
    EmbedcacheError,
    InputError,
    MismatchError,
    StorageError,
    WeightsError,
)
from embedcache.files import free_bytes, storage_error
from embedcache.progress import Progress, Silent
from embedcache.results.opened import as_checkpoint
from embedcache.results.output_place import whole_file
from embedcache.sam.checkpoint_file import read_checkpoint
from embedcache.sam.decoder import Decoder
from embedcache.sam.parts import is_registered
from embedcache.sam.weights import model_type_of, resolve_weights, tensors_digest
from embedcache.store import EmbeddingStore, EncodeSpec
from embedcache.train.checkpoint import Checkpoint
from embedcache.volume import Preprocess, TileGrid

LAYOUTS = ("sam", "hf", "onnx")
ENDINGS = (".pth", ".pt")

_ENCODER = "image_encoder."


def export(
    checkpoint: Checkpoint | str | Path,
    output: str | Path,
    *,
    to: str = "sam",
    merge: str | Path | None = None,
    allow_mismatch: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Put a trained prompt encoder and mask decoder into a full SAM checkpoint.

    Parameters
    ----------
    checkpoint : Checkpoint, Run or path
        A run or its ``best.safetensors``.
    output : path
        A ``.pth`` or ``.pt`` that does not exist yet: a plain state dict of float32 tensors under SAM's names.
    to : str
        ``sam``; Hugging Face's layout and ONNX come later.
    merge : path, optional
        The SAM checkpoint whose image encoder is taken; by default the weights that the store was made with are
        found again as ``encode`` finds them.
    allow_mismatch : bool
        Write although the image encoder is another than that of the embeddings.
    progress : Progress, optional
        Where to report to.

    Returns
    -------
    Path
        What was written.

    Raises
    ------
    ConfigError
        For another layout or ending, a checkpoint with an adapter, and an encoder that is not SAM's.
    InputError
        When the output exists.
    MismatchError
        When the image encoder is another than that of the embeddings.
    WeightsError
        When the checkpoint or the encoder's file is none, or cannot be found.
    StorageError
        When the disk refuses.
    """
    progress = progress or Silent()
    path = Path(output).absolute()
    _check_output(path, to)
    trained = as_checkpoint(checkpoint)
    model_type = _model_type(trained)
    base = _base_state(trained, model_type, merge, progress)
    encoder = {name: value for name, value in base.items() if name.startswith(_ENCODER)}
    _check_encoder(trained, model_type, tensors_digest(encoder), merge, allow_mismatch, progress)
    state = encoder | Decoder.from_state(trained.state).state_dict()
    whole = {name: _alone(state[name]) for name in base}  # in SAM's own order
    _write(path, whole)
    if trained.threshold != 0.0:
        progress.say(
            f"The run cuts its masks at logit {trained.threshold:g}, stock SAM at 0: "
            f"set sam.mask_threshold = {trained.threshold:g} for the same masks."
        )
    if model_type == "vit_tiny":
        progress.say(
            "sam_model_registry knows no vit_tiny: build its Sam from segment-anything's own classes."
        )
    return path


def _check_output(path: Path, to: str) -> None:
    if to != "sam":
        later = f"{to} comes later" if to in LAYOUTS else "it is not known"
        raise ConfigError(f"--to {to}: {later}; sam is written.")
    if path.suffix.lower() not in ENDINGS:
        raise ConfigError(f"{path}: a SAM checkpoint ends in {' or '.join(ENDINGS)}.")
    if path.exists() or path.is_symlink():
        raise InputError(
            f"{path} exists; it is not replaced.", hint="Give another --output, or remove it first."
        )


def _model_type(trained: Checkpoint) -> str:
    """SAM's model type of the encoder behind a checkpoint; what cannot be exported is refused."""
    if trained.adapter or any(name.startswith("adapter.") for name in trained.state):
        raise ConfigError(
            f"{trained.path} holds an adapter between encoder and decoder, and stock SAM has no place for it.",
            hint="Train without --adapter to export; predict and evaluate take it as it is.",
        )
    model_type = trained.model_type or model_type_of(str(trained.recipe.get("model", "")))
    if is_registered(model_type):
        raise ConfigError(
            f"{trained.path} was trained on embeddings of {model_type}, an encoder of your own, "
            "which stock SAM does not have."
        )
    return model_type


def _base_state(
    trained: Checkpoint, model_type: str, merge: str | Path | None, progress: Progress
) -> Mapping[str, Tensor]:
    """A whole SAM state: of ``merge``, else the weights that the embeddings came from."""
    if merge is not None:
        return read_checkpoint(Path(merge).expanduser().absolute())[1]
    name = str(trained.recipe.get("checkpoint", "auto"))
    try:
        return resolve_weights(str(trained.recipe.get("model", model_type)), name, progress=progress).state
    except WeightsError as error:
        raise WeightsError(
            f"The encoder that {trained.path} goes with cannot be found. {error.message}",
            hint=f"Give the {model_type} checkpoint it was encoded with as --merge BASE.",
        ) from error


def _check_encoder(
    trained: Checkpoint,
    model_type: str,
    found: str,
    merge: str | Path | None,
    allow_mismatch: bool,
    progress: Progress,
) -> None:
    """Refuse an encoder that the embeddings did not come from, or say that it is one."""
    recorded = trained.encoder_digest or _digest_of_store(trained)
    if found == recorded or (not recorded and _gives_space(trained, model_type, found)):
        return
    source = f"--merge {merge}" if merge is not None else "What was found"
    sentence = (
        f"{source} holds another image encoder than the one whose embeddings {trained.path} was trained on."
        if recorded
        else f"{trained.path} does not say which image encoder it goes with, and it cannot be told."
    )
    if allow_mismatch:
        progress.say(f"{sentence} It is written as you wish; its masks are not those of the run.")
        return
    raise MismatchError(
        sentence,
        differences={"encoder_digest": (recorded or trained.embedding_space, found)},
        hint="Give the checkpoint it was encoded with as --merge BASE; --allow-mismatch writes it all the same.",
    )


def _digest_of_store(trained: Checkpoint) -> str:
    """The encoder's digest by a store that a checkpoint of format 1 names; empty where it is gone."""
    for path in trained.stores:
        try:
            store = EmbeddingStore.open(path)
        except EmbedcacheError:
            continue
        if store.embedding_space == trained.embedding_space:
            return store.spec.encoder_digest
    return ""


def _gives_space(trained: Checkpoint, model_type: str, encoder_digest: str) -> bool:
    """Whether an encoder with the checkpoint's recipe gives its embedding space."""
    recipe = trained.recipe
    try:
        low, high = (float(edge) for edge in str(recipe["window"]).split(":"))
        preprocess = Preprocess(str(recipe["channels"]), (low, high))
        spec = EncodeSpec(
            model_type, encoder_digest, str(recipe["precision"]), preprocess, {}, TileGrid(1024, 0)
        )
    except (KeyError, ValueError, InputError):
        return False
    return spec.embedding_space == trained.embedding_space


def _alone(tensor: Tensor) -> Tensor:
    """A float32 tensor that shares its memory with no other, so that a file holds it once and nothing else."""
    value = tensor.detach().to(torch.float32).contiguous()
    return value if value.untyped_storage().nbytes() == value.nbytes else value.clone()


def _write(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write a state dict as ``torch.save`` does; the file has its name only when it is whole."""
    needed = sum(tensor.nbytes for tensor in state.values())
    if free_bytes(path.parent) < needed:
        raise StorageError(
            f"{path} needs {needed / 1e6:,.0f} MB, and {free_bytes(path.parent) / 1e6:,.0f} MB are free."
        )
    try:
        with whole_file(path) as partial, partial.open("wb") as stream:
            torch.save(dict(state), stream)
    except OSError as error:
        raise storage_error(error, path) from error
    except RuntimeError as error:  # torch's own writer, when the stream refuses
        cause: Any = error.__context__
        if isinstance(cause, OSError):
            raise storage_error(cause, path) from error
        raise StorageError(f"{path} could not be written: {error}.") from error
