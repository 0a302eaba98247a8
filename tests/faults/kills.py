"""SIGKILL at a random moment: what was acknowledged stays, the same command ends with the undisturbed bytes."""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path
from random import Random

from embedcache.files import disk as disk_module

from .child import Before, Child, pause
from .outcome import LostError, Outcome, Row, survived
from .stage import SHARD_TILES, TILES, CountingDisk, Stage, Watch, content, known, litter, require_same


def start_until_first_write(
    stage: Stage, words: list[str | Path], watch: Watch, tweak: Before = lambda: None
) -> Child:
    """Start a command and come back when it is about to change the disk for the first time."""
    ready, tell = os.pipe()

    def before() -> None:
        os.close(ready)
        tweak()
        watch.install()

        def on_step(_: str) -> None:
            if watch.step() == 1:
                os.write(tell, b"!")

        disk_module.set_disk(CountingDisk(on_step))

    child = stage.start(*words, before=before)
    os.close(tell)
    select.select([ready], [], [], 60.0)
    os.close(ready)
    return child


def kill(stage: Stage, words: list[str | Path], rng: Random, longest: float) -> Watch:
    """Run a command, and kill it at a random moment from its first write on."""
    watch = Watch()
    child = start_until_first_write(stage, words, watch)
    pause(rng.uniform(0.0, longest))
    child.send(signal.SIGKILL)
    assert child.wait() in (0, -signal.SIGKILL), f"exit code {child.code}: {child.said[-500:]}"
    return watch


def finish(
    stage: Stage, words: list[str | Path], store: Path, first: Watch, before: set[int], ask: int
) -> Outcome:
    """Run the same command to its end, and hold what it left against what was promised.

    ``before``: tiles that were committed before the killed run; ``ask``: tiles that it had to encode.
    """
    acknowledged = before | first.acknowledged
    kept = set(known(store)) if (store / "zarr.json").exists() else set()
    if acknowledged - kept:
        raise LostError(f"acknowledged tiles {sorted(acknowledged - kept)} are not in the store")
    second = Watch()
    child = stage.run(*words, before=second.install)
    assert child.code == 0, f"the next run ended with {child.code}: {child.said[-800:]}"
    repeated = max(0, first.calls + second.calls - ask)
    assert repeated <= SHARD_TILES, f"{repeated} tiles were encoded twice"
    assert second.calls <= ask - len(first.acknowledged), "an acknowledged tile was encoded again"
    require_same(store, stage.data["expected"], "after the next run")
    assert not litter(store, wrote=second.calls > 0), f"left behind: {litter(store)}"
    return survived(most_tiles_encoded_twice=repeated, n_killed_at_work=int(first.calls < ask))


def prepare(stage: Stage) -> None:
    stage.data["expected"] = content(stage.whole)


def kill_encode(stage: Stage, _: int, rng: Random) -> Outcome:
    store = stage.here / "s.zarr"
    words = stage.encode(store)
    watch = kill(stage, words, rng, 0.3)
    return finish(stage, words, store, watch, set(), TILES)


def kill_widen(stage: Stage, _: int, rng: Random) -> Outcome:
    store = stage.copy(stage.half)
    words = stage.encode(store)
    watch = kill(stage, words, rng, 0.2)
    return finish(stage, words, store, watch, {0, 2, 4}, TILES - 3)


def prepare_views(stage: Stage) -> None:
    child = stage.run(*stage.encode(stage.folder / "whole.zarr", views="flips"))
    assert child.code == 0, child.said
    stage.data["expected"] = content(stage.folder / "whole.zarr")


def kill_views(stage: Stage, _: int, rng: Random) -> Outcome:
    store = stage.copy(stage.half)
    words = stage.encode(store, views="flips")
    watch = kill(stage, words, rng, 0.5)
    return finish(stage, words, store, watch, {0, 2, 4}, 4 * TILES - 3)


ROWS = (
    Row(
        "kill-encode",
        "SIGKILL at a random moment of an encode, from its first write on",
        "acknowledged tiles stay, at most one shard is encoded twice, final bytes as undisturbed",
        kill_encode,
        trials=100,
        prepare=prepare,
        weight=90,
    ),
    Row(
        "kill-widen",
        "SIGKILL while shards are replaced (a selection is widened)",
        "the same; tiles committed before stay as well",
        kill_widen,
        trials=50,
        prepare=prepare,
        weight=50,
    ),
    Row(
        "kill-views",
        "SIGKILL while a half-filled store is given views and these are encoded",
        "the same; the table is the old or the new one",
        kill_views,
        trials=50,
        prepare=prepare_views,
        weight=50,
    ),
)
