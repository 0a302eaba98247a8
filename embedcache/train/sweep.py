"""Turns a sweep file into runs over one store and one table of them.

Stores and labels are opened once, every label is read from its file once, and so is every training embedding where
memory keeps them, whatever the number of runs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from embedcache.errors import (
    EXIT_INPUT,
    ConfigError,
    CorruptionError,
    EmbedcacheError,
    InputError,
    Interrupted,
    LockedError,
    MismatchError,
    StorageError,
    command,
)
from embedcache.files import exclusive_lock
from embedcache.progress import Progress, Silent
from embedcache.store import EmbeddingStore
from embedcache.store.reading.tier import shared_tiers
from embedcache.train.options import TrainOptions
from embedcache.train.remembered_labels import RememberedLabels
from embedcache.train.run import Run, read_json, write_json
from embedcache.train.setup import StoreLike, open_labels_of
from embedcache.train.sweep_file import SweepFile, Value, read_sweep
from embedcache.train.sweep_table import Row, SweepResult
from embedcache.train.trainer import LOCK, train

KEPT = "sweep.json"
"""File of a sweep's folder: its plan, and a row per run."""

_ENDS_ALL = (Interrupted, LockedError, StorageError, CorruptionError)
"""What no other run would be spared: the disk, the store, the user's wish."""


def run_sweep(
    store: StoreLike | Sequence[StoreLike],
    labels: str | Path | Sequence[str | Path],
    file: str | Path | SweepFile,
    *,
    out: str | Path | None,
    progress: Progress | None = None,
    options: Mapping[str, Any] | None = None,
    stop: Callable[[], int | None] | None = None,
) -> SweepResult:
    """Train once for each choice of a sweep file.

    A run that is finished is not repeated, one that was interrupted goes on, and one that failed (a learning rate
    that diverges) is a row with its reason; it is tried again when its folder was removed.

    Parameters
    ----------
    store, labels
        See :func:`embedcache.train.trainer.train`.
    file : path or SweepFile
        See :mod:`embedcache.train.sweep_file`.
    out : path
        Folder of the runs and of ``sweep.json``.
    progress : Progress, optional
        Default: silent.
    options : mapping, optional
        Options of train for all runs; those of the file win.
    stop : callable, optional
        See :func:`embedcache.train.trainer.train`.

    Raises
    ------
    ConfigError
        When the file is wrong; nothing is written then.
    InputError, MismatchError
        When the folder holds something else, or another sweep.
    EmbedcacheError
        The last run's own, when none finished.
    """
    teller = progress or Silent()
    plan = file if isinstance(file, SweepFile) else read_sweep(file)
    base = {**(options or {}), **plan.fixed}
    for chosen in plan.choices():
        TrainOptions(**{**base, **chosen})  # refused here, before anything is written
    folder = _folder(out, plan)
    stores = [s if isinstance(s, EmbeddingStore) else EmbeddingStore.open(Path(s)) for s in _as_list(store)]
    shared = _open_all(stores, _as_list(labels), TrainOptions(**base))
    with exclusive_lock(folder / LOCK, guarded=folder), shared_tiers():
        _folder(out, plan)  # again: another sweep may have come first
        write_json(folder / KEPT, {**_kept(folder), "sweep": plan.to_dict()})
        rows, error = _run_all(
            plan, base, folder, teller, lambda **words: train(stores, shared, stop=stop, **words)
        )
    result = SweepResult(folder, plan.metric, tuple(sorted(rows, key=_place)))
    best = result.best
    write_json(
        folder / KEPT, {"sweep": plan.to_dict(), "runs": rows, "best": None if best is None else best.name}
    )
    if best is None:
        raise error or _again(rows[-1])
    return result


