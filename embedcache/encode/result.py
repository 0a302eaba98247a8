"""Turns a finished run into an ``EncodeResult``: what was done, and where the time went."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from embedcache.encode.parts import Part
from embedcache.errors import EXIT_DONE, EXIT_SOME_FAILED
from embedcache.store import EmbeddingStore


@dataclass(frozen=True)
class EncodeResult:
    """What one ``encode`` did.

    Parameters
    ----------
    store : EmbeddingStore
        The store, with a fresh snapshot of its journal.
    selected, encoded, reused, skipped : int
        Tiles asked for (of a part: of its shards); committed now; there already; skipped as empty (now or before).
    identical : int
        Tiles committed now whose pixels are those of another tile, so that its embedding was copied.
    changed : int
        Recorded tiles that ``--changed reencode`` found changed.
    failed : dict of int to str
        Tiles that could not be encoded, and why.
    encoder_calls : int
        Images that went through the encoder in this run.
    checked_pixels : int
        Recorded tiles whose source pixels were read again and found unchanged.
    recorded_pixels : int
        Recorded tiles of the selection: those that could have been.
    check_seed : int or None
        With which they were drawn; None where all were read.
    seconds : float
        Wall time of the whole run.
    seconds_by_stage : dict of str to float
        Where the time went. The stages run beside each other.
    waits : dict of str to float
        Seconds for which the encoder waited for ``input`` and for the ``writer``.
    bottleneck : str
        The stage that limited the run: ``read``, ``preprocess``, ``encode`` or ``write``; empty when nothing ran.
    source_chunks_read, source_bytes_read : int
        Chunks (strips, images) of the source that were decoded for this, and their decoded bytes.
    bytes_written : int
        Bytes of committed shards.
    workers : int
        Processes that encoded.
    device, precision : str
        Where and how the encoder ran.
    part : Part or None
        Which part of the selection this run was to do; None for all of it.
    """

    store: EmbeddingStore
    selected: int
    encoded: int
    identical: int
    changed: int
    reused: int
    skipped: int
    failed: dict[int, str]
    encoder_calls: int
    checked_pixels: int
    recorded_pixels: int
    check_seed: int | None
    seconds: float
    seconds_by_stage: dict[str, float]
    waits: dict[str, float]
    bottleneck: str
    source_chunks_read: int
    source_bytes_read: int
    bytes_written: int
    workers: int
    device: str
    precision: str
    part: Part | None = None

    @property
    def exit_code(self) -> int:
        """0, or 7 when tiles failed."""
        return EXIT_SOME_FAILED if self.failed else EXIT_DONE

    @property
    def missing_in_store(self) -> int:
        """Tiles that the store wants and has not yet, whoever is to encode them."""
        return int(self.store.missing.sum())

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of ``embedcache encode --json``."""
        return {
            "store": str(self.store.path),
            "fingerprint": self.store.fingerprint,
            "embedding_space": self.store.embedding_space,
            "tiles_total": int((self.store.table[:, 0] >= 0).sum()),
            "tiles_selected": self.selected,
            "tiles_encoded": self.encoded,
            "tiles_identical": self.identical,
            "tiles_changed": self.changed,
            "tiles_reused": self.reused,
            "tiles_skipped": self.skipped,
            "tiles_failed": len(self.failed),
            "failed": {str(number): reason for number, reason in self.failed.items()},
            "encoder_calls": self.encoder_calls,
            "pixels_checked": self.checked_pixels,
            "pixels_recorded": self.recorded_pixels,
            "check_seed": self.check_seed,
            "seconds": self.seconds,
            "seconds_by_stage": self.seconds_by_stage,
            "waits": self.waits,
            "bottleneck": self.bottleneck,
            "tiles_per_second": self.encoded / self.seconds if self.seconds else 0.0,
            "source_chunks_read": self.source_chunks_read,
            "source_bytes_read": self.source_bytes_read,
            "bytes_written": self.bytes_written,
            "workers": self.workers,
            "views": list(self.store.views),
            "numerics": self.store.numerics,
            "device": self.device,
            "precision": self.precision,
            "tiles_missing_in_store": self.missing_in_store,
            "complete": self.store.status().complete,
            "part_id": None if self.part is None else self.part.number,
            "num_parts": None if self.part is None else self.part.of,
            "untrained": bool(self.store.provenance.get("untrained")),
        }
