"""Turns what a training knows about itself into its records: checkpoints, ``config.json``, ``summary.json``."""

from __future__ import annotations

import platform
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from embedcache.errors import MismatchError
from embedcache.files import sha256_hex
from embedcache.geometry import VIEW_SETS
from embedcache.train.asking.metrics import Figures
from embedcache.train.checkpoint import Checkpoint
from embedcache.train.options import TrainOptions
from embedcache.train.run import Json, Run, read_json
from embedcache.train.setup import Setup
from embedcache.train.stepping.course import METRIC, Course
from embedcache.train.stepping.state import Standing

MAY_CHANGE = (
    "steps",
    "epochs",
    "resume",
    "device",
    "logger",
    "patience",
    "allow_partial",
    "init",
    "batch_size",  # compared on its own: the automatic one is that of the beginning
    "save_every",
    "resident",
    "check_reads",
    "read_threads",
)
"""Options in which a resumed training may differ from how it began."""

_LENGTH = ("steps", "epochs", "patience")
"""Those of them that a checkpoint says as they were when it was written."""

_DEFAULTS = {field.name: field.default for field in fields(TrainOptions)}


def save_checkpoint(
    setup: Setup,
    folder: Path,
    options: TrainOptions,
    name: str,
    state: dict[str, Tensor],
    figures: Figures,
    step: int,
) -> None:
    """Write a checkpoint of the given state, with everything needed to use it again."""
    recipe = dict(setup.stores[0].provenance.get("recipe", {}))
    Checkpoint(
        path=folder / name,
        state=state,
        embedding_space=setup.stores[0].embedding_space,
        recipe=recipe,
        task=setup.task,
        prompts=setup.prompts,
        objects=setup.objects,
        threshold=figures.threshold,
        split=setup.split.to_dict(),
        stores=tuple(store.address for store in setup.stores),
        labels=tuple(str(label.source) for label in setup.labels),
        step=step,
        metric=METRIC,
        value=figures.dice,
        prompt_source=setup.val_source,
        untrained=is_untrained(setup),
        fingerprints=tuple(store.fingerprint for store in setup.stores),
        encoder_digest=setup.stores[0].spec.encoder_digest,
        model_type=setup.stores[0].spec.model_type,
        settings=_settings(folder, options),
        adapter=any(name.startswith("adapter.") for name in state),
        ema=options.ema,
    ).save(folder / name)


def _settings(folder: Path, options: TrainOptions) -> Json:
    """The options with which the run in a folder began, and those of its length as they are now."""
    begun = read_json(folder / "config.json")["options"] | {name: getattr(options, name) for name in _LENGTH}
    return {name: value for name, value in begun.items() if name != "resume"}


def drawn_views(setup: Setup) -> list[Json]:
    """For each store with training tiles, the views they are drawn from and which tiles these are."""
    found: list[Json] = []
    for part in setup.train:
        store = part.dataset.store
        if not part.dataset.views or store.views == (0,):
            found.append({"views": [0]})
            continue
        chosen = part.drawn_from
        found.append(
            {"views": list(store.views), "tiles": len(chosen), "digest": sha256_hex(chosen.tobytes())}
        )
    return found


def views_said(setup: Setup) -> list[str]:
    """For each store that has views, a sentence on what training draws from."""
    said = []
    for part, drawn in zip(setup.train, drawn_views(setup), strict=True):
        store = part.dataset.store
        if store.views == (0,):
            continue
        name = next((name for name, views in VIEW_SETS.items() if views == store.views), None)
        have = f"{store.address}: tiles have {len(store.views)} views"
        have += f" ({name or ', '.join(map(str, store.views))})"
        if "tiles" in drawn:
            said.append(
                f"{have}: one of a tile's views is drawn each epoch, of {drawn['tiles']} embeddings in all."
            )
        else:
            said.append(f"{have}, but training takes them as they lie only.")
    return said


def is_untrained(setup: Setup) -> bool:
    """Whether the encoder behind the embeddings had random weights."""
    recorded = setup.stores[0].provenance
    name = str(recorded.get("recipe", {}).get("checkpoint", ""))
    return bool(recorded.get("untrained", name.startswith("random:")))


