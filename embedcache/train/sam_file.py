"""Turns ``--init FILE.pth`` into the decoder that training starts from, once it is known to fit the embeddings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from embedcache.errors import MismatchError
from embedcache.sam.decoder import Decoder
from embedcache.sam.decoder_file import read_decoder_file
from embedcache.store import EmbeddingStore
from embedcache.train.checkpoint_file import METADATA_KEY, was_checkpoint

_ENDINGS = (".pth", ".pt", ".bin")


def is_sam_file(path: str | Path) -> bool:
    """Whether a start is a file of SAM's rather than a checkpoint of ours, by its ending or by what it says."""
    found = Path(path)
    if found.suffix.lower() in _ENDINGS:
        return True
    if found.suffix.lower() != ".safetensors" or not found.is_file():
        return False
    try:
        with safe_open(str(found), framework="numpy") as stream:
            return METADATA_KEY not in (stream.metadata() or {}) and not was_checkpoint(found)
    except (SafetensorError, OSError):
        return False


def decoder_of_sam_file(path: str | Path, store: EmbeddingStore, say: Callable[[str], None]) -> Decoder:
    """The prompt encoder and mask decoder of a SAM file.

    Raises
    ------
    WeightsError
        When it holds none, or is no plain checkpoint.
    MismatchError
        When the encoder in the file is another than the store's.
    """
    path = Path(path).expanduser().absolute()
    found = read_decoder_file(path)
    wanted = store.spec.encoder_digest
    if found.encoder_digest is None:
        say(
            f"{path} holds no image encoder: that it fits the embeddings of {store.path.name} is not checked."
        )
    elif not found.is_of(wanted):
        raise MismatchError(
            f"--init {path} holds another image encoder than the one {store.path} was made with; "
            "its decoder would not understand these embeddings.",
            differences={
                "model_type": (store.spec.model_type, found.model_type),
                "encoder_digest": (wanted, found.encoder_digest),
            },
            hint="Encode the volume with it first (encode --checkpoint), or start from another file.",
        )
    return Decoder.from_state(found.state)
