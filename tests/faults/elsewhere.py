"""Stores of other times and places: older and newer formats, moved, copied, half copied, and clocks that jump."""

from __future__ import annotations

import json
import random
import shutil
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from embedcache.store import EmbeddingStore
from embedcache.store.journal.lines import encode_line

from . import encoder
from .attacks import attributes, rewrite
from .child import call
from .identity import every_byte
from .outcome import LostError, Outcome, Row, SilentError, detected, survived
from .stage import CHUNK_BYTES, Stage, content, known, require_same, stored
from .truth import has_command, named, read, verdict

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"


# ---- formats


def _older(stage: Stage, archive: Path, _: Random) -> Outcome:
    """A store that an older version wrote: opened, verified, extended, read as its bytes say."""
    with tarfile.open(archive) as packed:
        packed.extractall(stage.here, filter="data")
    store = next(path.parent for path in stage.here.rglob("zarr.json") if (path.parent / "journal").is_dir())
    opened = EmbeddingStore.open(store)
    numbers = np.flatnonzero(opened.committed).tolist()
    assert numbers, "nothing is committed"
    for number in numbers:
        if opened.spec.store_dtype != "float16":
            continue
        if opened.reader().read_half([number]).numpy().tobytes() != _by_layout(
            store, opened.shard_tiles, number
        ):
            raise SilentError(f"tile {number} is not what its bytes say")
    before = stored(store)
    for words in (
        ["status", store, "--json"],
        *([["verify", store, "--json"]] if has_command("verify") else []),
    ):
        child = stage.run(*words)
        assert child.code == 0, f"{words[0]}: exit code {child.code}: {child.said[-500:]}"
    missing = [tile for tile in range(len(opened)) if opened.table[tile, 0] >= 0 and tile not in numbers]
    if missing:
        call(lambda: _extend(store, missing[0], numbers[0]), stage.log())
    after = stored(store)
    if {tile: after.get(tile) for tile in before} != before:
        raise LostError("embeddings changed when the store was extended")
    assert len(after) == len(before) + bool(missing)
    return survived()


def _by_layout(store: Path, shard_tiles: int, number: int) -> bytes:
    """An embedding's bytes by docs/format.md alone: index at the end, offset and length of the slot."""
    shard, slot = divmod(number, shard_tiles)
    data = (store / "image_embeddings" / "c" / str(shard) / "0" / "0" / "0").read_bytes()
    index = np.frombuffer(data[-4 - 16 * shard_tiles : -4], "<u8").reshape(shard_tiles, 2)
    offset, length = map(int, index[slot])
    assert length == CHUNK_BYTES
    return data[offset : offset + length - 4]


def _extend(store: Path, tile: int, like: int) -> None:
    from embedcache.store.shards.quantise import Quantised, quantise

    opened = EmbeddingStore.open(store)
    embedding: Any = opened.reader().read([like])
    if opened.spec.store_dtype == "int8":
        values, scales = quantise(embedding)
        given: Any = Quantised(values[0].numpy(), scales[0].numpy())
    else:
        given = embedding[0].half().numpy()
    with opened.writer() as writer:
        writer.commit_shard(
            tile // opened.shard_tiles, embeddings={tile: given}, input_digests={tile: "cd" * 32}
        )


def _format_in_spec(store: Path, _: Path) -> None:
    path = store / "zarr.json"
    group = json.loads(path.read_text())
    group["attributes"]["embedcache"]["spec"]["format"] = 2
    path.write_text(json.dumps(group))


def _unknown_kind(store: Path, _: Path) -> None:
    with (store / "journal" / "main.jsonl").open("a") as stream:
        stream.write(encode_line({"kind": "hologram", "seq": 10**6}) + "\n")


def _unknown_in_created(store: Path, _: Path) -> None:
    def change(record: dict[str, Any]) -> dict[str, Any]:
        return {**record, "kind": "table of 2030"} if record["kind"] == "table" else record

    rewrite(store / "journal" / "created.jsonl", change)


NEWER: dict[str, Callable[[Path, Path], None]] = {
    "format 2": attributes(format=2),
    "format 2 in the spec alone": _format_in_spec,
    "a record of an unknown kind": _unknown_kind,
    "a first record of an unknown kind": _unknown_in_created,
}


def _newer(stage: Stage, name: str, _: Random) -> Outcome:
    """What a newer version wrote is refused with that word, by everything, and not changed."""
    store = stage.copy(stage.half)
    NEWER[name](store, stage.here)
    before = every_byte(store)
    for words in (["status", store], stage.encode(store)):
        child = stage.run(*words)
        if child.code == 0:
            raise SilentError(f"{name}: {words[0]} made a guess")
        assert child.code == 3, f"{name}, {words[0]}: exit code {child.code}: {child.said[-500:]}"
        named(child.said, "pip install --upgrade embedcache")
    after = {path: value for path, value in every_byte(store).items() if not path.endswith(".lock")}
    assert after == {path: value for path, value in before.items() if not path.endswith(".lock")}, (
        "it was changed"
    )
    return detected()


# ---- places


def _prepare(stage: Stage) -> None:
    stage.data["expected"] = content(stage.whole)


