"""Turns rows of ``metrics.jsonl`` and pictures of validation into what TensorBoard, W&B and MLflow show.

``metrics.jsonl`` and ``pictures/`` hold all there is; loggers repeat it elsewhere. One that fails in the middle of
a training (a server that went away) is said and left out: hours of training are worth more than its curves.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from embedcache.errors import ConfigError, EmbedcacheError
from embedcache.train.run import read_json, write_json

Pixels = npt.NDArray[np.uint8]

NAMES = ("tensorboard", "wandb", "mlflow", "none")
IDS = "loggers.json"
"""File of a run folder that keeps a run's names at services, so that a resumed training goes on with them."""

PROJECT = "embedcache"


class Logger(Protocol):
    """Where figures and pictures of a training go besides its folder."""

    def scalars(self, step: int, place: str, values: Mapping[str, float]) -> None:
        """Figures of one row; ``place`` is what they are of, as ``train`` or ``val/free``."""

    def picture(self, step: int, name: str, pixels: Pixels) -> None:
        """One picture, uint8 (height, width, 3)."""

    def close(self) -> None:
        """Nothing more comes."""


def parse_loggers(text: str) -> tuple[str, ...]:
    """``tensorboard,wandb`` as names, each once; ``none`` is no name.

    Raises
    ------
    ConfigError
        For another word, ``none`` beside others, or a package that is not installed.
    """
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in names:
        if name not in NAMES:
            raise ConfigError(f"--logger is {name!r}; it must be one or more of {', '.join(NAMES)}.")
        if name in ("wandb", "mlflow") and find_spec(name) is None:
            raise ConfigError(
                f"--logger {name} needs the package {name}, which is not installed.",
                hint=f"pip install 'embedcache[{name}]'",
            )
    if "none" in names and len(names) > 1:
        raise ConfigError(f"--logger is {text!r}; none stands alone.")
    return tuple(name for name in names if name != "none")


def open_loggers(
    text: str, folder: Path, *, settings: Mapping[str, Any], step: int = 0, say: Callable[[str], None]
) -> Logger:
    """All loggers that ``--logger`` names, as one.

    Parameters
    ----------
    text : str
        See :func:`parse_loggers`.
    folder : Path
        Of the run; it exists.
    settings : mapping
        The run's options, which services list.
    step : int
        Where the training goes on: what was logged beyond it is of a killed process.
    say : callable
        Told when a logger fails.

    Raises
    ------
    ConfigError
        When one cannot be started.
    """
    return _Several({name: _open(name, folder, settings, step) for name in parse_loggers(text)}, say)


def _open(name: str, folder: Path, settings: Mapping[str, Any], step: int) -> Logger:
    makers: dict[str, Callable[[Path, Mapping[str, Any], int], Logger]]
    makers = {"tensorboard": _TensorBoard, "wandb": _Wandb, "mlflow": _Mlflow}
    try:
        return makers[name](folder, settings, step)
    except (EmbedcacheError, OSError):
        raise
    except Exception as error:  # a service's own, of any class
        raise ConfigError(
            f"--logger {name} could not be started: {type(error).__name__}: {error}",
            hint="Set it up as its own documentation says, or leave it out.",
        ) from error


def log_row(logger: Logger, row: Mapping[str, Any]) -> None:
    """Give every number of a row of ``metrics.jsonl`` to a logger."""
    place = f"{row['split']}/{row['prompt_source']}" if "prompt_source" in row else str(row["split"])
    if row.get("weights") == "ema":
        place += "/ema"
    values = {
        name: float(value)
        for name, value in row.items()
        if name != "step" and isinstance(value, int | float) and not isinstance(value, bool)
    }
    logger.scalars(int(row["step"]), place, values)


class _Several:
    """Loggers as one; one that fails is said, and asked no more."""

    def __init__(self, loggers: Mapping[str, Logger], say: Callable[[str], None]) -> None:
        self._loggers = dict(loggers)
        self._say = say

    def scalars(self, step: int, place: str, values: Mapping[str, float]) -> None:
        self._each(lambda logger: logger.scalars(step, place, values))

    def picture(self, step: int, name: str, pixels: Pixels) -> None:
        self._each(lambda logger: logger.picture(step, name, pixels))

    def close(self) -> None:
        self._each(lambda logger: logger.close())

    def _each(self, do: Callable[[Logger], None]) -> None:
        for name, logger in list(self._loggers.items()):
            try:
                do(logger)
            except Exception as error:
                del self._loggers[name]
                self._say(f"{name} failed and is left out from here: {type(error).__name__}: {error}")


class _TensorBoard:
    """Its own files, in ``tensorboard/`` of the run, written by its own library."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and wanted in training only

        self._writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def scalars(self, step: int, place: str, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{place}/{name}", value, step)

    def picture(self, step: int, name: str, pixels: Pixels) -> None:
        self._writer.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """A run of Weights & Biases; the environment variables of its own library say where and how."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], step: int) -> None:
        self._wandb: Any = importlib.import_module("wandb")
        known = _ids(folder).get("wandb")
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=folder.name,
            dir=str(folder),
            config=dict(settings),
            id=known,
            resume=None if known is None else "allow",
        )
        self._run.define_metric("*", step_metric="step")
        if known is None:
            _keep_id(folder, "wandb", str(self._run.id))

    def scalars(self, step: int, place: str, values: Mapping[str, float]) -> None:
        self._run.log({f"{place}/{name}": value for name, value in values.items()} | {"step": step})

    def picture(self, step: int, name: str, pixels: Pixels) -> None:
        self._run.log({name: self._wandb.Image(pixels), "step": step})

    def close(self) -> None:
        self._run.finish()


class _Mlflow:
    """A run of MLflow; ``MLFLOW_TRACKING_URI`` and ``MLFLOW_EXPERIMENT_NAME`` say where."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], step: int) -> None:
        mlflow: Any = importlib.import_module("mlflow")
        self._client = mlflow.MlflowClient()
        self._metric = mlflow.entities.Metric
        known = _ids(folder).get("mlflow")
        if known is not None:
            self._id = known
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(name)
        experiment = self._client.create_experiment(name) if found is None else found.experiment_id
        self._id = str(self._client.create_run(experiment, run_name=folder.name).info.run_id)
        for key, value in settings.items():
            self._client.log_param(self._id, key, value)
        _keep_id(folder, "mlflow", self._id)

    def scalars(self, step: int, place: str, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics: Sequence[Any] = [
            self._metric(f"{place}/{name}", value, now, step) for name, value in values.items()
        ]
        self._client.log_batch(self._id, metrics=metrics)

    def picture(self, step: int, name: str, pixels: Pixels) -> None:
        self._client.log_image(self._id, pixels, artifact_file=f"pictures/step-{step:06d}-{name}.png")

    def close(self) -> None:
        self._client.set_terminated(self._id)


def _ids(folder: Path) -> dict[str, str]:
    path = folder / IDS
    return {name: str(value) for name, value in read_json(path).items()} if path.is_file() else {}


def _keep_id(folder: Path, name: str, value: str) -> None:
    write_json(folder / IDS, {**_ids(folder), name: value})
