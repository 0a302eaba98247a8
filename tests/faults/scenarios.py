"""What a step-by-step fault is injected into: a command, the store it starts from, and what it has to end with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from embedcache.files import disk as disk_module

from .outcome import LostError
from .stage import SMALL, SMALL_HALF, CountingDisk, Stage, Watch, content, known, litter, require_same

Words = list[str | Path]


@dataclass(frozen=True)
class Scenario:
    """One command.

    Parameters
    ----------
    name : str
        In words.
    begin : callable
        ``(stage) -> store``: what is there before.
    words : callable
        ``(stage, store) -> command line``.
    expected : callable
        ``(stage) -> content``: what an undisturbed run ends with.
    kept : frozenset of int
        Tiles that are committed before.
    """

    name: str
    begin: Callable[[Stage], Path]
    words: Callable[[Stage, Path], Words]
    expected: Callable[[Stage], dict[str, str]]
    kept: frozenset[int] = frozenset()


def _encode_small(stage: Stage, store: Path) -> Words:
    return stage.encode(store, volume=stage.small_volume)


def _whole_small(stage: Stage) -> dict[str, str]:
    return content(stage.base / SMALL)


CREATE = Scenario(
    "create and encode", lambda stage: stage.here / "s.zarr", _encode_small, _whole_small
)
WIDEN = Scenario(
    "replace a shard",
    lambda stage: stage.copy(stage.base / SMALL_HALF),
    _encode_small,
    _whole_small,
    frozenset({0}),
)


def count_steps(stage: Stage, scenario: Scenario) -> list[str]:
    """The names of all steps of the undisturbed command, in order."""
    stage.fresh()
    names = stage.here / "steps"
    names.touch()

    def before() -> None:
        stream = names.open("a", buffering=1)
        disk_module.set_disk(CountingDisk(lambda name: print(name, file=stream)))

    store = scenario.begin(stage)
    child = stage.run(*scenario.words(stage, store), before=before)
    assert child.code == 0, f"undisturbed, it ends with {child.code}: {child.said[-800:]}"
    require_same(store, scenario.expected(stage), "undisturbed")
    return names.read_text().split()


def check_afterwards(stage: Stage, scenario: Scenario, store: Path, watch: Watch, words: str) -> None:
    """What was acknowledged is there and reads right, and the same command ends as if nothing had happened."""
    acknowledged = scenario.kept | watch.acknowledged
    if acknowledged:
        missing = acknowledged - set(known(store))
        if missing:
            raise LostError(f"{words}: acknowledged tiles {sorted(missing)} are gone")
    again = stage.run(*scenario.words(stage, store))
    assert again.code == 0, f"{words}: the next run ended with {again.code}: {again.said[-800:]}"
    require_same(store, scenario.expected(stage), f"{words}, next run")
    assert not litter(store), f"{words}: left behind: {litter(store)}"
