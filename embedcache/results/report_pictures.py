"""Turns a run into pictures of the tiles that it held out, and a sentence on what they show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from embedcache.errors import InputError, MismatchError, StorageError
from embedcache.results.pictures import TileRow, draw_tiles
from embedcache.store import EmbeddingStore
from embedcache.train.checkpoint import Checkpoint
from embedcache.train.questions.box_prompts import open_boxes
from embedcache.train.questions.dataset import EmbeddingDataset
from embedcache.train.questions.mask_prompts import open_mask_prompts
from embedcache.train.run import Run
from embedcache.train.truth.labels import open_labels
from embedcache.train.truth.split import Split


def pictures_of(
    run: Run, stores: Sequence[EmbeddingStore | None], summary: dict[str, Any], count: int
) -> tuple[list[TileRow], str]:
    """Pictures of validation tiles, and a sentence on what is shown or why nothing is."""
    if not run.checkpoint.is_file():
        return [], "There is no checkpoint yet, so there are no pictures."
    checkpoint = Checkpoint.load(run.checkpoint)
    options = run.config["options"]
    split = Split.from_dict(run.split)
    index, numbers = next((part for part in split.val if part[1]), (0, ()))
    store = stores[index]
    if store is None or not numbers:
        return [], f"The store {run.config['stores'][index]} is not there, so there are no pictures."
    given = (options.get(name) for name in ("supervision", "validation", "start", "boxes"))
    mask, held_out, earlier, boxes = (value[index] if isinstance(value, list) else value for value in given)
    free = checkpoint.prompt_source == "free"
    try:
        labels = open_labels(
            run.config["labels"][index],
            store,
            supervision=mask,
            validation=held_out,
            task=checkpoint.task,
            ignore=options.get("ignore"),
        ).validating()
        start = None if earlier is None else open_mask_prompts(earlier, store)
        dataset = EmbeddingDataset(
            store,
            labels,
            prompts=checkpoint.measured_prompts,
            objects="whole" if free else checkpoint.objects,
            tiles=numbers,
            seed=int(options.get("seed", 0)),
            start=start,
            boxes=None if boxes is None else open_boxes(boxes, store),
        )
    except (InputError, MismatchError, StorageError) as error:
        return [], f"There are no pictures: {error.message}"
    before = float((summary.get("baseline") or {}).get("threshold", 0.0))
    rows, from_volume = draw_tiles(
        dataset,
        [int(n) for n in dataset.tiles],
        (store.decoder(), before),
        (checkpoint.model(), checkpoint.threshold),
        count=count,
    )
    learnt = split.kind == "overfit"
    whose = "Tiles that were learnt by heart" if learnt else "Tiles that were held out of training"
    shown = "" if from_volume else " The volume is not there: colours are main components of the embedding."
    return (
        rows,
        f"{whose}, asked with {checkpoint.prompt_source} prompts.{shown}",
    )
