"""Turns a checkpoint file into a checked SAM state dict, without ever executing what is in it.

Read are state dicts as they are, or wrapped as ``{"model_state": …}`` with or without the prefix ``sam.``
(torch_em, micro-sam), ``{"state_dict": …}``, ``{"model": …}``; and ``.safetensors`` files. Which model it is
follows from the shapes of its tensors, never from its name.
"""

from __future__ import annotations

import codecs
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from embedcache.errors import WeightsError
from embedcache.sam.parts import SHAPES, build, is_registered

PARTS = ("image_encoder.", "prompt_encoder.", "mask_decoder.")
_WRAPPERS = ("model_state", "state_dict", "model", "model_state_dict")
_PREFIXES = ("", "sam.", "module.", "module.sam.", "model.")
_NAMES_SHOWN = 6
_BYTES_SHOWN = 40
# What torch's restricted unpickler raises on bytes that are no pickle, beside pickle.UnpicklingError
_BAD_PICKLE = (
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    ArithmeticError,
    OSError,
    AttributeError,
    TypeError,
    AssertionError,
    MemoryError,
    struct.error,
)


def read_checkpoint(path: Path, asked: str | None = None) -> tuple[str, dict[str, Tensor]]:
    """Read and check a checkpoint file.

    Parameters
    ----------
    path : Path
        The file.
    asked : str, optional
        The model type that it should be of. A registered encoder's is not told by a shape, so it must be named.

    Returns
    -------
    model_type : str
        ``vit_b``, ``vit_l``, ``vit_h`` or ``vit_tiny``, by the shapes of the tensors; or the registered one
        asked for.
    state : dict of str to Tensor
        SAM's own names, all of them and no others; dtypes as in the file.

    Raises
    ------
    WeightsError
        When the file is missing, is no checkpoint, holds pickled objects of other classes, or lacks tensors.
    """
    state = read_tensors(path)
    model_type = asked if asked is not None and is_registered(asked) else detect_model_type(state, path)
    _check_tensors(state, model_type, path)
    return model_type, state


def read_tensors(path: Path) -> dict[str, Tensor]:
    """SAM's tensors of a file under SAM's own names; whether they are all, and of which model, is not looked at.

    Raises
    ------
    WeightsError
        When the file is missing, is no checkpoint, or holds pickled objects of other classes.
    """
    try:
        with path.open("rb"):
            pass
    except PermissionError as error:
        raise WeightsError(
            f"{path} may not be read ({error.strerror}).", hint="Check its owner and mode, and its folders'."
        ) from error
    except OSError as error:
        hint = "Give a file, auto, or random:SEED."
        raise WeightsError(f"There is no checkpoint file {path} ({error.strerror}).", hint=hint) from error
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    return _sam_names(_unwrap(content, path), path)


def _read_safetensors(path: Path) -> Any:
    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is not a readable safetensors file: {error}.") from error


def _read_pickle(path: Path) -> Any:
    try:
        # Only the zip format (torch 1.6 and later) can be mapped instead of read into memory
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        named = re.findall(r"(?:GLOBAL|global|class) `?([\w.]+\.[\w.]+)`?", str(error))
        raise WeightsError(
            f"{path} is not a plain checkpoint: "
            + (
                f"it holds objects of other classes ({', '.join(sorted(set(named))[:_NAMES_SHOWN])})."
                if named
                else f"{_content(path)}, or it holds objects of other classes."
            ),
            hint="Nothing in it was executed. Save its state_dict with torch.save, and give that file.",
        ) from error
    except _BAD_PICKLE as error:
        first = str(error).partition("\n")[0]
        reason = f" ({first})" if " " in first else ""  # torch's reader gives bare numbers for foreign bytes
        raise WeightsError(
            f"{path} cannot be read as a checkpoint: {_content(path)}{reason}.",
            hint="It may be cut short, or not be a checkpoint at all; fetch it again.",
        ) from error


def _content(path: Path) -> str:
    """What a file seems to hold, in words."""
    with path.open("rb") as stream:
        head = stream.read(_BYTES_SHOWN)
    if not head:
        return "it is empty"
    if head.startswith(b"\x80"):
        return "it is a pickle that is cut short, or not of tensors"
    if head.startswith(b"PK"):
        return "it is a zip archive that is cut short, or was not written by torch.save"
    try:
        text = " ".join(codecs.getincrementaldecoder("utf-8")().decode(head).split())
    except UnicodeDecodeError:
        text = ""
    if text.isprintable() and text:
        return f"it is text that begins {text!r}"
    return f"it begins with the bytes {head[:8].hex(' ')}, and no checkpoint does"


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    for name in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    tensors = (
        {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
        if isinstance(content, Mapping)
        else {}
    )
    if not tensors:
        raise WeightsError(
            f"{path} holds no tensors by name ({type(content).__name__}): it is no checkpoint."
        )
    return tensors


def _sam_names(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Only SAM's tensors, under SAM's names; what others keep beside them (micro-sam's UNETR) is left out."""
    for prefix in _PREFIXES:
        starts = tuple(prefix + part for part in PARTS)
        found = {
            name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(starts)
        }
        if found:
            return found
    raise WeightsError(
        f"{path} is not a SAM checkpoint: no tensor is named {' or '.join(part + '*' for part in PARTS)}; "
        f"it has {_some(sorted(tensors))}.",
        hint="Checkpoints of segment-anything and micro-sam are read; other layouts need converting first.",
    )


def detect_model_type(state: Mapping[str, Tensor], path: Path) -> str:
    """Model type by the width and depth of the image encoder.

    Raises
    ------
    WeightsError
        When it is none of the encoders that can be built.
    """
    patches = state.get("image_encoder.patch_embed.proj.weight")
    blocks = {name.split(".")[2] for name in state if name.startswith("image_encoder.blocks.")}
    if patches is None or not blocks:
        if any(name.startswith("image_encoder.layers.") for name in state):
            raise WeightsError(
                f"{path} is a MobileSAM (vit_t) checkpoint; its image encoder is not supported."
            )
        raise WeightsError(f"{path} holds no SAM image encoder: it has {_some(sorted(state))}.")
    for model_type, shape in SHAPES.items():
        if (shape.width, shape.depth) == (patches.shape[0], len(blocks)):
            return model_type
    known = "; ".join(f"{name} {shape.width} and {shape.depth}" for name, shape in SHAPES.items())
    raise WeightsError(
        f"{path} has an image encoder of width {patches.shape[0]} and depth {len(blocks)}; known are {known}."
    )


def _check_tensors(state: Mapping[str, Tensor], model_type: str, path: Path) -> None:
    expected = build(model_type).state_dict()
    missing = sorted(expected.keys() - state.keys())
    unexpected = sorted(state.keys() - expected.keys())
    if missing or unexpected:
        raise WeightsError(
            f"{path} looks like {model_type} but lacks {_some(missing)} and has in addition {_some(unexpected)}."
        )
    for name, empty in expected.items():
        found = state[name]
        if found.shape != empty.shape:
            raise WeightsError(
                f"{path}: {name} has shape {tuple(found.shape)}; {model_type} needs {tuple(empty.shape)}.",
                hint="Models for another image size than 1024 are not supported.",
            )
        fits = found.is_floating_point() if empty.is_floating_point() else found.dtype == empty.dtype
        if not fits or found.layout != torch.strided:
            needed = "floating point" if empty.is_floating_point() else str(empty.dtype)
            raise WeightsError(f"{path}: {name} is {found.dtype}, {found.layout}; {needed} is needed.")


def _some(names: list[str]) -> str:
    if not names:
        return "nothing"
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more
