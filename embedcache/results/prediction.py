"""Turns a store and a decoder into masks, stitched when they are asked for, and written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.progress import Progress, Silent
from embedcache.results.about import about_store
from embedcache.results.flatten import flattened
from embedcache.results.masks_out import Values, write_masks
from embedcache.results.output_place import check_place
from embedcache.results.stitch import Floats, Stitcher
from embedcache.store import EmbeddingStore
from embedcache.train.checkpoint import Checkpoint


@dataclass(frozen=True)
class Prediction:
    """Masks of a volume; planes are stitched when they are asked for, so nothing large is held.

    Parameters
    ----------
    store : EmbeddingStore
        Whose embeddings are decoded.
    checkpoint : Checkpoint
        What decodes them.
    threshold : float
        Probability above which a pixel is in the mask.
    prompts : str
        ``none``, ``grid:free``, ``boxes`` or ``mask``: they know nothing of any truth.
    stitcher : Stitcher
        What decodes and stitches.
    output : Path or None
        What was written.
    seconds : float
        Wall time, encoding included.
    tiles_missing, tiles_failed : int
        Tiles of the selection without an embedding; their pixels are not predicted. And those among them that
        could not be encoded.
    """

    store: EmbeddingStore
    checkpoint: Checkpoint
    threshold: float
    prompts: str
    stitcher: Stitcher = field(repr=False)
    output: Path | None = None
    seconds: float = 0.0
    tiles_missing: int = 0
    tiles_failed: int = 0

    @property
    def tiles(self) -> int:
        """Number of tiles that are predicted."""
        return len(self.stitcher.numbers)

    @property
    def planes(self) -> list[int]:
        """Planes that are predicted, in order."""
        return self.stitcher.planes

    @cached_property
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of every plane of the volume."""
        return [self.store.plane_size(plane) for plane in range(self._planes_of_volume)]

    @cached_property
    def names(self) -> list[str]:
        """Name of every plane of the volume."""
        return [self.store.plane_name(plane) for plane in range(self._planes_of_volume)]

    @property
    def uniform(self) -> bool:
        """Whether the planes are those of one array."""
        return self.store.uniform

    @cached_property
    def _planes_of_volume(self) -> int:
        return int(self.store.table[:, 0].max()) + 1

    def probabilities(self, plane: int) -> Floats:
        """Probabilities of one plane: float32 (height, width), NaN where not predicted."""
        return self.stitcher.plane(plane)

    def __getitem__(self, plane: int) -> npt.NDArray[np.bool_]:
        """The mask of one plane: bool (height, width), False where not predicted."""
        return Values(self.threshold).mask(self.probabilities(plane))

    def __len__(self) -> int:
        """Planes of the volume, predicted or not."""
        return self._planes_of_volume

    def __iter__(self) -> Iterator[npt.NDArray[np.bool_]]:
        """The masks of all planes, in order."""
        return (self[plane] for plane in range(len(self)))

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of ``embedcache predict --json``."""
        return {
            "output": None if self.output is None else str(self.output),
            "tiles": self.tiles,
            "tiles_missing": self.tiles_missing,
            "tiles_failed": self.tiles_failed,
            "planes": len(self.planes),
            "seconds": round(self.seconds, 3),
            "threshold": self.threshold,
            "prompts": self.prompts,
            "prompt_source": "free",
            **self._origin(),
        }

    def _origin(self) -> dict[str, Any]:
        return {
            "store": str(self.store.path),
            "checkpoint": str(self.checkpoint.path),
            "embedding_space": self.store.embedding_space,
            "untrained": self.checkpoint.untrained,
        }

    def _places(self) -> list[str]:
        return [str(self.store.path), str(self.store.provenance.get("source", ""))]

    def write(
        self,
        output: str | Path,
        *,
        probabilities: bool = False,
        flatten: str = "none",
        name: str | None = None,
        progress: Progress | None = None,
    ) -> Path:
        """Write all predicted planes; the ending says how (see :mod:`embedcache.results.masks_out`).

        Parameters
        ----------
        output : path
        probabilities : bool
            Instead of masks.
        flatten : "none", "mean" or "max"
            Join the planes to one; see :mod:`embedcache.results.flatten`.
        name : str, optional
            What a single plane is called, in a csv its ``Id``.
        progress : Progress, optional

        Raises
        ------
        InputError
            When the output cannot hold this prediction.
        StorageError
            When the disk refuses.
        """
        progress = progress or Silent()
        path = Path(output).absolute()
        check_place(path, sources=self._places(), probabilities=probabilities)
        values = Values(self.threshold, probabilities)
        written = flattened(self, flatten, name, source=str(self.store.provenance.get("source", "")))
        if path.suffix.lower() in (".tif", ".tiff") and len(written.planes) < len(written.sizes):
            progress.say(
                f"{len(written.planes)} of {len(written.sizes)} planes are predicted; the other pages hold "
                + ("NaN." if probabilities else "0 as background does. A .zarr lists the predicted ones.")
            )
        about = {"threshold": self.threshold, "probabilities": probabilities, "flatten": flatten}
        about |= {**self._origin(), **about_store(self.store)}
        progress.start("predicting planes", len(written.planes))
        try:
            write_masks(path, written, values, about=about, done=progress.advance)
        finally:
            progress.finish()
        return path
