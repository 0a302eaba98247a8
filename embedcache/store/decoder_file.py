"""Turns the bytes of a store's ``decoder.safetensors`` into tensors, once they are known to be those written."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from embedcache.errors import CorruptionError, command
from embedcache.files import read_error, read_inside, sha256_hex
from embedcache.store import layout


def read_decoder_state(root: Path, digest: str) -> dict[str, Tensor]:
    """The tensors of a store's decoder file, whose SHA-256 is given.

    Raises
    ------
    CorruptionError
        When the file is missing or not the one that was written at creation.
    StorageError
        When it cannot be read.
    """
    path = root / layout.DECODER
    hint = f"`{command('repair', root)}` writes it again from the checkpoint."
    try:
        data = read_inside(root, path, layout.DECODER_LIMIT)
    except FileNotFoundError as error:
        raise CorruptionError(f"{path} is missing.", hint=hint) from error
    except OSError as error:
        raise read_error(error, path) from error
    if sha256_hex(data) != digest:
        raise CorruptionError(
            f"{path} is not the file that was written when the store was made.",
            hint=hint,
        )
    try:
        return dict(safetensors.torch.load(data))
    except SafetensorError as error:
        raise CorruptionError(f"{path} cannot be read: {error}.") from error
