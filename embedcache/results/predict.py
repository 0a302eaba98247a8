"""Turns a store or a new volume, and a checkpoint, into masks at the volume's own resolution.

A volume is encoded first, by the recipe that the checkpoint carries, so that both lie in one embedding space. That
space is all that is compared: a decoder trained on one fragment predicts any other.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.encode import run_encode
from embedcache.encode.options import options_from
from embedcache.errors import ConfigError, MissingTilesError, command, counted
from embedcache.progress import Progress, Silent
from embedcache.results.masks_out import Values, write_masks
from embedcache.results.opened import as_checkpoint, open_store, probability_threshold
from embedcache.results.output_place import check_one_plane, check_place
from embedcache.results.selection import selected_planes, selected_tiles
from embedcache.results.stitch import Floats, Stitcher, prompts_for
from embedcache.sam.encoder import resolve_device
from embedcache.store import EmbeddingStore
from embedcache.train.checkpoint import Checkpoint, check_space

DECODER_BATCH = 8
"""Tiles per decoder call."""


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
        ``none``, ``grid:free`` or ``mask``: they know nothing of any truth.
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
        self, output: str | Path, *, probabilities: bool = False, progress: Progress | None = None
    ) -> Path:
        """Write all predicted planes; the ending says how (see :mod:`embedcache.results.masks_out`).

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
        if path.suffix.lower() in (".tif", ".tiff") and len(self.planes) < len(self):
            progress.say(
                f"{len(self.planes)} of {len(self)} planes are predicted; the pages of the others hold "
                + ("NaN." if probabilities else "0 as background does. A .zarr lists the predicted ones.")
            )
        about = {"threshold": self.threshold, "probabilities": probabilities, **self._origin()}
        progress.start("predicting planes", len(self.planes))
        try:
            write_masks(path, self, values, about=about, done=progress.advance)
        finally:
            progress.finish()
        return path


def predict(
    source: EmbeddingStore | str | Path,
    checkpoint: Checkpoint | str | Path,
    output: str | Path | None = None,
    *,
    threshold: float | None = None,
    probabilities: bool = False,
    prompts: str | None = None,
    start: str | Path | None = None,
    boxes: str | Path | None = None,
    z_range: str | None = None,
    bbox: str | None = None,
    mask: str | Path | None = None,
    skip_empty: bool | None = None,
    empty_threshold: float = 0.0,
    image: str | None = None,
    anon: bool | None = None,
    chunk_cache: int | str | None = None,
    cache_dir: str | Path | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Prediction:
    """Predict masks for a store, or for a volume, which is encoded by the checkpoint's recipe first.

    Parameters
    ----------
    source : EmbeddingStore or path
        A store, its path, or the path of a volume.
    checkpoint : Checkpoint, Run or path
        A run or its ``best.safetensors``.
    output : path, optional
        Written when given: ``.zarr``, ``.tif``, ``.png``, ``.csv`` or a folder. Without it planes are stitched
        when they are asked for: ``prediction[plane]``.
    threshold : float, optional
        Probability above which a pixel is in the mask; the checkpoint's own by default, chosen on validation.
    probabilities : bool
        Write probabilities instead of masks.
    prompts : str, optional
        ``none``, ``grid:free`` or ``mask``; by default what the checkpoint's own free figures were measured
        with. There is no truth to take other prompts from.
    start : path, optional
        Earlier predictions for ``mask``: what predict wrote, or any masks or probabilities of the same planes.
    boxes : path, optional
        Boxes of your own for ``boxes``.
    z_range, bbox, mask : optional
        Only tiles that touch this selection.
    skip_empty, empty_threshold, image, anon, chunk_cache, cache_dir, batch_size : optional
        Passed on when a volume is encoded; ``batch_size`` is the decoder's too.
    device : str
        ``auto``, ``cpu``, ``cuda`` …
    progress : Progress, optional
        Where to report to.

    Returns
    -------
    Prediction

    Raises
    ------
    MismatchError
        When store and checkpoint are of different embedding spaces.
    MissingTilesError
        When not one tile of the selection is encoded.
    InputError
        For a wrong source, checkpoint, selection, threshold or output.
    """
    begin = time.perf_counter()
    progress = progress or Silent()
    trained = as_checkpoint(checkpoint)
    level = probability_threshold(trained, threshold)
    if boxes is not None:
        raise ConfigError("--boxes: this version has no prompts of kind boxes.")
    if prompts not in (None, "none", "grid:free", "mask"):
        raise ConfigError(
            f"predict has no prompts {prompts!r}: they would be taken from a truth that is not there.",
            hint="Use none, grid:free or mask; a store's predictor(i) takes points and boxes of your own.",
        )
    asked = prompts or (trained.measured_prompts if trained.prompt_source == "free" else "none")
    if asked == "mask" and start is None:
        raise ConfigError(
            f"{trained.path} is asked with earlier predictions as masks, and none are given.",
            hint="Give them with --start; predict of another checkpoint writes them.",
        )
    selection = {"z_range": z_range, "bbox": bbox, "mask": None if mask is None else str(mask)}
    reached = {"image": image, "anon": anon}
    store = open_store(source)
    for option, value in reached.items():
        if store is not None and value is not None:
            raise ConfigError(f"--{option} is for volumes; {store.address} is a store.")
    path = None if output is None else Path(output).absolute()
    if path is not None:
        places = (
            [str(source)] if store is None else [str(store.path), str(store.provenance.get("source", ""))]
        )
        check_place(path, sources=places, probabilities=probabilities)
        if store is None and path.suffix.lower() == ".png":
            check_one_plane(path, selected_planes(str(source), trained.recipe, **selection, **reached))
    if store is None:
        wishes = {**selection, "skip_empty": skip_empty, "cache_dir": cache_dir, "batch_size": batch_size}
        wishes |= {**reached, "chunk_cache": chunk_cache, "empty_threshold": empty_threshold}
        result = run_encode(options_from(str(source), {**wishes, "device": device}, trained), progress)
        store = result.store
    check_space(trained, store)
    selected = selected_tiles(store, **selection)
    numbers = np.flatnonzero(selected & store.committed).astype(np.int64)
    if len(numbers) == 0:
        raise MissingTilesError(
            f"Not one of the {int(selected.sum())} tiles asked for is encoded in {store.path}.",
            hint="Encode them: "
            + command(
                *("encode", "--volume", store.provenance.get("source") or "VOLUME"),
                *("--like", store.path, "--store", store.path),
            ),
        )
    missing = int((selected & store.wanted & ~store.committed & ~store.skipped).sum())
    if missing:
        progress.say(f"{store.path} lacks {counted(missing, 'tile')}, which will not be predicted.")
    failed = sum(bool(selected[number]) for number in store.failed)
    if trained.prompt_source == "oracle":
        progress.say(
            f"{trained.path} was trained and measured with {trained.prompts} prompts; predict asks without them."
        )
    chosen_device = resolve_device(device)
    decoder = trained.model().eval().to(chosen_device)
    prompts_of = prompts_for(asked, store, numbers, start)
    stitcher = Stitcher(store, decoder, numbers, prompts_of, chosen_device, batch_size or DECODER_BATCH)
    prediction = Prediction(
        store, trained, level, asked, stitcher, tiles_missing=missing, tiles_failed=failed
    )
    if path is not None:
        prediction.write(path, probabilities=probabilities, progress=progress)
    return replace(prediction, output=path, seconds=time.perf_counter() - begin)