def _moved(stage: Stage, _: int, rng: Random) -> Outcome:
    """A store in another place, under another name, with other times: the same store."""
    store = stage.copy(stage.whole, f"elsewhere-{rng.randrange(100)}.zarr")
    for path in store.rglob("*"):
        path.touch()
    expected = read(stage.whole)
    if read(store) != expected:
        raise SilentError("a moved store says something else")
    child = stage.run(*stage.encode(store, check_pixels="all"))
    assert child.code == 0, child.said[-500:]
    assert child.result["encoder_calls"] == 0
    require_same(store, stage.data["expected"])
    return survived()


def _half_copied(stage: Stage, _: int, rng: Random) -> Outcome:
    """A copy that was stopped: some files are there, the last of them in part."""
    store, target = stage.whole, stage.here / "copy.zarr"
    expected = read(store)
    files = sorted(path for path in store.rglob("*") if path.is_file())
    rng.shuffle(files)
    for path in files[: rng.randrange(len(files))]:
        _copy_file(path, target / path.relative_to(store))
    last = rng.choice(list(target.rglob("*.*")) or [None])  # type: ignore[list-item]
    if last is not None and last.is_file() and last.stat().st_size:
        data = last.read_bytes()
        last.write_bytes(data[: rng.randrange(len(data))])
    return verdict(stage, target, expected, "half copied")


def _copied_meanwhile(stage: Stage, _: int, rng: Random) -> Outcome:
    """A store is copied file by file while it is being written, in an order that nobody chose."""
    store, target = stage.copy(stage.half), stage.here / "copy.zarr"
    expected = read(stage.whole)
    child = stage.start(*stage.encode(store), before=_slow)
    time.sleep(rng.uniform(0.05, 0.3))
    files = [path for path in store.rglob("*") if path.is_file()]
    rng.shuffle(files)
    for path in files:
        _copy_file(path, target / path.relative_to(store))
        time.sleep(rng.uniform(0.0, 0.01))
    assert child.wait() == 0, child.said[-500:]
    found = read(target)
    for name, value in found.facts.items():
        if name.startswith("tile ") and value != expected.facts[name]:
            raise SilentError(f"{name} of the copy is another one")
    verified = stage.run("verify", target, "--json") if has_command("verify") else None
    if found.errors or (verified is not None and verified.code):
        return detected()
    again = stage.run(*stage.encode(target))
    assert again.code == 0, f"the copy cannot be finished: {again.said[-500:]}"
    require_same(target, stage.data["expected"], "the finished copy")
    return survived()


def _slow() -> None:
    encoder.on_call = lambda images: time.sleep(0.03 * images)


def _copy_file(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copy(source, target)
    except FileNotFoundError:  # a temporary name that is gone already
        return


# ---- clocks


def _clock(stage: Stage, case: str, rng: Random) -> Outcome:
    """The wall clock jumps at every look, backwards or forwards by years, in two runs of one store."""
    seed = rng.randrange(2**32)

    def before() -> None:
        dice = random.Random(seed)
        real = time.time
        jumps = {
            "back": lambda: real() - dice.uniform(0, 3e8),
            "forward": lambda: real() + dice.uniform(0, 3e8),
            "still": lambda: 1e9,
        }
        time.time = jumps[case]
        time.time_ns = lambda: int(time.time() * 1e9)

    store = stage.here / "s.zarr"
    for words in (stage.encode(store, z_range="0:3"), stage.encode(store), stage.encode(store)):
        child = stage.run(*words, before=before)
        assert child.code == 0, child.said[-500:]
        for name, value in child.result["seconds_by_stage"].items():
            assert 0 <= value < 60, f"{name} took {value} s"
    require_same(store, stage.data["expected"], "under a clock that jumps")
    if known(store) != known(stage.whole):
        raise SilentError("another store under a clock that jumps")
    return survived()


def _archives(_: Stage) -> Sequence[Path]:
    return sorted(FIXTURES.glob("store-format-*.tar.xz"))


ROWS = (
    Row(
        "older-formats",
        "a store of each form that was ever written (fixtures)",
        "opened, verified, read byte for byte, extended",
        _older,
        cases=_archives,
        weight=2,
    ),
    Row(
        "newer-formats",
        "a newer format number, a record of an unknown kind",
        "exit 3 telling to upgrade; nothing guessed, nothing changed",
        _newer,
        cases=lambda _: list(NEWER),
        weight=2,
    ),
    Row(
        "moved",
        "a store moved, renamed, all its file times changed",
        "the same store: nothing is encoded",
        _moved,
        trials=10,
        prepare=_prepare,
        weight=4,
    ),
    Row(
        "half-copied",
        "a copy of a store that was stopped half-way",
        "found when opened, read or verified; never a wrong embedding",
        _half_copied,
        trials=60,
        weight=8,
    ),
    Row(
        "copied-meanwhile",
        "a store copied file by file while it is being written",
        "every embedding that the copy gives is right; it is found to be broken, or can be finished",
        _copied_meanwhile,
        trials=12,
        prepare=_prepare,
        weight=20,
    ),
    Row(
        "clock",
        "a wall clock that jumps back, jumps forward, or stands still",
        "no decision depends on it: the bytes of an undisturbed run",
        _clock,
        cases=lambda _: ["back", "forward", "still"] * 4,
        prepare=_prepare,
        weight=8,
    ),
)
