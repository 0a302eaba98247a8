"""Turns a sample of label pixels into what they are: a mask with its threshold, or instance ids.

The rule of ``--task auto``:

* booleans, floats, and labels with a single non-zero value are **semantic** (a mask);
* integers wider than 8 bit with more than one id are **instances**;
* 8-bit labels of ink, by the name of their file, are semantic, whatever their values;
* 8-bit labels with more than one non-zero value are instances when those between 0 and the largest form
  flat regions (more than half of such pixels equal their right and lower neighbour). Antialiased and
  blurred masks have their grey values along edges, where neighbours differ, and are semantic.

A mask's threshold: > 0 when its largest value is at most 1, when it has one non-zero value other than 255, or
when ids were asked to be read as a mask, or are called ink; > 0.5 for fractions; > 127 for masks that
reach 255, and other grey; how much of the sample depends on that is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from embedcache.errors import ConfigError

Task = Literal["semantic", "instances"]
TASKS = ("auto", "semantic", "instances")

GREY_THRESHOLD = 127
UNSURE = (64, 191)
"""Grey values between these might as well be the other thing."""
SHOWN_VALUES = 4


@dataclass(frozen=True, slots=True)
class TaskDecision:
    """What labels are, and why.

    Parameters
    ----------
    kind : "semantic" or "instances"
    threshold : float
        Semantic: values above it are foreground. Instances: 0.
    sentence : str
        The decision and its reason, for the user.
    """

    kind: Task
    threshold: float
    sentence: str


def decide_task(
    samples: Sequence[npt.NDArray[Any]], task: str = "auto", *, ink: bool = False
) -> TaskDecision:
    """Decide from sampled label planes; the module's text gives the rule.

    Parameters
    ----------
    samples : sequence of ndarray (h, w)
        Pieces of labels, of one dtype.
    task : "auto", "semantic" or "instances"
        What the user asked for; only ``auto`` leaves a choice.
    ink : bool
        Whether the file has the name of ink labels, which are masks.

    Raises
    ------
    ConfigError
        When ``task`` is none of the three.
    """
    if task not in TASKS:
        raise ConfigError(f"--task is {task!r}; it must be one of {', '.join(TASKS)}.")
    dtype = samples[0].dtype
    values, counts = _counted(samples)
    ids = values[values > 0]
    masks = ink and dtype == np.uint8 and len(ids) > 1
    kind, why = _kind(samples, dtype, ids)
    if masks:
        kind, why = "semantic", "ink labels are a mask"
    if task == "instances":
        return TaskDecision("instances", 0.0, f"task: instances, as asked ({len(ids)} ids in a sample)")
    if task == "auto" and kind == "instances":
        return TaskDecision("instances", 0.0, f"task: instances ({why})")
    threshold, how = _threshold(dtype, ids, kind)
    why = "as asked" if task == "semantic" else why
    if masks and float(ids[-1]) <= GREY_THRESHOLD:
        threshold, how = 0.0, "> 0"
    elif threshold == GREY_THRESHOLD and len(ids) > 1:
        how += _grey(values, counts)
    return TaskDecision("semantic", threshold, f"task: semantic ({why}); foreground is {how}")


def _counted(samples: Sequence[npt.NDArray[Any]]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Finite values of the samples in order, and how often each is there."""
    if samples[0].dtype == np.uint8:
        total = sum(np.bincount(sample.ravel(), minlength=256) for sample in samples)
        values = np.flatnonzero(total)
        return values.astype(np.uint8), np.asarray(total)[values]
    found = [np.unique(sample, return_counts=True) for sample in samples]
    values, place = np.unique(np.concatenate([each for each, _ in found]), return_inverse=True)
    counts = np.bincount(place, weights=np.concatenate([count for _, count in found])).astype(np.int64)
    finite = np.isfinite(values) if values.dtype.kind == "f" else np.ones(len(values), np.bool_)
    return values[finite], counts[finite]


def _grey(values: npt.NDArray[Any], counts: npt.NDArray[np.int64]) -> str:
    """What a grey mask consists of, and how much of it another threshold would decide otherwise."""
    ids = values[values > 0]
    shown = ", ".join(f"{value:g}" for value in ids[:SHOWN_VALUES])
    if len(ids) > SHOWN_VALUES:
        shown += f", … {len(values)} in all"
    total = counts.sum()
    above = counts[values > GREY_THRESHOLD].sum() / total
    unsure = counts[(values >= UNSURE[0]) & (values <= UNSURE[1])].sum() / total
    return (
        f"; grey values ({shown}): above {GREY_THRESHOLD} are {above:.1%} of the sampled pixels, "
        f"{unsure:.1%} lie between {UNSURE[0]} and {UNSURE[1]}"
    )


def _kind(
    samples: Sequence[npt.NDArray[Any]], dtype: np.dtype[Any], ids: npt.NDArray[Any]
) -> tuple[Task, str]:
    if dtype.kind in "bf":
        return "semantic", f"{dtype} values"
    if len(ids) <= 1:
        return "semantic", "a single non-zero value"
    if dtype.itemsize > 1:
        return "instances", f"{dtype} with {len(ids)} ids in a sample"
    flat = _flatness(samples, float(ids[-1]))
    if flat > 0.5:
        return "instances", f"{len(ids)} values that form flat regions"
    return "semantic", f"a grey mask: {len(ids)} values, those between lie along edges"


def _flatness(samples: Sequence[npt.NDArray[Any]], largest: float) -> float:
    """Share of the pixels between 0 and the largest value that equal their right and lower neighbour."""
    between = equal = 0
    for sample in samples:
        here = sample[:-1, :-1]
        chosen = (here > 0) & (here < largest)
        between += int(chosen.sum())
        equal += int((chosen & (here == sample[1:, :-1]) & (here == sample[:-1, 1:])).sum())
    return equal / between if between else 0.0


def _threshold(dtype: np.dtype[Any], ids: npt.NDArray[Any], kind: Task) -> tuple[float, str]:
    largest = float(ids[-1]) if len(ids) else 0.0
    if dtype.kind == "f" and largest <= 1.0 and len(ids) > 1:
        return 0.5, "> 0.5"
    full = dtype == np.uint8 and largest == 255.0  # pieces outside the sample may be antialiased
    if dtype.kind == "b" or largest <= 1.0 or (len(ids) <= 1 and not full) or kind == "instances":
        return 0.0, "> 0"
    return float(GREY_THRESHOLD), f"> {GREY_THRESHOLD} of a mask that reaches {largest:g}"
