"""Turns a sweep's TOML file into the options of its runs: a grid in its order, or random draws by a seed.

::

    kind = "grid"          # or "random", with runs = 20 and seed = 0
    metric = "dice"        # of validation: dice, iou, f05, precision, recall
    [fixed]                # options of train, the same for all runs
    steps = 500
    [vary]                 # a list of values; random also {low = 1e-5, high = 1e-3, log = true}
    lr = [1e-4, 3e-4, 1e-3]
    loss = ["sam", "bce+iou"]
"""

from __future__ import annotations

import itertools
import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from embedcache.errors import ConfigError
from embedcache.train.options import TrainOptions

KINDS = ("grid", "random")
METRICS = ("dice", "iou", "f05", "precision", "recall")
RANDOM_RUNS, MOST_RUNS = 20, 10_000
FILE_LIMIT = 1 << 20

ONE_FOR_ALL = (
    "val", "task", "supervision", "validation", "ignore", "start", "boxes", "allow_partial", "overfit",
    "device", "logger",
)  # fmt: skip
"""Options that all runs share: figures on other tiles or labels could not stand in one table."""

NOT_HERE = ("store", "labels", "out", "resume", "sweep")
"""What only the command line says."""
_FILE_KEYS = ("kind", "metric", "runs", "seed", "fixed", "vary")
_RANGE_KEYS = ("low", "high", "log")
Value = str | int | float | bool


@dataclass(frozen=True)
class Range:
    """Values between two, ends included; whole numbers when both ends are, evenly over decades when ``log``."""

    low: float
    high: float
    log: bool = False

    def draw(self, rng: np.random.Generator) -> Value:
        """One value: whole, or of four digits, so that a folder's name can hold it."""
        if isinstance(self.low, int) and isinstance(self.high, int) and not self.log:
            return int(rng.integers(self.low, self.high + 1))
        if self.log:
            value = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = float(rng.uniform(self.low, self.high))
        if isinstance(self.low, int) and isinstance(self.high, int):
            return min(max(round(value), self.low), self.high)
        return min(max(float(f"{value:.4g}"), float(self.low)), float(self.high))