def _run_all(
    plan: SweepFile, base: Mapping[str, Any], folder: Path, progress: Progress, fit: Callable[..., Run]
) -> tuple[list[Row], EmbedcacheError | None]:
    """All runs in the file's order, and the last error of one that failed now."""
    before = {row["name"]: row for row in _kept(folder).get("runs", [])}
    rows: list[Row] = []
    last: EmbedcacheError | None = None
    choices = plan.choices()
    for number, chosen in enumerate(choices, start=1):
        name = run_name(number, chosen)
        place = folder / name
        row: Row = {"name": name, "run": str(place), "options": chosen}
        known = before.get(name, {})
        if "failed" in known and place.is_dir():
            rows.append(known)
            progress.say(f"{name} failed before and is not tried again: {known['failed']}")
            continue
        progress.say(f"run {number} of {len(choices)}: {name}")
        try:
            run = fit(out=place, resume=place.exists(), progress=progress, **{**base, **chosen})
            row |= _figures(run, plan.metric)
        except _ENDS_ALL:
            raise
        except EmbedcacheError as error:
            last = error
            row |= {"failed": error.message, "exit_code": error.exit_code}
            progress.say(f"{name} failed: {error.message}")
        rows.append(row)
        write_json(folder / KEPT, {"sweep": plan.to_dict(), "runs": rows})
    return rows, last


def run_name(number: int, chosen: Mapping[str, Value]) -> str:
    """``001-lr=0.0001-loss=sam``: a folder's name, at most 120 characters."""
    words = "-".join(f"{name}={value}" for name, value in chosen.items())
    return f"{number:03d}-{words}".replace("/", "_")[:120].rstrip(" .")


def _figures(run: Run, metric: str) -> Row:
    facts = run.summary
    return {
        "metric": metric,
        "value": float(facts["figures"][metric]),
        "untrained": float(facts["baseline"][metric]),
        "prompt_source": facts["prompt_source"],
        "steps": facts["steps"],
        "seconds": facts["seconds"],
        "split_rule": facts["split_rule"],
        "checkpoint": facts["checkpoint"],
    }


def _place(row: Row) -> tuple[bool, float, str]:
    return "failed" in row, -float(row.get("value", 0.0)), row["name"]


def _folder(out: str | Path | None, plan: SweepFile) -> Path:
    if out is None:
        raise ConfigError("--sweep needs --out FOLDER for its runs.")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError(
            "A sweep runs in one process, and torchrun started several.",
            hint="Start it without torchrun; several sweeps may share the machine, each with its --out.",
        )
    folder = Path(out).absolute()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {folder} is a file; a folder is needed.")
    if (folder / "config.json").is_file():
        raise InputError(f"{folder} holds a run, not a sweep.", hint="Give another --out.")
    found = _kept(folder).get("sweep")
    if found is None and folder.is_dir() and any(p.name != LOCK for p in folder.iterdir()):
        raise InputError(f"{folder} is not empty and holds no sweep.", hint="Give another --out.")
    wanted = json.loads(json.dumps(plan.to_dict()))
    if found is not None and found != wanted:
        raise MismatchError(
            f"{folder} holds another sweep.",
            differences={
                name: (found.get(name), wanted[name]) for name in wanted if found.get(name) != wanted[name]
            },
            hint="Give another --out; a random sweep may only get more runs.",
        )
    return folder


def _kept(folder: Path) -> dict[str, Any]:
    return read_json(folder / KEPT) if (folder / KEPT).is_file() else {}


def _again(row: Row) -> EmbedcacheError:
    """The error of a run that failed when the sweep was started before."""
    kind = InputError if row["exit_code"] == EXIT_INPUT else MismatchError
    hint = f"{command('train', '--sweep')} tries it again when the folder {row['run']} is removed."
    return kind(f"No run finished. The last one: {row['failed']}", hint=hint)


def _open_all(stores: Sequence[EmbeddingStore], paths: Sequence[Any], options: TrainOptions) -> list[Any]:
    if len(stores) != len(paths):
        raise ConfigError(f"{len(stores)} stores and {len(paths)} labels were given; they come in pairs.")
    return [
        RememberedLabels(open_labels_of(path, store, options, index, len(stores)))
        for index, (store, path) in enumerate(zip(stores, paths, strict=True))
    ]


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]
