"""SIGINT and SIGTERM: what is encoded is committed, the lock is free, the exit code says which; twice: at once."""

from __future__ import annotations

import signal
import time
from random import Random

from embedcache.files import disk as disk_module

from . import encoder
from .child import pause
from .kills import finish, prepare, start_until_first_write
from .outcome import LostError, Outcome, Row, detected
from .stage import TILES, Stage, Watch, known

NUMBERS = (signal.SIGINT, signal.SIGTERM)


def _once(stage: Stage, number: signal.Signals, rng: Random) -> Outcome:
    store = stage.here / "s.zarr"
    words = stage.encode(store)
    watch = Watch()
    child = start_until_first_write(stage, words, watch)
    pause(rng.uniform(0.0, 0.3))
    begin = time.monotonic()
    child.send(number)
    code = child.wait()
    seconds = time.monotonic() - begin
    assert code in (0, 128 + number), f"exit code {code}: {child.said[-800:]}"
    if code and watch.calls > len(watch.acknowledged):
        raise LostError(f"{watch.calls} tiles were encoded, {len(watch.acknowledged)} committed")
    if code and (store / "zarr.json").exists() and set(known(store)) != watch.acknowledged:
        raise LostError("what was committed is not what is there")
    finish(stage, words, store, watch, set(), TILES)
    return detected(seconds_to_the_end=seconds, n_stopped_at_work=int(code != 0))


def _twice(stage: Stage, number: signal.Signals, rng: Random) -> Outcome:
    """The second signal does not wait for the tile that is being encoded."""
    store = stage.here / "s.zarr"
    words = stage.encode(store)
    watch = Watch()

    def before() -> None:
        watch.install()
        count = encoder.on_call

        def on_call(images: int) -> None:
            count(images)
            end = time.monotonic() + 20.0
            while time.monotonic() < end:  # a tile that takes long
                time.sleep(0.01)

        encoder.on_call = on_call
        disk_module.set_disk(disk_module.Disk())

    child = stage.start(*words, before=before)
    end = time.monotonic() + 30.0
    while watch.calls == 0 and time.monotonic() < end:
        pause(0.01)
    child.send(number)
    pause(rng.uniform(0.05, 0.2))
    begin = time.monotonic()
    child.send(rng.choice(NUMBERS))
    code = child.wait()
    seconds = time.monotonic() - begin
    assert code in (130, 143), f"exit code {code}: {child.said[-800:]}"
    assert seconds < 10.0, f"{seconds:.1f} s until the second signal was obeyed"
    watch.forget_calls()
    finish(stage, words, store, watch, set(), TILES)
    return detected(seconds_to_the_end=seconds)


ROWS = (
    Row(
        "signal",
        "SIGINT or SIGTERM at a random moment",
        "130 or 143, every encoded tile committed, the lock free, no litter",
        _once,
        cases=lambda _: [*NUMBERS] * 10,
        prepare=prepare,
        weight=25,
    ),
    Row(
        "signal-twice",
        "a second signal while a tile takes long",
        "ends at once",
        _twice,
        cases=lambda _: [*NUMBERS] * 3,
        prepare=prepare,
        weight=8,
    ),
)