def describe(setup: Setup, options: TrainOptions, batch_size: int) -> Json:
    """What ``config.json`` holds: options as resolved, stores, labels, versions."""
    resolved = {
        "task": setup.task,
        "prompts": setup.prompts,
        "objects": setup.objects,
        "batch_size": batch_size,
    }
    return {
        "options": {**options.to_dict(), **resolved},
        "stores": [store.address for store in setup.stores],
        "fingerprints": [store.fingerprint for store in setup.stores],
        "embedding_space": setup.stores[0].embedding_space,
        "labels": [str(label.source) for label in setup.labels],
        "views": drawn_views(setup),
        "alignment": [label.alignment for label in setup.labels],
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def check_resumable(folder: Path, config: Json, split: Json, asked_batch_size: int | None) -> Json:
    """Refuse to go on with a run that began otherwise; return the ``config.json`` with which it began.

    Tiles encoded since it began may have moved the split: going on would train on what validated before.
    """
    before = read_json(folder / "config.json")
    differences: dict[str, tuple[object, object]] = {
        name: (before.get(name), config[name])
        for name in ("fingerprints", "labels")
        if before.get(name) != config[name]
    }
    if before.get("views", config.get("views")) != config.get("views"):
        differences["views"] = (_views_in_words(before["views"]), _views_in_words(config["views"]))
    for name, value in config["options"].items():
        old = before["options"].get(name, _DEFAULTS.get(name))  # an option younger than the run
        if name not in MAY_CHANGE and old != value:
            differences[name] = (old, value)
    if (folder / "split.json").is_file() and _tiles_of(read_json(folder / "split.json")) != _tiles_of(split):
        differences["split"] = ("split.json", "another one: the store or the labels changed since")
    if asked_batch_size is not None and asked_batch_size != before["options"]["batch_size"]:
        differences["batch_size"] = (before["options"]["batch_size"], asked_batch_size)
    if differences:
        raise MismatchError(
            f"The run {folder} began otherwise and cannot go on like this.",
            differences=differences,
            hint="Repeat the options it began with, or start a new run with another --out.",
        )
    return before


def _views_in_words(views: list[Json]) -> str:
    """What tiles are drawn from, store by store; another digest of as many tiles is other tiles."""
    return "; ".join(
        f"views {', '.join(map(str, one['views']))}"
        + (f" in {one['tiles']} tiles, {one['digest'][:12]}" if "tiles" in one else "")
        for one in views
    )


def _tiles_of(split: Json) -> Json:
    """A split without its rule, which is only the same in words."""
    return {name: value for name, value in split.items() if name != "rule"}


def summarise(
    setup: Setup, course: Course, run: Run, standing: Standing, baseline: Figures, facts: dict[str, Any]
) -> Json:
    """What ``summary.json`` holds; ``facts`` are counts and times of the loop."""
    best = Checkpoint.load(run.checkpoint)
    rows = [
        row
        for row in run.metrics
        if row.get("split") == "val" and row["step"] == standing.best_step and row["step"] > 0
    ]
    oracle = [row for row in rows if row["prompt_source"] != course.val_source]
    return {
        "run": str(run.path),
        "store": [store.address for store in setup.stores]
        if len(setup.stores) > 1
        else setup.stores[0].address,
        "labels": [str(label.source) for label in setup.labels],
        "metric": METRIC,
        "best": standing.best,
        "best_step": standing.best_step,
        **facts,
        "checkpoint": str(run.checkpoint),
        "prompt_source": setup.val_source,
        "measured_prompts": best.measured_prompts,
        "prompts": setup.prompts,
        "task": setup.task,
        "split": setup.split.kind,
        "split_rule": setup.split.rule,
        "threshold": best.threshold,
        "val_tiles": sum(len(part.numbers) for part in course.val),
        "figures": [row for row in rows if row["prompt_source"] == course.val_source][-1],
        "interactive": {**oracle[-1], "prompts": setup.prompts} if oracle else None,
        "baseline": {**baseline.to_dict(), "prompt_source": setup.val_source},
        "untrained_encoder": is_untrained(setup),
    }
