"""The reader: only recorded bytes come out; missing, flipped, swapped and stale are all told apart."""

from __future__ import annotations

import gc
import mmap
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from other_disks import refusing_lines_with, refusing_rename_to, watched
from store_samples import DIGEST, commit, embedding, make_store, quantised, spec, stored

from embedcache.errors import ConfigError, CorruptionError, InputError, MissingTilesError, StorageError
from embedcache.store import EmbeddingReader, EmbeddingStore
from embedcache.store.layout import EMBEDDINGS, SCALES, scales_path, shard_path
from embedcache.store.reading import mapped, opened
from embedcache.store.reading.checks import CHECKS, Check
from embedcache.store.reading.mapped import MappedShard
from embedcache.store.reading.order import Order
from embedcache.store.shards.quantise import dequantise
from embedcache.store.shards.scales import read_scales, scales_bytes
from embedcache.store.shards.shard import INT8, ShardFile

INT8_SPEC = spec(store_dtype="int8")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    made = make_store(tmp_path_factory.mktemp("s"), n=7)
    commit(made, 0, 1)
    commit(made, 2)
    commit(made, 4, failed={5: "cosmic ray"})
    commit(made, skipped={6: "empty"})
    return made


@given(indices=st.lists(st.sampled_from([0, 1, 2, 4]), max_size=6))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_batch_is_read_exactly_in_the_order_asked_for(store: EmbeddingStore, indices: list[int]) -> None:
    batch = store.reader().read(indices)
    assert batch.shape == (len(indices), 256, 64, 64)
    assert batch.dtype == torch.float32
    for row, tile in zip(batch, indices, strict=True):
        assert np.array_equal(row.numpy(), embedding(tile).astype(np.float32))


def test_reading_into_a_given_tensor_fills_it(store: EmbeddingStore) -> None:
    for dtype in (torch.float32, torch.float16):
        out = torch.full((2, 256, 64, 64), torch.nan, dtype=dtype)
        read = store.reader().read if dtype == torch.float32 else store.reader().read_half
        assert read([4, 1], out) is out
        assert np.array_equal(out[0].half().numpy(), embedding(4))


@pytest.mark.parametrize(
    "out", [torch.empty(1, 256, 64, 64), torch.empty(2, 256, 64, 64, dtype=torch.float64), torch.empty(2)]
)
def test_a_tensor_that_does_not_fit_is_refused(store: EmbeddingStore, out: torch.Tensor) -> None:
    with pytest.raises(InputError, match="expected"):
        store.reader().read([0, 1], out)


@pytest.mark.parametrize(("tile", "why"), [(3, "not encoded"), (5, "cosmic ray"), (6, "skipped")])
def test_a_missing_tile_is_an_error_that_names_tile_place_and_reason(
    store: EmbeddingStore, tile: int, why: str
) -> None:
    with pytest.raises(MissingTilesError, match=rf"tile {tile} \(z={tile}, rows 0:32, columns 0:32\).*{why}"):
        store.reader().read([0, tile])


@pytest.mark.parametrize("tile", [-1, 7, 10**9])
def test_a_number_that_is_no_tile_is_refused(store: EmbeddingStore, tile: int) -> None:
    with pytest.raises(InputError, match=str(tile)):
        store[tile]


def test_a_number_without_a_tile_is_no_missing_embedding(tmp_path: Path) -> None:
    table = np.full((4, 5), -1, np.int64)
    table[[0, 2]] = [[0, 0, 0, 32, 32], [1, 0, 0, 32, 32]]
    store = make_store(tmp_path, table=table)
    commit(store, 2)
    with pytest.raises(InputError, match=r"number 1 has no tile.*\n.*np\.flatnonzero\(store\.committed\)"):
        store[1]
    with pytest.raises(MissingTilesError):
        store[0]
    for number in (-1, 4):
        with pytest.raises(IndexError):
            store[number]


def test_iterating_gives_the_embeddings_that_are_there(store: EmbeddingStore) -> None:
    there = np.flatnonzero(store.committed)
    found = list(store)
    assert 0 < len(found) == len(there) < len(store)
    assert all(torch.equal(one, store[number]) for number, one in zip(there, found, strict=True))


