"""Turns a run folder into what can be asked of it, and a training's results into a run folder.

::

    config.json          options, stores, labels, versions
    split.json           which tiles trained and which validated
    overlay.png          labels drawn over an embedding, to see that they lie where they should
    metrics.jsonl        one JSON object a line: losses of training, figures of validation
    best.safetensors     the checkpoint with the best figure on validation
    last.safetensors     the newest one
    resume.safetensors   weights, their average, optimiser and counts as of the last save
    summary.json         the outcome
    evaluation.json      what ``evaluate`` found for the best checkpoint on all held-out tiles; its page shows it
    pictures/            held-out tiles with their prompts and answers at each validation
    tensorboard/         the same curves for TensorBoard
    loggers.json         names of the run at other services
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from embedcache.errors import InputError
from embedcache.files import write_file

Json = dict[str, Any]

JSON_LIMIT = 256 << 20
"""Bytes above which a file of a run is refused instead of parsed."""


class Run:
    """A training's folder.

    Parameters
    ----------
    path : path
        The folder; it must hold ``config.json``.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        if not (self.path / "config.json").is_file():
            raise InputError(
                f"{self.path} is no run: it has no config.json.", hint="embedcache status lists runs."
            )

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def checkpoint(self) -> Path:
        """The checkpoint with the best figure on validation."""
        return self.path / "best.safetensors"

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.path / "last.safetensors"

    @property
    def config(self) -> Json:
        """Options, stores, labels, versions."""
        return read_json(self.path / "config.json")

    @property
    def split(self) -> Json:
        """The split, as :meth:`embedcache.train.truth.split.Split.to_dict` gave it."""
        return read_json(self.path / "split.json")

    @property
    def summary(self) -> Json:
        """The outcome; :class:`InputError` while there is none."""
        return read_json(self.path / "summary.json")

    @property
    def finished(self) -> bool:
        """Whether the training came to its end."""
        return (self.path / "summary.json").is_file()

    @property
    def best(self) -> float:
        """The best figure on validation."""
        return float(self.summary["best"])

    @property
    def metrics(self) -> list[Json]:
        """Rows of ``metrics.jsonl``; a torn last line is left out."""
        return read_rows(self.path / "metrics.jsonl")

    def outcome(self) -> str:
        """The outcome in a few lines of text."""
        facts = self.summary
        name, before, interactive = facts["metric"], facts["baseline"], facts.get("interactive")
        measured, asked = measured_prompts(facts), []
        if interactive:
            asked = [f"interactive {name} {interactive[name]:.3f} (prompts {facts['prompts']}, oracle)"]
        return "\n".join(
            [
                f"run        {self.path}",
                f"best       {name} {facts['best']:.3f} (prompts {measured}, {facts['prompt_source']}), "
                f"untrained decoder {before[name]:.3f}",
                *asked,
                f"split      {facts['split_rule']}",
                f"threshold  {facts['threshold']:g} (logits)",
                f"trained    {facts['steps']} steps, {facts['epochs']:.1f} epochs, {facts['seconds']:.0f} s, "
                f"{facts['samples_per_second']:.2f} tiles/s, {facts['data_wait_fraction']:.1%} waiting for data",
                f"checkpoint {facts['checkpoint']}",
            ]
        )


def measured_prompts(summary: Json) -> str:
    """The prompts with which the figures were asked that chose the model; those of training may be others.

    The summary of an older version does not say: figures that stand apart tell that these are without prompts.
    """
    found = summary.get("measured_prompts") or (
        "none" if summary.get("interactive") else summary.get("prompts", "none")
    )
    return str(found)


def read_json(path: Path) -> Json:
    """A JSON object from a file; :class:`InputError` when it is missing or none."""
    try:
        with path.open("rb") as stream:
            data = stream.read(JSON_LIMIT + 1)
        if len(data) > JSON_LIMIT:
            raise InputError(f"{path} is larger than {JSON_LIMIT:,} bytes; no file of a run is.")
        value = json.loads(data)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON: {error}.") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no JSON object.")
    return value


def write_json(path: Path, value: Json) -> None:
    """Write a JSON object, indented, atomically."""
    write_file(path, (json.dumps(value, indent=2) + "\n").encode())


def read_rows(path: Path) -> list[Json]:
    """Rows of a JSON-lines file in order; missing file: none; lines that a killed writer tore are left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError):
            continue
    return rows


def keep_rows_until(path: Path, step: int) -> None:
    """Drop rows after ``step``: a resumed run writes them again."""
    rows = read_rows(path)
    kept = [row for row in rows if row.get("step", 0) <= step]
    if len(kept) < len(rows):
        write_file(path, "".join(json.dumps(row) + "\n" for row in kept).encode())


def wanted_folder(wanted: str | Path, *, resume: bool) -> Path:
    """The folder that was asked for; refused as :func:`new_folder` says."""
    path = Path(wanted).absolute()
    if (path / "config.json").exists() and not resume:
        raise InputError(
            f"{path} holds a run already.", hint="Give another --out, or --resume to go on with it."
        )
    if path.exists() and not path.is_dir():
        raise InputError(f"--out {path} is a file; a folder is needed.")
    return path


def new_folder(wanted: str | Path | None, store: Path, labels: Path, *, resume: bool) -> Path:
    """The folder of a run: the wanted one, else ``runs/STORE-LABELS[-N]`` in the current folder.

    Raises
    ------
    InputError
        When the wanted folder holds a run already and ``resume`` was not asked, or is a file.
    """
    if wanted is not None:
        return wanted_folder(wanted, resume=resume)
    name = f"{store.stem}-{labels.stem}"
    base = Path.cwd() / "runs"
    number = 1
    while (base / _numbered(name, number)).exists():
        number += 1
    if resume and number > 1:
        return base / _numbered(name, number - 1)
    return base / _numbered(name, number)


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}-{number}"
