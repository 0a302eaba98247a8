"""Turns the options of ``train`` into one checked, frozen record, kept as the run's ``config.json``."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
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
SCHEDULES = ("cosine", "linear", "step", "constant")
AMP = ("off", "tf32", "bf16")
VIEWS = ("auto", "off")
RESIDENT = ("auto", "gpu", "ram", "disk")
CHECK_READS = ("always", "once", "never")
DEFAULT_STEPS = 2000

NOT_YET = (
    "schedule", "warmup", "weight_decay", "clip", "accumulate", "amp", "ema", "save_every", "adapter", "views",
    "jitter", "resident", "check_reads", "read_threads", "overfit", "ignore", "start",
)  # fmt: skip
"""Options that are named, but not carried out yet: another value than the default is refused."""


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
    schedule : "cosine", "linear", "step" or "constant"
        The learning rate's course after the warm-up.
    warmup : int, optional
        Steps of linear warm-up; default: a tenth of the training, at most 100.
    weight_decay, clip : float
        Of AdamW; and the largest norm of a gradient.
    accumulate : int
        Parts in which a step's gradient is computed.
    amp : "off", "tf32" or "bf16"
        Arithmetic of the decoder.
    ema : float
        Decay of the average of weights that is validated and kept; 0: no average.
    save_every : int, optional
        Steps between states from which ``resume`` goes on; default: as ``validate_every``.
    adapter : bool
        Train a small block between the embeddings and the decoder too.
    views : "auto" or "off"
        Whether a store's views of a tile are drawn from.
    jitter : bool
        Vary what is asked of a tile beyond its prompts.
    resident : "auto", "gpu", "ram" or "disk"
        Where the embeddings are kept.
    check_reads : "always", "once" or "never"
        When an embedding's checksum is compared: on every read, or on its first.
    read_threads : int, optional
        Threads that read; default: what suits the machine.
    overfit : int, optional
        Train and validate on so many tiles, to see whether a training can learn at all.
    ignore : int, optional
        Pixels of this label value do not count.
    start : path, or one per store, optional
        Predictions that ``--prompts mask`` starts from.

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
    schedule: str = "cosine"
    warmup: int | None = None
    weight_decay: float = 0.01
    clip: float = 1.0
    accumulate: int = 1
    amp: str = "off"
    ema: float = 0.0
    save_every: int | None = None
    adapter: bool = False
    views: str = "auto"
    jitter: bool = False
    resident: str = "auto"
    check_reads: str = "always"
    read_threads: int | None = None
    overfit: int | None = None
    ignore: int | None = None
    start: str | Path | tuple[str | Path | None, ...] | None = None

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
        self._check_numbers()
        self._check_words()

    def _check_numbers(self) -> None:
        for name in _AT_LEAST_1:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{_option(name)} is {value}; it must be at least 1.")
        for name in _NOT_NEGATIVE:
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ConfigError(f"{_option(name)} is {value}; it must not be negative.")
        if not 0.0 < self.lr < 1.0:
            raise ConfigError(f"--lr is {self.lr}; it lies between 0 and 1.")
        if not 0.0 < self.clip < math.inf:
            raise ConfigError(f"--clip is {self.clip}; it must be positive.")
        if not 0.0 <= self.ema < 1.0:
            raise ConfigError(f"--ema is {self.ema}; it is 0 (off) or lies below 1.")

    def _check_words(self) -> None:
        _one_of("--schedule", self.schedule, SCHEDULES)
        _one_of("--amp", self.amp, AMP)
        _one_of("--views", self.views, VIEWS)
        _one_of("--resident", self.resident, RESIDENT)
        _one_of("--check-reads", self.check_reads, CHECK_READS)
        for field in fields(self):
            if field.name in NOT_YET and getattr(self, field.name) != field.default:
                raise ConfigError(
                    f"{_option(field.name)} is not carried out yet; leave it at {field.default!r}."
                )

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
        for name in ("supervision", "start", "init"):
            values[name] = _as_text(values[name])
        return values


_AT_LEAST_1 = (
    "steps", "epochs", "batch_size", "max_objects", "validate_every",
    "accumulate", "save_every", "read_threads", "overfit",
)  # fmt: skip
_NOT_NEGATIVE = ("seed", "rounds", "patience", "warmup", "weight_decay")


def _as_text(path: str | Path | tuple[str | Path | None, ...] | None) -> str | list[str | None] | None:
    if isinstance(path, tuple):
        return [None if item is None else str(item) for item in path]
    return None if path is None else str(path)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


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