def test_a_flipped_bit_is_found_and_the_other_tiles_still_read(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    commit(store, 0, 1)
    path = shard_path(tmp_path, 0)
    data = bytearray(path.read_bytes())
    data[12345] ^= 16
    path.write_bytes(data)
    with pytest.raises(CorruptionError, match=r"tile 0 \(z=0.*checksum"):
        store[0]
    assert np.array_equal(store[1].numpy(), embedding(1).astype(np.float32))


def test_swapped_shards_are_found_although_each_is_whole(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    commit(store, 0, 1)
    commit(store, 2, 3)
    first, second = shard_path(tmp_path, 0), shard_path(tmp_path, 1)
    shutil.move(first, tmp_path / "aside")
    shutil.move(second, first)
    shutil.move(tmp_path / "aside", second)
    for tile in range(4):
        with pytest.raises(CorruptionError, match=f"tile {tile}.*recorded"):
            store[tile]


@pytest.mark.parametrize("harm", ["missing", "empty", "cut", "folder"])
def test_a_shard_that_is_gone_or_cut_is_corruption_not_fill(tmp_path: Path, harm: str) -> None:
    store = make_store(tmp_path)
    commit(store, 0, 1)
    path = shard_path(tmp_path, 0)
    data = path.read_bytes()
    path.unlink()
    if harm == "folder":
        path.mkdir()
    elif harm != "missing":
        path.write_bytes(b"" if harm == "empty" else data[:-1])
    with pytest.raises(CorruptionError, match="tile 0"):
        store[0]


def test_a_refusal_of_the_system_is_not_called_corruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path)
    commit(store, 0)

    def too_many(*_: object) -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", too_many)
        with pytest.raises(StorageError, match="Too many open files") as caught:
            store[0]
    assert "ulimit -n" in str(caught.value)
    assert np.array_equal(store[0].half().numpy(), embedding(0))


def test_the_hint_names_the_command_that_mends_it(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    commit(store, 0)
    shard_path(tmp_path, 0).unlink()
    with pytest.raises(CorruptionError) as caught:
        store[0]
    assert f"`embedcache repair {tmp_path}`" in str(caught.value)


@pytest.mark.parametrize("kind", ["link", "pipe", "linked folder"])
def test_a_store_from_a_stranger_leads_nowhere_else(tmp_path: Path, kind: str) -> None:
    store = make_store(tmp_path / "s")
    commit(store, 0)
    path = shard_path(store.path, 0)
    if kind == "linked folder":
        path.parent.rename(tmp_path / "outside")
        path.parent.symlink_to(tmp_path / "outside")
    else:
        path.rename(tmp_path / "outside")
        os.mkfifo(path) if kind == "pipe" else path.symlink_to(tmp_path / "outside")
    with pytest.raises(CorruptionError, match="tile 0"):
        store[0]


def test_a_reader_opened_before_a_shard_is_replaced_goes_on(tmp_path: Path) -> None:
    commit(make_store(tmp_path), 0)
    older = EmbeddingStore.open(tmp_path)
    fresh, warm = older.reader(), older.reader()
    warm.read([0])
    commit(EmbeddingStore.open(tmp_path), 1)
    for reader in (fresh, warm):
        assert np.array_equal(reader.read_half([0])[0].numpy(), embedding(0))
    commit(EmbeddingStore.open(tmp_path), 0, seed=70)
    assert np.array_equal(older.reader().read_half([0])[0].numpy(), embedding(70))
    with pytest.raises(MissingTilesError):
        fresh.read([1])
    older.refresh()
    assert np.array_equal(warm.read_half([1])[0].numpy(), embedding(1))
    assert np.array_equal(warm.read_half([0])[0].numpy(), embedding(70))


@pytest.mark.parametrize("form", ["float16", "int8"])
@pytest.mark.parametrize("renamed", [False, True])
def test_between_intent_and_commit_every_committed_tile_reads(
    tmp_path: Path, form: str, renamed: bool
) -> None:
    commit(make_store(tmp_path, spec=spec(store_dtype=form)), 0)
    older = EmbeddingStore.open(tmp_path)
    writing = EmbeddingStore.open(tmp_path)
    folder = EMBEDDINGS if form == "float16" else SCALES
    stop = refusing_lines_with('"kind":"shard"') if renamed else refusing_rename_to(folder)
    tiles = {0: stored(writing, 90), 1: stored(writing, 1)}
    with writing.writer() as writer, watched(stop), pytest.raises(StorageError):
        writer.commit_shard(0, embeddings=tiles, input_digests=dict.fromkeys(tiles, DIGEST))
    between = EmbeddingStore.open(tmp_path)
    assert list(between.state.intents) == [0]
    assert between.committed.tolist() == [True, False, False, False, False]
    for store in (between, older):
        assert torch.equal(store[0], floats(store, 90 if renamed else 0))
    with between.writer():
        pass
    assert not between.state.intents
    assert between.committed[1] == renamed


def test_a_reader_waits_for_a_writer_between_scales_and_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedcache.store.reader.PATIENCE_SECONDS", 60.0)  # however slow the machine is
    store = make_store(tmp_path, spec=INT8_SPEC)
    commit(store, 0)
    reading = EmbeddingStore.open(tmp_path)
    seen, go_on = threading.Event(), threading.Event()

    def stop_before_the_shard(step: str, arguments: tuple[Any, ...]) -> None:
        if step == "replace" and EMBEDDINGS in arguments[1].parts:
            seen.set()
            assert go_on.wait(60)

    with watched(stop_before_the_shard), ThreadPoolExecutor(2) as pool:
        writing = pool.submit(commit, store, 0, seed=50)
        assert seen.wait(60)
        found = pool.submit(reading.__getitem__, 0)
        time.sleep(0.3)
        assert not found.done()
        go_on.set()
        writing.result()
        assert torch.equal(found.result(), floats(store, 50))


def test_what_a_killed_writer_left_between_scales_and_shard_is_accused_after_a_while(tmp_path: Path) -> None:
    store = make_store(tmp_path, spec=INT8_SPEC)
    commit(store, 0, 1)
    with watched(refusing_rename_to(EMBEDDINGS)), pytest.raises(StorageError):
        commit(store, 0, seed=50)
    reading = EmbeddingStore.open(tmp_path)
    assert torch.equal(reading[1], floats(reading, 1))
    began = time.monotonic()
    with pytest.raises(CorruptionError, match="tile 0"):
        reading[0]
    assert 0.5 < time.monotonic() - began < 60  # not for ever


def test_a_chunk_and_scales_of_two_records_are_never_taken_for_one_embedding(tmp_path: Path) -> None:
    store = make_store(tmp_path, spec=INT8_SPEC)
    commit(store, 0, 1)
    scales = scales_path(tmp_path, 0)
    older = scales.read_bytes()
    commit(store, 0, seed=50)
    scales.write_bytes(older)
    with pytest.raises(CorruptionError, match="tile 0"):
        store[0]
    assert torch.equal(store[1], floats(store, 1))
    scales.unlink()
    with pytest.raises(CorruptionError, match=r"tile 1.*missing"):
        EmbeddingStore.open(tmp_path)[1]


def test_quantised_embeddings_are_read_as_floats_as_halves_and_as_they_are(tmp_path: Path) -> None:
    store = make_store(tmp_path, spec=INT8_SPEC)
    commit(store, 0, 1)
    commit(store, 3)
    reader, tiles = store.reader(), [3, 0, 1]
    wanted = torch.stack([floats(store, tile) for tile in tiles])
    assert torch.equal(reader.read(tiles), wanted)
    assert torch.equal(reader.read_half(tiles), wanted.half())
    values, scales = reader.read_stored(tiles)
    assert (values.dtype, values.shape) == (torch.int8, (3, 256, 64, 64))
    assert scales is not None
    assert torch.equal(dequantise(values, scales), wanted)
    exact = torch.stack([torch.from_numpy(embedding(tile).astype(np.float32)) for tile in tiles])
    assert bool(((wanted - exact).abs() <= scales[..., None, None] * 0.5001).all())


def test_halves_are_read_as_they_are_without_scales(store: EmbeddingStore) -> None:
    values, scales = store.reader().read_stored([4, 0])
    assert scales is None
    assert np.array_equal(values[1].numpy(), embedding(0))


def test_a_tile_that_was_taken_back_is_missing_not_broken(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    commit(store, 0, 1)
    reading = EmbeddingStore.open(tmp_path)
    with store.writer() as writer:
        writer.change_source(None, (), np.array([True, False, False, False, False]))
    commit(store, 1, seed=60)
    with pytest.raises(MissingTilesError, match="tile 0"):
        reading[0]
    assert np.array_equal(reading[1].half().numpy(), embedding(61))


@pytest.mark.parametrize("form", ["float16", "int8"])
def test_what_was_taken_back_is_missing_also_while_its_shard_is_being_replaced(
    tmp_path: Path, form: str
) -> None:
    store = make_store(tmp_path, spec=spec(store_dtype=form))
    commit(store, 0, 1)
    reading = EmbeddingStore.open(tmp_path)
    with store.writer() as writer:
        writer.change_source(None, (), np.array([True, True, False, False, False]))
        with watched(refusing_lines_with('"kind":"shard"')), pytest.raises(StorageError):
            writer.commit_shard(0, embeddings={0: stored(store, 70)}, input_digests={0: DIGEST})
    assert torch.equal(reading[0], floats(store, 70))
    with pytest.raises(MissingTilesError, match="tile 1"):
        reading[1]


def test_what_was_taken_back_is_missing_although_its_bytes_are_broken_as_well(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    commit(store, 0)
    reading = EmbeddingStore.open(tmp_path)
    with store.writer() as writer:
        writer.change_source(None, (), np.array([True, False, False, False, False]))
    shard_path(tmp_path, 0).unlink()
    with pytest.raises(MissingTilesError, match="tile 0"):
        reading[0]


def test_halves_are_read_only_into_memory_that_lies_in_one_piece(store: EmbeddingStore) -> None:
    strided = torch.empty((256, 64, 64, 2), dtype=torch.float16).permute(3, 0, 1, 2)
    with pytest.raises(InputError, match="contiguous"):
        store.reader().read_half([0, 1], strided)


def test_a_reader_goes_to_another_process_as_its_stores_path(store: EmbeddingStore) -> None:
    again = pickle.loads(pickle.dumps(store.reader()))
    assert torch.equal(again.read([2]), store.reader().read([2]))


def test_few_files_are_kept_open(store: EmbeddingStore) -> None:
    before = open_files()
    reader = EmbeddingReader(store, open_shards=1)
    reader.read([0, 2, 4, 0, 2, 4])
    assert open_files() == before + 1
    reader.close()
    assert open_files() == before
    assert reader.read([0]).shape[0] == 1


def test_threads_may_share_a_reader(store: EmbeddingStore) -> None:
    reader = EmbeddingReader(store, open_shards=1)

    def check(seed: int) -> bool:
        tiles = np.random.default_rng(seed).choice([0, 1, 2, 4], 5)
        batch = reader.read_half(tiles)
        return all(
            np.array_equal(row.numpy(), embedding(int(tile))) for row, tile in zip(batch, tiles, strict=True)
        )

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(check, range(24)))


@given(
    indices=st.lists(st.sampled_from([0, 1, 2, 4]), max_size=6),
    check=st.sampled_from(CHECKS),
    threads=st.integers(1, 3),
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_threads_and_checks_change_no_bit(
    store: EmbeddingStore, indices: list[int], check: Check, threads: int
) -> None:
    reader = EmbeddingReader(store, check=check, threads=threads)
    reader.prefetch(indices)
    wanted = torch.zeros(0, 256, 64, 64)
    if indices:
        wanted = torch.stack([store[index] for index in indices])
    assert torch.equal(reader.read(indices), wanted)
    assert torch.equal(reader.read_half(indices), wanted.half())
    reader.close()
    assert torch.equal(reader.read_half(indices), wanted.half())


def flip(path: Path, at: int = 12345) -> None:
    """Flip a bit in place: the file stays the one that it is."""
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 16]))


@pytest.mark.parametrize(("threads", "before"), [(1, 1), (2, 1), (2, 3)])
def test_always_checked_means_that_a_bit_that_flips_later_is_found(
    tmp_path: Path, threads: int, before: int
) -> None:
    store = make_store(tmp_path)
    commit(store, 0, 1)
    reader = EmbeddingReader(store, threads=threads)
    for _ in range(before):
        reader.read_half([0, 1])
    flip(shard_path(tmp_path, 0))
    with pytest.raises(CorruptionError, match="tile 0"):
        reader.read_half([1, 0])


def test_checked_once_means_on_the_first_read_in_this_process_and_again_when_the_shard_is_replaced(
    tmp_path: Path,
) -> None:
    store = make_store(tmp_path)
    commit(store, 0, 1)
    reader, other = (EmbeddingReader(store, check="once") for _ in range(2))
    flip(shard_path(tmp_path, 0))
    with pytest.raises(CorruptionError, match="tile 0"):
        reader.read_half([0])
    reader.read_half([1])
    flip(shard_path(tmp_path, 0), at=3 << 20)  # of tile 1, which was found right
    assert not np.array_equal(reader.read_half([1])[0].numpy(), embedding(1))
    with pytest.raises(CorruptionError, match="tile 1"):
        other.read_half([1])  # it opens a file that was written to since
    commit(store, 0, 1, seed=20)
    assert np.array_equal(reader.read_half([0])[0].numpy(), embedding(20))
    flip(shard_path(tmp_path, 0), at=3 << 20)
    with pytest.raises(CorruptionError, match="tile 1"):
        reader.read_half([1])


def test_never_checked_still_reads_only_what_is_recorded(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    commit(store, 0)
    reader = EmbeddingReader(store, check="never")
    flip(shard_path(tmp_path, 0))
    assert reader.read_half([0]).shape == (1, 256, 64, 64)
    with pytest.raises(MissingTilesError, match="tile 1"):
        reader.read_half([1])
    os.truncate(shard_path(tmp_path, 0), 1 << 20)
    with pytest.raises(CorruptionError, match="tile 0"):
        reader.read_half([0])


@pytest.mark.parametrize("check", CHECKS)
def test_a_file_that_is_cut_while_it_is_read_again_and_again_is_corruption(
    tmp_path: Path, check: Check
) -> None:
    store = make_store(tmp_path)
    commit(store, 0, 1)
    reader = EmbeddingReader(store, check=check)
    for _ in range(3):
        assert np.array_equal(reader.read_half([1])[0].numpy(), embedding(1))
    os.truncate(shard_path(tmp_path, 0), 1 << 20)
    with pytest.raises(CorruptionError, match="tile 1"):
        reader.read_half([1])


def test_where_the_system_maps_nothing_the_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path)
    commit(store, 0)

    def refuse(self: ShardFile) -> int:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(ShardFile, "fileno", refuse)
    reader = store.reader()
    for _ in range(3):
        assert np.array_equal(reader.read_half([0])[0].numpy(), embedding(0))


def test_what_is_not_in_the_systems_cache_is_read_as_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path)
    commit(store, 0)
    copied: list[int] = []
    copy = MappedShard.copy_into

    def count(self: MappedShard, slot: int, *arguments: Any, **more: Any) -> Any:
        copied.append(slot)
        return copy(self, slot, *arguments, **more)

    monkeypatch.setattr(MappedShard, "copy_into", count)
    reader = store.reader()
    for reads in (0, 1, 2):
        assert np.array_equal(reader.read_half([0])[0].numpy(), embedding(0))
        assert len(copied) == reads
    fresh = store.reader()
    fresh.read_half([0])
    reader.close()
    with shard_path(tmp_path, 0).open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert np.array_equal(fresh.read_half([0])[0].numpy(), embedding(0))
    assert len(copied) == 2


