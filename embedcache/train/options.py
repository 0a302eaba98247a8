"""Turns the options of ``train`` into one checked, frozen record, kept as the run's ``config.json``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from embedcache.errors import ConfigError
from embedcache.train.losses import check_loss
from embedcache.train.objects import OBJECTS
from embedcache.train.prompts import check_prompts
from embedcache.train.task import TASKS

TRAINABLE = ("prompt+decoder", "decoder")
LOGGERS = ("tensorboard", "none")
DEFAULT_STEPS = 2000


@dataclass(frozen=True)
class TrainOptions:
    """Everything :func:`embedcache.train.trainer.train` can be told beyond stores and labels.

    Parameters
    ----------
    task : "auto", "semantic" or "instances"
    prompts : str, optional
        none | points | box | grid | iterative; default: none for semantic labels, iterative for instances.
    objects : str, optional
        whole | components | ids; default: ids for prompted instances, else whole.
    train : "prompt+decoder" or "decoder"
        What learns; with ``decoder`` the prompt encoder stays as it is.
    loss : "sam", "bce+iou" or "mse"
    steps, epochs : int, optional
        Length of the training, at most one of the two; default 2,000 steps. It may stop early.
    batch_size : int, optional
        Images a step; default 4 on a CPU, more on a GPU by its free memory.
    lr : float
        The peak of warm-up and cosine.
    seed : int
        Decides everything random.
    val : str
        See :func:`embedcache.train.split.make_split`.
    init : str, optional
        A checkpoint to start from, or ``random:SEED``; default: the decoder that came with the encoder.
    resume : bool
        Go on with a run that was interrupted.
    device : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:1``.
    logger : "tensorboard" or "none"
    allow_partial : bool
        Train although some tiles that the labels touch are not encoded.
    max_objects : int
        At most this many objects of a tile in a step.
    rounds : int
        Correction rounds of ``iterative``.
    validate_every : int, optional
        Steps between validations; default: a twentieth of the training, at least 20.
    patience : int
        Validations without improvement after which training stops; 0: never.

    Raises
    ------
    ConfigError
        For a value that is none of these.
    """

    task: str = "auto"
    prompts: str | None = None
    objects: str | None = None
    train: str = "prompt+decoder"
    loss: str = "sam"
    steps: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    lr: float = 1e-4
    seed: int = 0
    val: str = "auto"
    supervision: str | Path | tuple[str | Path | None, ...] | None = None
    init: str | Path | None = None
    resume: bool = False
    device: str = "auto"
    logger: str = "tensorboard"
    allow_partial: bool = False
    max_objects: int = 8
    rounds: int = 3
    validate_every: int | None = None
    patience: int = 8

    def __post_init__(self) -> None:
        _one_of("--task", self.task, TASKS)
        _one_of("--train", self.train, TRAINABLE)
        _one_of("--logger", self.logger, LOGGERS)
        check_loss(self.loss)
        if self.prompts is not None:
            check_prompts(self.prompts)
        if self.objects is not None:
            _one_of("--objects", self.objects, OBJECTS)
        if self.steps is not None and self.epochs is not None:
            raise ConfigError("Both --steps and --epochs were given; give one of them.")
        for name in ("steps", "epochs", "batch_size", "max_objects", "validate_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} is {value}; it must be at least 1.")
        for name in ("seed", "rounds", "patience"):
            if getattr(self, name) < 0:
                raise ConfigError(f"--{name} is {getattr(self, name)}; it must not be negative.")
        if not 0.0 < self.lr < 1.0:
            raise ConfigError(f"--lr is {self.lr}; it lies between 0 and 1.")

    def supervision_of(self, index: int, stores: int) -> str | Path | None:
        """The supervision mask of a store: one for all, or one per store."""
        if isinstance(self.supervision, tuple):
            if len(self.supervision) != stores:
                raise ConfigError(
                    f"{len(self.supervision)} supervision masks were given for {stores} stores."
                )
            return self.supervision[index]
        return self.supervision

    def to_dict(self) -> dict[str, Any]:
        """As JSON, paths as text."""
        values = asdict(self)
        if isinstance(self.supervision, tuple):
            values["supervision"] = [None if item is None else str(item) for item in self.supervision]
        elif self.supervision is not None:
            values["supervision"] = str(self.supervision)
        values["init"] = None if self.init is None else str(self.init)
        return values


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{option} is {value!r}; it must be one of {', '.join(allowed)}.")


def training_device(text: str) -> torch.device:
    """The device to train on; ``auto`` takes a GPU where there is one.

    Raises
    ------
    ConfigError
        When the name means nothing or the device is not there.
    """
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(text)
    except RuntimeError as error:
        raise ConfigError(f"--device is {text!r}; it must be auto, cpu, cuda or cuda:N.") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device is {text!r}; only cpu and cuda are supported.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"--device is {text!r}, but this machine has {torch.cuda.device_count()} CUDA devices."
        )
    return device


def automatic_batch_size(device: torch.device, tiles: int, queries: int) -> int:
    """Images a step: 4 on a CPU; on a GPU up to 32, as many as fit when an image is asked ``queries`` times."""
    if device.type == "cpu":
        return min(4, tiles)
    free = torch.cuda.mem_get_info(device)[0]
    per_image = 256 * 2**20 * queries  # activations kept for the backward pass, with room for the validation
    return max(1, min(32, tiles, int(free * 0.7) // per_image))
