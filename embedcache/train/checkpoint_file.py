"""Turns the bytes of a checkpoint into tensors and what it says of itself, or says whether it is damaged or none.

Nothing in the file is executed. A file that was a checkpoint of ours and cannot be read any more is damaged
(``CorruptionError``); one that never was is wrong input (``WeightsError``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from embedcache.errors import CorruptionError, WeightsError

FORMAT = 2
METADATA_KEY = "embedcache"
EXPECTED = "A checkpoint is a run's folder, or best.safetensors or last.safetensors in it."

NAMES = ("best.safetensors", "last.safetensors")
"""A run's checkpoints."""

_MARKS = (b'"embedcache"', b"embedding_space", b"prompt_source")
"""What stands at the beginning of each checkpoint; a flipped byte leaves at least two of them."""

_HEAD_BYTES = 1 << 16

FACTS: dict[str, tuple[type, ...]] = {
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


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file, and the fields of :class:`embedcache.train.checkpoint.Checkpoint` beside them.

    Raises
    ------
    WeightsError
        When it is no checkpoint of ours, or of a newer format.
    CorruptionError
        When it is one whose bytes were changed.
    """
    try:
        with safe_open(str(path), framework="pt") as stream:
            metadata = dict(stream.metadata() or {})
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        if isinstance(error, SafetensorError) and was_checkpoint(path):
            raise damaged(path, f"it cannot be read as safetensors ({error})") from error
        raise WeightsError(
            f"{path} is no checkpoint: it cannot be read as safetensors ({error}).", hint=EXPECTED
        ) from error
    return tensors, _facts(path, tensors, metadata)


def was_checkpoint(path: Path) -> bool:
    """Whether a file is, or was before it was damaged, a checkpoint of ours: by its place, or how it begins."""
    if path.name in NAMES and (path.parent / "config.json").is_file():
        return True
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
    except OSError:
        return False
    return sum(mark in head for mark in _MARKS) > 1


def damaged(path: Path, why: str) -> CorruptionError:
    """The error of a checkpoint whose bytes were changed, with what may be used in its place."""
    beside = [path.with_name(name) for name in NAMES if name != path.name and path.with_name(name).is_file()]
    ways = [f"use {other} beside it" for other in beside]
    if (path.parent / "config.json").is_file() and not (path.parent / "summary.json").is_file():
        ways.append(f"go on with the run (--resume --out {path.parent})")
    ways += ["restore it from a copy", "train again"]
    hint = ", ".join(ways[:-1]) + f", or {ways[-1]}."
    return CorruptionError(f"{path} is a damaged checkpoint: {why}.", hint=hint[0].upper() + hint[1:])


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
        if was_checkpoint(path):
            raise damaged(path, "its description is gone")
        raise WeightsError(f"{path} is a safetensors file, but no checkpoint of embedcache.", hint=EXPECTED)
    facts = json.loads(_whole_text(path, tensors, metadata[METADATA_KEY]))
    try:
        written = int(facts.pop("format"))
        if written > FORMAT:
            raise WeightsError(f"{path} was written by a newer embedcache.", hint="pip install -U embedcache")
        said = [name for name in FACTS if written > 1 or name not in _SINCE_2]
        found = {name: _typed(name, facts[name]) for name in said}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        # its digest holds: it was written so
        raise WeightsError(
            f"{path} describes itself as no checkpoint of embedcache does ({error}).", hint=EXPECTED
        ) from error
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}


def _whole_text(path: Path, tensors: Mapping[str, Tensor], metadata: str) -> str:
    """The description, a JSON text, once the digest over it and the tensors holds."""
    try:
        content = json.loads(metadata)
        text, recorded = str(content["facts"]), content["digest"]
        json.loads(text)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise damaged(path, "its description cannot be read") from error
    if recorded != content_digest(tensors, text):
        raise damaged(path, "its digest is not the one recorded in it")
    return text


def _typed(name: str, value: Any) -> Any:
    if not isinstance(value, FACTS[name]) or (isinstance(value, bool) and bool not in FACTS[name]):
        raise TypeError(f"{name} is {type(value).__name__}")
    if isinstance(value, list) and not all(isinstance(item, str) for item in value):
        raise TypeError(f"{name} holds something other than text")
    return value