def test_mapped_chunks_are_few_and_change_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path, n=6, shard_tiles=3)
    commit(store, 0, 1, 2)
    commit(store, 3, 4, 5)
    monkeypatch.setattr(mapped, "MAPPED_BYTES", 5 << 20)
    gone: list[int] = []
    let_go = MappedShard.let_go
    monkeypatch.setattr(MappedShard, "let_go", lambda self, slot: (gone.append(slot), let_go(self, slot)))
    reader = EmbeddingReader(store, threads=2)
    for _ in range(4):
        for row, tile in zip(reader.read_half(range(6)), range(6), strict=True):
            assert np.array_equal(row.numpy(), embedding(tile))
    assert len(gone) >= 6
    reader.close()
    assert np.array_equal(reader.read_half([5])[0].numpy(), embedding(5))


def test_other_threads_go_on_while_pages_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(256 << 20)
    ticks, stop = [0.0], threading.Event()

    def tick() -> None:
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(1e-4)

    ticking = threading.Thread(target=tick)
    ticking.start()
    try:
        for _ in range(20):  # a busy machine may have no time for the other thread just then
            began, ended = seconds_of_asking(path)
            quarter = (ended - began) / 4
            if any(began + quarter < at < ended - quarter for at in list(ticks)):
                return
        pytest.fail("the other thread stood still each time")
    finally:
        stop.set()
        ticking.join()


