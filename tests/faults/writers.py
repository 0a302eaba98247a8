"""Several processes at one store: two writers, parts, a dead lock holder, readers beside a writer."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from pathlib import Path
from random import Random

import numpy as np

from embedcache.errors import CorruptionError
from embedcache.store import EmbeddingStore

from . import encoder
from .child import Child, pause
from .kills import start_until_first_write
from .outcome import Outcome, Row, SilentError, detected, survived
from .stage import SHARD_TILES, TILES, Stage, Watch, content, litter, require_same, stored
from .truth import named

READ_SECONDS = 20.0


def _prepare(stage: Stage) -> None:
    stage.data["expected"] = content(stage.whole)
    stage.data["embeddings"] = stored(stage.whole)


def _two_writers(stage: Stage, _: int, rng: Random) -> Outcome:
    """Two processes encode the same volume into the same store at about the same time."""
    store = stage.copy(stage.half) if rng.random() < 0.5 else stage.here / "s.zarr"
    watches = (Watch(), Watch())
    children = []
    for watch in watches:
        children.append(stage.start(*stage.encode(store), before=watch.install))
        pause(rng.choice((0.0, rng.uniform(0.0, 0.25))))
    for child in children:
        child.wait()
    codes = sorted(child.code or 0 for child in children)
    said = " ".join(child.said[-400:] for child in children)
    assert codes in ([0, 0], [0, 5]), f"exit codes {codes}: {said}"
    refused = [child for child in children if child.code == 5]
    for child in refused:
        other = next(one for one in children if one is not child)
        named(child.said, rf"process {other.pid} on|another process", "Wait until")
    require_same(store, stage.data["expected"], "after two writers")
    assert stage.run(*stage.encode(store)).result["encoder_calls"] == 0
    return detected(n_refused=1) if refused else survived(n_waited_for_its_turn=1)


def _parts(stage: Stage, _: int, rng: Random) -> Outcome:
    """Three parts of one volume at the same time, one of them killed and run again."""
    store = stage.here / "s.zarr"
    words = [stage.encode(store, num_parts="3", part_id=str(part)) for part in range(3)]
    children = [stage.start(*line) for line in words]
    unlucky = rng.randrange(3)
    pause(rng.uniform(0.05, 0.5))
    children[unlucky].send(signal.SIGKILL)
    for child in children:
        child.wait()
        assert child.code in (0, -9), f"a part ended with {child.code}: {child.said[-500:]}"
    assert all(child.code == 0 for at, child in enumerate(children) if at != unlucky)
    again = stage.run(*words[unlucky])
    assert again.code == 0, again.said[-500:]
    require_same(store, stage.data["expected"], "after three parts")
    assert not litter(store, wrote=again.result["encoder_calls"] > 0), litter(store)
    return survived()


def _dead_holder(stage: Stage, _: int, rng: Random) -> Outcome:
    """A writer is killed while it holds the lock; the next one does not wait."""
    store = stage.copy(stage.half)
    watch = Watch()
    child = start_until_first_write(stage, stage.encode(store), watch)
    pause(rng.uniform(0.0, 0.1))
    child.send(signal.SIGKILL)
    child.wait()
    undisturbed = _seconds(stage, stage.copy(stage.half, "quiet.zarr"))
    taken = _seconds(stage, store)
    require_same(store, stage.data["expected"], "after a dead holder")
    assert taken < undisturbed + 10.0, f"{taken:.1f} s where {undisturbed:.1f} s is usual"
    return survived(seconds_more_than_undisturbed=max(0.0, taken - undisturbed))


def _seconds(stage: Stage, store: Path) -> float:
    begin = time.monotonic()
    child = stage.run(*stage.encode(store))
    assert child.code == 0, child.said[-500:]
    return time.monotonic() - begin


def _reading_beside(replace: bool) -> object:
    def trial(stage: Stage, _: int, rng: Random) -> Outcome:
        store = stage.copy(stage.half)
        encoding = stage.start(*stage.encode(store), before=lambda: _slow(0.02 if replace else 0.05))
        report = stage.here / "report"
        reading = Child(_fork_reader(stage, store, report, refresh=rng.random() < 0.5), stage.log())
        assert encoding.wait() == 0, encoding.said[-500:]
        reading.wait()
        said = json.loads(report.read_text())
        if said["wrong"]:
            raise SilentError(f"tiles {said['wrong'][:5]} were read wrong beside a writer")
        assert not said["corrupt"], f"called corrupt beside a writer: {said['corrupt'][:2]}"
        assert said["reads"] > 0, "nothing was read"
        require_same(store, stage.data["expected"], "after the encode")
        return survived(n_reads=said["reads"], n_torn_reads=0)

    return trial


def _slow(seconds: float) -> None:
    """Take longer over each image, so that there is time to read between commits."""
    encoder.on_call = lambda images: time.sleep(seconds * images)


def _fork_reader(stage: Stage, store: Path, report: Path, *, refresh: bool) -> int:
    """A process that reads committed tiles over and over until all of them are there."""
    expected = stage.data["embeddings"]
    log = stage.log()
    log.parent.mkdir(parents=True, exist_ok=True)
    for suffix in (".out", ".err"):
        log.with_suffix(suffix).write_bytes(b"")
    pid = os.fork()
    if pid:
        return pid
    wrong: list[int] = []
    corrupt: list[str] = []
    reads = 0
    try:
        opened = EmbeddingStore.open(store)
        reader = opened.reader()
        end = time.monotonic() + READ_SECONDS
        complete = False
        while not complete and time.monotonic() < end:
            if refresh:
                opened.refresh()
            complete = len(np.flatnonzero(EmbeddingStore.open(store).committed)) == TILES
            for number in map(int, np.flatnonzero(opened.committed)):
                reads += 1
                try:
                    data = reader.read([number]).numpy().tobytes()
                except CorruptionError as error:
                    corrupt.append(f"tile {number}: {error.message}")
                    continue
                if hashlib.sha256(data).hexdigest() != expected[number]:
                    wrong.append(number)
    except BaseException as error:
        corrupt.append(repr(error))
    finally:
        report.write_text(json.dumps({"reads": reads, "wrong": wrong, "corrupt": corrupt}))
        os._exit(0)


def _status_beside(stage: Stage, _: int, rng: Random) -> Outcome:
    """``status`` and ``verify`` while shards are replaced."""
    store = stage.copy(stage.half)
    encoding = stage.start(*stage.encode(store), before=lambda: _slow(0.05))
    looks = 0
    while encoding.running:
        child = stage.run(rng.choice(("status", "verify")), store, "--json")
        assert child.code == 0, f"exit code {child.code} beside a writer: {child.said[-500:]}"
        looks += 1
    assert encoding.wait() == 0, encoding.said[-500:]
    require_same(store, stage.data["expected"], "after the encode")
    return survived(n_looks=looks)


ROWS = (
    Row(
        "two-writers",
        "two processes encode into one store, started together or a moment apart",
        "one works; the other waits its turn or exits 5 naming the holder; nothing lost",
        _two_writers,
        trials=50,
        prepare=_prepare,
        weight=40,
    ),
    Row(
        "parts",
        "three parts at once, one of them killed and run again",
        "the bytes of one undisturbed run",
        _parts,
        trials=10,
        prepare=_prepare,
        weight=20,
    ),
    Row(
        "dead-holder",
        "the lock's holder killed",
        "the next writer begins at once",
        _dead_holder,
        trials=15,
        prepare=_prepare,
        weight=12,
    ),
    Row(
        "read-beside-encode",
        f"a reader in a loop while {SHARD_TILES}-tile shards are replaced and added",
        "0 torn reads, nothing called corrupt",
        _reading_beside(replace=False),  # type: ignore[arg-type]
        trials=15,
        prepare=_prepare,
        weight=20,
    ),
    Row(
        "look-beside-encode",
        "`status` and `verify` in a loop meanwhile",
        "exit 0 each time",
        _status_beside,
        trials=10,
        prepare=_prepare,
        weight=15,
    ),
)