@dataclass(frozen=True)
class SweepFile:
    """A sweep as its file says it.

    Parameters
    ----------
    kind : "grid" or "random"
    metric : str
        What the table is sorted by.
    fixed : dict
    vary : dict of str to tuple of values, or Range
    runs, seed : int
        Of a random sweep.
    """

    kind: str
    metric: str
    fixed: dict[str, Any]
    vary: dict[str, tuple[Value, ...] | Range]
    runs: int = 0
    seed: int = 0

    def choices(self) -> list[dict[str, Value]]:
        """What varies, run by run. A random sweep's first runs stay the same when it is made longer."""
        if self.kind == "grid":
            lists = [values for values in self.vary.values() if not isinstance(values, Range)]
            return [dict(zip(self.vary, chosen, strict=True)) for chosen in itertools.product(*lists)]
        return [self._drawn(np.random.default_rng([self.seed, number])) for number in range(self.runs)]

    def _drawn(self, rng: np.random.Generator) -> dict[str, Value]:
        return {
            name: values.draw(rng) if isinstance(values, Range) else values[int(rng.integers(len(values)))]
            for name, values in self.vary.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """As JSON: what makes it this sweep. How many runs a random one has is left out, as it may grow."""
        vary = {
            name: {"low": values.low, "high": values.high, "log": values.log}
            if isinstance(values, Range)
            else list(values)
            for name, values in self.vary.items()
        }
        return {
            "kind": self.kind,
            "metric": self.metric,
            "fixed": self.fixed,
            "vary": vary,
            "seed": self.seed,
        }


def read_sweep(path: str | Path) -> SweepFile:
    """Read and check a sweep file.

    Raises
    ------
    ConfigError
        When it is missing, no TOML, or says something that cannot be.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            data = stream.read(FILE_LIMIT + 1)
    except OSError as error:
        raise ConfigError(f"The sweep file {path} cannot be read: {error.strerror}.") from error
    if len(data) > FILE_LIMIT:
        raise ConfigError(f"{path} is larger than {FILE_LIMIT:,} bytes; no sweep file is.")
    try:
        content = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no TOML: {error}.") from error
    return _checked(path, content)


def _checked(path: Path, content: Mapping[str, Any]) -> SweepFile:
    for name in content:
        _known(path, name, _FILE_KEYS, "a sweep file has")
    kind, metric = content.get("kind", "grid"), content.get("metric", "dice")
    if kind not in KINDS:
        raise ConfigError(f"{path}: kind is {kind!r}; it must be one of {', '.join(KINDS)}.")
    if metric not in METRICS:
        raise ConfigError(f"{path}: metric is {metric!r}; it must be one of {', '.join(METRICS)}.")
    if kind == "grid" and (odd := sorted({"runs", "seed"} & set(content))):
        raise ConfigError(f'{path}: {odd[0]} belongs to kind = "random"; a grid has as many runs as choices.')
    fixed, vary = _table(path, content, "fixed"), _table(path, content, "vary")
    if not vary:
        raise ConfigError(f"{path}: [vary] is empty; there is nothing to sweep over.")
    if both := sorted(set(fixed) & set(vary)):
        raise ConfigError(f"{path}: {both[0]} stands in [fixed] and in [vary].")
    values = {name: _values(path, kind, name, value) for name, value in vary.items()}
    runs = _whole(path, content, "runs", RANDOM_RUNS, 1) if kind == "random" else 0
    seed = _whole(path, content, "seed", 0, 0)
    found = SweepFile(kind, metric, fixed, values, runs, seed)
    _require_few(path, found)
    for number, chosen in enumerate(found.choices(), start=1):
        _try_options(path, number, fixed | chosen)
    return found


def _table(path: Path, content: Mapping[str, Any], name: str) -> dict[str, Any]:
    table = content.get(name, {})
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: {name} is no table; write [{name}].")
    options = {field.name for field in fields(TrainOptions)}
    found = {}
    for key, value in table.items():
        option = key.replace("-", "_")
        if option in NOT_HERE:
            raise ConfigError(f"{path}: {key} is said on the command line, for all runs.")
        _known(path, option, sorted(options - set(NOT_HERE)), "train has")
        if name == "vary" and option in ONE_FOR_ALL:
            raise ConfigError(
                f"{path}: {key} may not vary: figures of one table are of the same tiles and labels."
            )
        found[option] = tuple(value) if name == "fixed" and isinstance(value, list) else value
    return found


def _known(path: Path, name: str, known: Iterable[str], who: str) -> None:
    names = list(known)
    if name in names:
        return
    near = get_close_matches(name, names, n=1)
    meant = f" Did you mean {near[0]}?" if near else ""
    raise ConfigError(f"{path}: {name} is not known.{meant}", hint=f"{who.capitalize()} {', '.join(names)}.")


def _values(path: Path, kind: str, name: str, value: Any) -> tuple[Value, ...] | Range:
    if isinstance(value, dict):
        return _range(path, kind, name, value)
    if not isinstance(value, list):
        raise ConfigError(
            f"{path}: {name} is {value!r}; [vary] takes lists.", hint=f"Did you mean [{value!r}]?"
        )
    if not value:
        raise ConfigError(f"{path}: the list of {name} is empty.")
    for item in value:
        if not isinstance(item, str | int | float | bool):
            raise ConfigError(f"{path}: {name} lists {item!r}; text, numbers, true and false vary.")
    if len(set(map(repr, value))) < len(value):
        raise ConfigError(f"{path}: {name} lists a value twice.")
    return tuple(value)


def _range(path: Path, kind: str, name: str, value: Mapping[str, Any]) -> Range:
    for key in value:
        _known(path, key, _RANGE_KEYS, "a range has")
    if kind != "random":
        raise ConfigError(
            f'{path}: {name} is a range, which a grid cannot walk; list values, or kind = "random".'
        )
    low, high, log = value.get("low", math.nan), value.get("high", math.nan), value.get("log", False)
    numbers = all(isinstance(end, int | float) and not isinstance(end, bool) for end in (low, high))
    if not numbers or not isinstance(log, bool) or not -math.inf < low < high < math.inf:
        raise ConfigError(f"{path}: {name} needs numbers low < high, and log = true or false.")
    if log and low <= 0:
        raise ConfigError(f"{path}: {name} has low = {low}; a range with log = true begins above 0.")
    return Range(low, high, log)


def _whole(path: Path, content: Mapping[str, Any], name: str, default: int, least: int) -> int:
    value = content.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{path}: {name} is {value!r}; it is a whole number from {least} on.")
    return value


def _require_few(path: Path, found: SweepFile) -> None:
    """Refuse a sweep of more runs than anybody means, before they are listed."""
    count = found.runs
    if found.kind == "grid":
        count = math.prod(len(values) for values in found.vary.values() if not isinstance(values, Range))
    if count > MOST_RUNS:
        raise ConfigError(f"{path} asks for {count:,} runs; at most {MOST_RUNS:,} are made.")


def _try_options(path: Path, number: int, options: Mapping[str, Any]) -> None:
    try:
        TrainOptions(**options)
    except ConfigError as error:
        raise ConfigError(f"{path}, run {number}: {error.message}", hint=error.hint) from error
    except TypeError as error:  # a value of another type than its option's
        raise ConfigError(f"{path}, run {number}: {error}.") from error