def seconds_of_asking(path: Path) -> tuple[float, float]:
    """When all pages of a file were asked for, and when they were there."""
    size = path.stat().st_size
    with path.open("rb") as file:
        address = mapped._library.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
    began = time.perf_counter()
    assert mapped._library.madvise(address, size, mapped.MADV_POPULATE_READ) == 0
    ended = time.perf_counter()
    mapped._library.munmap(address, size)
    return began, ended


LITTLE_ROOM = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
import numpy as np
from embedcache.store import EmbeddingStore
store = EmbeddingStore.open(sys.argv[1])
readers = [store.reader() for _ in range(3)]
for _ in range(2):
    for reader in readers:
        for tile in np.flatnonzero(store.committed):
            for _ in range(2):
                reader.read_half([int(tile)])
"""


def test_readers_of_one_process_share_the_files_that_it_may_open(tmp_path: Path) -> None:
    store = make_store(tmp_path, n=40, shard_tiles=1)
    for tile in range(40):
        commit(store, tile)
    found = subprocess.run(
        [sys.executable, "-c", LITTLE_ROOM, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr


def test_readers_come_and_go_while_others_open_shards(tmp_path: Path) -> None:
    store = make_store(tmp_path, n=4, shard_tiles=1)
    for tile in range(4):
        commit(store, tile)
    ended = threading.Event()

    def come_and_go() -> None:
        while not ended.is_set():
            EmbeddingReader(store).read_half([0])

    gc.collect()  # readers that earlier tests let go of
    before = len(opened._using)
    with ThreadPoolExecutor(2) as pool:
        going = pool.submit(come_and_go)
        reader = EmbeddingReader(store)
        try:
            for _ in range(60):
                reader.read_half([0, 1, 2, 3])
                assert len(opened._using) >= before + 1
                reader.close()
        finally:
            ended.set()
        going.result()
    del reader
    assert len(opened._using) <= before + 1


def test_checked_once_means_with_these_scales(tmp_path: Path) -> None:
    store = make_store(tmp_path, spec=INT8_SPEC)
    commit(store, 0, 1)
    reader = EmbeddingReader(store, check="once")
    reader.read([0, 1])
    scales = read_scales(tmp_path, 0, 2).rows * 2
    scales_path(tmp_path, 0).write_bytes(scales_bytes(dict(enumerate(scales)), 2))
    reader.close()
    with pytest.raises(CorruptionError, match="tile 0"):
        reader.read([0])


def test_what_one_thread_finds_broken_is_told_when_all_have_finished(tmp_path: Path) -> None:
    store = make_store(tmp_path, n=12, shard_tiles=12)
    commit(store, *range(12))
    flip(shard_path(tmp_path, 0))
    reader = EmbeddingReader(store, threads=3)
    out = torch.zeros(12, 256, 64, 64, dtype=torch.float16)
    with pytest.raises(CorruptionError, match="tile 0"):
        reader.read_half(list(range(12)), out)
    before = out.clone()
    time.sleep(0.05)
    assert torch.equal(out, before)


def test_in_windows_each_shard_is_opened_once_an_epoch_with_so_many_files_open(tmp_path: Path) -> None:
    store = make_store(tmp_path, n=24, shard_tiles=2)
    for shard in range(12):
        commit(store, 2 * shard, 2 * shard + 1)
    before = open_files()
    reader = EmbeddingReader(store, open_shards=3)
    opened: list[int] = []
    order = Order(0, 3).of_epoch(0, np.arange(24) // 2)

    for tile in order.tolist():
        if tile // 2 not in reader._open._open:
            opened.append(tile // 2)
        assert np.array_equal(reader.read_half([tile])[0].numpy(), embedding(tile))
        assert open_files() <= before + 3
    assert sorted(opened) == list(range(12))


def test_a_wish_that_cannot_be_is_refused(store: EmbeddingStore) -> None:
    with pytest.raises(ConfigError, match="always, once, never"):
        EmbeddingReader(store, check="sometimes")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="0 threads"):
        EmbeddingReader(store, threads=0)
    with pytest.raises(InputError, match="scales"):
        store.reader().read_stored([0], (torch.empty(1, 256, 64, 64).half(), torch.empty(1, 256)))


def test_a_reader_takes_its_wishes_to_another_process(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    commit(store, 0)
    again = pickle.loads(pickle.dumps(EmbeddingReader(store, check="never", threads=2)))
    flip(shard_path(tmp_path, 0))
    assert again.read([0]).shape == (1, 256, 64, 64)


def floats(store: EmbeddingStore, seed: int) -> torch.Tensor:
    """What the store gives for an embedding of this seed."""
    if store.form != INT8:
        return torch.from_numpy(embedding(seed).astype(np.float32))
    kept = quantised(seed)
    return dequantise(torch.from_numpy(kept.values), torch.from_numpy(kept.scales))


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())
