"""Turns a sweep file into runs over one store and one table of them.

Stores and labels are opened once, every label is read from its file once, and so is every training embedding where
memory keeps them, whatever the number of runs.
"""

from __future__ import annotations

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
    counted,
)
from embedcache.files import exclusive_lock
from embedcache.progress import Progress, Silent
from embedcache.store import EmbeddingStore
from embedcache.store.reading.tier import shared_tiers
from embedcache.train.options import TrainOptions
from embedcache.train.pairs import StoreLike, open_labels_of
from embedcache.train.run import Run
from embedcache.train.sweep_file import SweepFile, Value, read_sweep
from embedcache.train.sweep_record import Record, identity_of, require_same, sweep_folder
from embedcache.train.sweep_table import Row, SweepResult
from embedcache.train.trainer import LOCK, train
from embedcache.train.truth.remembered_labels import RememberedLabels

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
    folder = sweep_folder(out)
    stores = [
        item if isinstance(item, EmbeddingStore) else EmbeddingStore.open(item) for item in _as_list(store)
    ]
    shared = _open_all(stores, _as_list(labels), TrainOptions(**base))
    identity = identity_of(plan, base, stores, shared)
    require_same(folder, identity)
    with exclusive_lock(folder / LOCK, guarded=folder), shared_tiers():
        require_same(folder, identity)  # again: another sweep may have come first
        record = Record(folder, identity)
        error = _run_all(
            plan, base, record, teller, lambda **words: train(stores, shared, stop=stop, **words)
        )
        rows = [record.rows[run_name(*numbered)] for numbered in enumerate(plan.choices(), start=1)]
    result = SweepResult(folder, plan.metric, tuple(sorted(rows, key=_place)))
    if result.best is None:
        raise error or _again(rows[-1])
    return result


def _run_all(
    plan: SweepFile, base: Mapping[str, Any], record: Record, progress: Progress, fit: Callable[..., Run]
) -> EmbedcacheError | None:
    """All runs in the file's order; the last error of one that failed now."""
    last: EmbedcacheError | None = None
    choices = plan.choices()
    for number, chosen in enumerate(choices, start=1):
        name = run_name(number, chosen)
        place = record.folder / name
        known = record.rows.get(name, {})
        if "failed" in known and place.is_dir():
            progress.say(f"{name} failed before and is not tried again: {known['failed']}")
            continue
        if "value" in known and (place / "summary.json").is_file():
            continue
        row: Row = {"name": name, "run": str(place), "options": chosen}
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
        record.keep(row)
    return last


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


def _again(row: Row) -> EmbedcacheError:
    """The error of a run that failed when the sweep was started before."""
    kind = InputError if row["exit_code"] == EXIT_INPUT else MismatchError
    hint = f"{command('train', '--sweep')} tries it again when the folder {row['run']} is removed."
    return kind(f"No run finished. The last one: {row['failed']}", hint=hint)


def _open_all(stores: Sequence[EmbeddingStore], paths: Sequence[Any], options: TrainOptions) -> list[Any]:
    if len(stores) != len(paths):
        raise ConfigError(f"{counted(len(stores), 'store')}, but labels of {len(paths)}; they come in pairs.")
    return [
        RememberedLabels(open_labels_of(path, store, options, index, len(stores)))
        for index, (store, path) in enumerate(zip(stores, paths, strict=True))
    ]


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]
