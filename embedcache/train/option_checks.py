"""Turns options of a training into a refusal when one of them cannot be; pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from embedcache.errors import ConfigError
from embedcache.train.asking.losses import check_loss
from embedcache.train.loggers import parse_loggers
from embedcache.train.questions.objects import OBJECTS
from embedcache.train.questions.prompts import check_prompts
from embedcache.train.truth.task import TASKS

if TYPE_CHECKING:
    from embedcache.train.options import TrainOptions

TRAINABLE = ("prompt+decoder", "decoder")
SCHEDULES = ("cosine", "linear", "step", "constant")
AMP = ("off", "tf32", "bf16")
VIEWS = ("auto", "off")
RESIDENT = ("auto", "gpu", "ram", "disk")
CHECK_READS = ("always", "once", "never")

_AT_LEAST_1 = (
    "steps", "epochs", "batch_size", "max_objects", "validate_every",
    "accumulate", "save_every", "read_threads", "overfit", "rounds",
)  # fmt: skip
_NOT_NEGATIVE = ("seed", "patience", "warmup", "weight_decay")


def check_options(options: TrainOptions) -> None:
    """Refuse values that cannot be.

    Raises
    ------
    ConfigError
        Naming the option as the command line does.
    """
    _check_words(options)
    _check_numbers(options)
    if options.steps is not None and options.epochs is not None:
        raise ConfigError("Both --steps and --epochs were given; give one of them.")


def _check_words(options: TrainOptions) -> None:
    _one_of("--task", options.task, TASKS)
    _one_of("--train", options.train, TRAINABLE)
    _one_of("--schedule", options.schedule, SCHEDULES)
    _one_of("--amp", options.amp, AMP)
    _one_of("--views", options.views, VIEWS)
    _one_of("--resident", options.resident, RESIDENT)
    _one_of("--check-reads", options.check_reads, CHECK_READS)
    check_loss(options.loss)
    parse_loggers(options.logger)
    if options.prompts is not None:
        check_prompts(options.prompts)
    if options.objects is not None:
        _one_of("--objects", options.objects, OBJECTS)


def _check_numbers(options: TrainOptions) -> None:
    for name in _AT_LEAST_1:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"{_option(name)} is {value}; it must be at least 1.")
    for name in _NOT_NEGATIVE:
        value = getattr(options, name)
        if value is not None and not 0 <= value < math.inf:
            raise ConfigError(f"{_option(name)} is {value}; it must not be negative.")
    if not 0.0 < options.lr < 1.0:
        raise ConfigError(f"--lr is {options.lr}; it lies between 0 and 1.")
    if not 0.0 < options.clip < math.inf:
        raise ConfigError(f"--clip is {options.clip}; it must be positive.")
    if not 0.0 <= options.ema < 1.0:
        raise ConfigError(f"--ema is {options.ema}; it is 0 (off) or lies below 1.")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{option} is {value!r}; it must be one of {', '.join(allowed)}.")
