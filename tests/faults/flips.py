"""Bits flipped, files cut, emptied, removed and swapped: found when opened, read or verified, or harmless."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random

from .outcome import Outcome, Row
from .stage import CHUNK_BYTES, INT8, Stage
from .truth import read, verdict

FLIPS = 25
"""Flips of one trial, which copies the store once and mends it after each."""


def shard_files(store: Path) -> list[Path]:
    """Files of embeddings."""
    return sorted(path for path in (store / "image_embeddings" / "c").rglob("*") if path.is_file())


def other_files(store: Path) -> list[Path]:
    """All files but those of embeddings and locks."""
    shards = set(shard_files(store))
    return sorted(p for p in store.rglob("*") if p.is_file() and p.suffix != ".lock" and p not in shards)


@contextmanager
def flipped(path: Path, offset: int, bit: int) -> Iterator[None]:
    """One bit of a file is another for the block."""
    with path.open("r+b") as stream:
        stream.seek(offset)
        old = stream.read(1)
        stream.seek(offset)
        stream.write(bytes([old[0] ^ (1 << bit)]))
        stream.flush()
        yield
        stream.seek(offset)
        stream.write(old)


def _flip_trial(
    store_of: Callable[[Stage], Path], files: Callable[[Path], list[Path]], *, verify_share: float
) -> Callable[[Stage, int, Random], Outcome]:
    def trial(stage: Stage, _: int, rng: Random) -> Outcome:
        store = stage.copy(store_of(stage))
        total, expected = Outcome(), read(store)
        assert not expected.errors, expected.errors
        candidates = files(store)
        for _ in range(FLIPS):
            path = rng.choice(candidates)
            offset, bit = rng.randrange(path.stat().st_size), rng.randrange(8)
            words = f"bit {bit} of byte {offset} of {path.relative_to(store)}"
            with flipped(path, offset, bit):
                try:
                    total.add(verdict(stage, store, expected, words, verify=rng.random() < verify_share))
                except AssertionError as error:
                    total.problem("silent" if type(error).__name__ == "SilentError" else "failed", str(error))
        return total

    return trial


def _int8(stage: Stage) -> Path:
    return stage.base / INT8


def scales_and_shards(store: Path) -> list[Path]:
    """Files of embeddings and of their scales."""
    return [*shard_files(store), *(path for path in (store / "scales" / "c").rglob("*") if path.is_file())]


# ---- files cut, emptied, removed, replaced


def _cut(path: Path, rng: Random) -> None:
    os.truncate(path, rng.randrange(path.stat().st_size))


def _grow(path: Path, rng: Random) -> None:
    with path.open("ab") as stream:
        stream.write(rng.randbytes(rng.choice((1, 4, 16, 4096))))


def _empty(path: Path, _: Random) -> None:
    os.truncate(path, 0)


def _remove(path: Path, _: Random) -> None:
    path.unlink()


def _zeros(path: Path, rng: Random) -> None:
    """As a file system leaves a file whose blocks never came: the same length, zeros from somewhere on."""
    size = path.stat().st_size
    start = rng.randrange(size)
    os.truncate(path, start)
    os.truncate(path, size)


DAMAGES = {"cut": _cut, "longer": _grow, "empty": _empty, "removed": _remove, "zeros": _zeros}


def _damage_cases(stage: Stage) -> Sequence[tuple[str, str]]:
    files = [*shard_files(stage.whole), *other_files(stage.whole)]
    return [(str(path.relative_to(stage.whole)), damage) for path in files for damage in DAMAGES]


def _damage_trial(stage: Stage, case: tuple[str, str], rng: Random) -> Outcome:
    store = stage.copy(stage.whole)
    expected = read(store)
    name, damage = case
    total = Outcome()
    backup = stage.here / "backup"
    shutil.copy(store / name, backup)
    for _ in range(4 if damage in ("cut", "zeros", "longer") else 1):
        DAMAGES[damage](store / name, rng)
        total.add(verdict(stage, store, expected, f"{name} {damage}"))
        shutil.copy(backup, store / name)
    return total


# ---- right bytes at the wrong place


def _swap_chunks(stage: Stage, _: int, rng: Random) -> Outcome:
    """Two chunks of a shard change places, with their checksums: each is whole, neither is where it belongs."""
    store = stage.copy(stage.whole)
    expected = read(store)
    path = rng.choice(shard_files(store))
    data = path.read_bytes()
    first, second = data[:CHUNK_BYTES], data[CHUNK_BYTES : 2 * CHUNK_BYTES]
    path.write_bytes(second + first + data[2 * CHUNK_BYTES :])
    return verdict(stage, store, expected, f"chunks of {path.relative_to(store)} swapped")


def _swap_shards(stage: Stage, _: int, rng: Random) -> Outcome:
    """Two shard files of one store change places."""
    store = stage.copy(stage.whole)
    expected = read(store)
    first, second = rng.sample(shard_files(store), 2)
    _exchange(first, second)
    return verdict(stage, store, expected, "two shard files swapped")


def _swap_stores(stage: Stage, _: int, rng: Random) -> Outcome:
    """A file of one store changes places with that of another, of the same shape but another volume."""
    store, other = stage.copy(stage.whole), stage.copy(stage.data["other"], "other.zarr")
    expected = read(store)
    names = [str(path.relative_to(store)) for path in (*shard_files(store), *other_files(store))]
    name = rng.choice([name for name in names if (store / name).read_bytes() != (other / name).read_bytes()])
    _exchange(store / name, other / name)
    return verdict(stage, store, expected, f"{name} swapped with another store's")


def _prepare_other(stage: Stage) -> None:
    stage.data["other"] = stage.folder / "other.zarr"
    child = stage.run(*stage.encode(stage.data["other"], volume=stage.base / "other.npy"))
    assert child.code == 0, child.said


def _exchange(first: Path, second: Path) -> None:
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)


FOUND_OR_HARMLESS = "found when opened, read or verified, or every embedding and its meaning exactly right"

ROWS = (
    Row(
        "flip-shards",
        "one bit flipped anywhere in the files of embeddings",
        FOUND_OR_HARMLESS,
        _flip_trial(lambda stage: stage.whole, shard_files, verify_share=0.04),
        trials=40,
        weight=60,
    ),
    Row(
        "flip-int8",
        "one bit flipped anywhere in an int8 store's embeddings and scales",
        FOUND_OR_HARMLESS,
        _flip_trial(_int8, scales_and_shards, verify_share=0.04),
        trials=8,
        weight=12,
    ),
    Row(
        "flip-others",
        "one bit flipped in any other file: journal, metadata, tile table, decoder",
        FOUND_OR_HARMLESS,
        _flip_trial(lambda stage: stage.whole, other_files, verify_share=1.0),
        trials=14,
        weight=60,
    ),
    Row(
        "damaged-files",
        "each file of a store cut, made longer, emptied, removed, or zeros from somewhere on",
        FOUND_OR_HARMLESS,
        _damage_trial,
        cases=_damage_cases,
        weight=30,
    ),
    Row(
        "swapped-chunks",
        "two embeddings of a shard swapped, with their checksums",
        "found: what is recorded belongs to a place",
        _swap_chunks,
        trials=20,
        weight=3,
    ),
    Row(
        "swapped-shards",
        "two shard files of a store swapped",
        "found",
        _swap_shards,
        trials=20,
        weight=3,
    ),
    Row(
        "swapped-stores",
        "a file swapped with that of a store of another volume",
        "found",
        _swap_stores,
        trials=40,
        prepare=_prepare_other,
        weight=8,
    ),
)
