"""Turns what decides a sweep's figures, and its rows, into ``sweep.json``; refuses the folder of another sweep."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from embedcache.errors import ConfigError, InputError, MismatchError
from embedcache.store import EmbeddingStore
from embedcache.train.options import TrainOptions
from embedcache.train.run import read_json, write_json
from embedcache.train.sweep_file import SweepFile
from embedcache.train.sweep_table import Row
from embedcache.train.trainer import LOCK
from embedcache.train.truth.labels import Labels

KEPT = "sweep.json"
"""File of a sweep's folder: its plan, and a row per run."""

_SPEED_ONLY = (
    "resume", "device", "logger", "save_every", "resident", "check_reads", "read_threads",
)  # fmt: skip
"""Options that change no figure: a sweep may go on with others."""


def sweep_folder(out: str | Path | None) -> Path:
    """The folder of a sweep's runs; one that cannot be is refused."""
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
    return folder


def identity_of(
    plan: SweepFile, base: Mapping[str, Any], stores: Sequence[EmbeddingStore], labels: Sequence[Labels]
) -> dict[str, Any]:
    """What decides the figures of all runs, as JSON; a sweep that goes on must be of the same."""
    options = TrainOptions(**{**base, "resume": False}).to_dict()
    facts = {
        "sweep": plan.to_dict(),
        "options": {name: value for name, value in options.items() if name not in (*plan.vary, *_SPEED_ONLY)},
        "fingerprints": [store.fingerprint for store in stores],
        "labels": [label.source for label in labels],
    }
    plain: dict[str, Any] = json.loads(json.dumps(facts))
    return plain


def require_same(folder: Path, identity: Mapping[str, Any]) -> None:
    """Refuse a folder that holds something else; nothing is written."""
    found = kept(folder)
    if not found:
        if folder.is_dir() and any(path.name != LOCK for path in folder.iterdir()):
            raise InputError(f"{folder} is not empty and holds no sweep.", hint="Give another --out.")
        return
    differences: dict[str, tuple[object, object]] = {
        name: (found.get(name), identity[name])
        for name in ("fingerprints", "labels")
        if found.get(name) != identity[name]
    }
    for part in ("sweep", "options"):
        before, now = found.get(part) or {}, identity[part]
        names = sorted(set(before) | set(now))
        differences |= {n: (before.get(n), now.get(n)) for n in names if before.get(n) != now.get(n)}
    if differences:
        raise MismatchError(
            f"{folder} holds another sweep.",
            differences=differences,
            hint="Give another --out, or the options it began with; a random sweep may only get more runs.",
        )


def kept(folder: Path) -> dict[str, Any]:
    """What ``sweep.json`` of a folder holds; nothing where there is none."""
    return read_json(folder / KEPT) if (folder / KEPT).is_file() else {}


class Record:
    """``sweep.json``: what the sweep is of, and the rows that are known, also those of an earlier time."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        self._identity = identity
        self.rows: dict[str, Row] = {row["name"]: row for row in kept(folder).get("runs", [])}
        self._write()

    def keep(self, row: Row) -> None:
        """Keep a run's row; the one it had goes."""
        self.rows[row["name"]] = row
        self._write()

    def _write(self) -> None:
        rows = sorted(self.rows.values(), key=lambda row: str(row["name"]))
        write_json(self.folder / KEPT, {**self._identity, "runs": rows})
