"""Turns a store or a new volume, and a checkpoint, into masks at the volume's own resolution.

A volume is encoded first, by the recipe that the checkpoint carries, so that both lie in one embedding space. That
space is all that is compared: a decoder trained on one fragment predicts any other.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.encode import run_encode
from embedcache.encode.options import options_from
from embedcache.errors import ConfigError, MissingTilesError, command, counted
from embedcache.progress import Progress, Silent
from embedcache.results.flatten import check_flatten
from embedcache.results.opened import as_checkpoint, open_store, probability_threshold
from embedcache.results.output_place import check_one_plane, check_place
from embedcache.results.prediction import Prediction
from embedcache.results.selection import selected_planes, selected_tiles
from embedcache.results.stitch import Stitcher, prompts_for
from embedcache.sam.encoder import resolve_device
from embedcache.store import EmbeddingStore
from embedcache.train.checkpoint import Checkpoint, check_space

DECODER_BATCH = 8
"""Tiles per decoder call."""

FREE = ("none", "grid:free", "boxes", "mask")
"""What predict can ask with."""

__all__ = ["DECODER_BATCH", "Prediction", "predict"]


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
    flatten: str = "none",
    name: str | None = None,
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
        ``none``, ``grid:free``, ``boxes`` or ``mask``; by default ``boxes`` where these are given, else what the
        checkpoint's own free figures were measured with. There is no truth to take other prompts from.
    start : path, optional
        Earlier predictions for ``mask``: what predict wrote, or any masks or probabilities of the same planes.
    boxes : path, optional
        Boxes of your own for ``boxes``, CSV or COCO JSON. Every box of a tile is asked, and the largest answer
        counts; a tile without any is background.
    flatten : "none", "mean" or "max"
        Join the planes of what is written to one, as a surface volume has one truth for all of its planes.
    name : str, optional
        What a single plane that is written is called: in a csv its ``Id``; default: the name of its fragment.
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
    asked = _prompts(trained, prompts, start, boxes)
    check_flatten(flatten, name)
    selection: dict[str, Any] = {
        "z_range": z_range,
        "bbox": bbox,
        "mask": None if mask is None else str(mask),
    }
    reached = {"image": image, "anon": anon}
    store = open_store(source)
    for option, value in reached.items():
        if store is not None and value is not None:
            raise ConfigError(f"--{option} is for volumes; {store.address} is a store.")
    path = None if output is None else Path(output).absolute()
    if path is not None:
        opened = {**selection, **reached}
        _check_output(
            path, source, store, trained, opened, probabilities=probabilities, flat=flatten != "none"
        )
    if store is None:
        wishes = {**selection, "skip_empty": skip_empty, "cache_dir": cache_dir, "batch_size": batch_size}
        wishes |= {**reached, "chunk_cache": chunk_cache, "empty_threshold": empty_threshold}
        result = run_encode(options_from(str(source), {**wishes, "device": device}, trained), progress)
        store = result.store
    check_space(trained, store)
    numbers, missing, failed = _numbers(store, selection, progress)
    if trained.prompt_source == "oracle" and asked != "boxes":
        progress.say(
            f"{trained.path} was trained and measured with {trained.prompts} prompts; predict asks without them."
        )
    chosen_device = resolve_device(device)
    decoder = trained.model().eval().to(chosen_device)
    prompts_of = prompts_for(asked, store, numbers, start, boxes=boxes, progress=progress)
    stitcher = Stitcher(store, decoder, numbers, prompts_of, chosen_device, batch_size or DECODER_BATCH)
    prediction = Prediction(
        store, trained, level, asked, stitcher, tiles_missing=missing, tiles_failed=failed
    )
    if path is not None:
        prediction.write(path, probabilities=probabilities, flatten=flatten, name=name, progress=progress)
    return replace(prediction, output=path, seconds=time.perf_counter() - begin)


def _prompts(
    trained: Checkpoint, prompts: str | None, start: str | Path | None, boxes: str | Path | None
) -> str:
    """What to ask with: the kind that is given, or that follows; refused where its file is missing."""
    if prompts not in (None, *FREE):
        raise ConfigError(
            f"predict has no prompts {prompts!r}: they would be taken from a truth that is not there.",
            hint="Use none, grid:free, boxes or mask; a store's predictor(i) takes points and boxes of your own.",
        )
    measured = trained.measured_prompts if trained.prompt_source == "free" else "none"
    asked = prompts or ("boxes" if boxes is not None else measured)
    if asked == "mask" and start is None:
        raise ConfigError(
            f"{trained.path} is asked with earlier predictions as masks, and none are given.",
            hint="Give them with --start; predict of another checkpoint writes them.",
        )
    if asked == "boxes" and boxes is None:
        raise ConfigError(
            f"{trained.path} is asked with boxes of your own, and none are given: it needs boxes.",
            hint="Give them with --boxes FILE.csv (image,x0,y0,x1,y1) or COCO JSON; or ask with --prompts none.",
        )
    if boxes is not None and asked != "boxes":
        raise ConfigError(f"--boxes is what --prompts boxes asks with; the prompts are {asked}.")
    return asked


def _check_output(
    path: Path,
    source: EmbeddingStore | str | Path,
    store: EmbeddingStore | None,
    trained: Checkpoint,
    opened: Mapping[str, Any],
    *,
    probabilities: bool,
    flat: bool,
) -> None:
    """Refuse what cannot be written before anything is encoded for it."""
    places = [str(source)] if store is None else [str(store.path), str(store.provenance.get("source", ""))]
    check_place(path, sources=places, probabilities=probabilities)
    if store is None and path.suffix.lower() == ".png" and not flat:
        check_one_plane(path, selected_planes(str(source), trained.recipe, **opened))


def _numbers(
    store: EmbeddingStore, selection: Mapping[str, Any], progress: Progress
) -> tuple[npt.NDArray[np.int64], int, int]:
    """The tiles of a selection that are encoded; and how many are missing, and how many failed."""
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
    return numbers, missing, sum(bool(selected[number]) for number in store.failed)
