"""Stage one's threads: they overlap, wait for each other, end with the run, and leave no trace in the bytes."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from encode_samples import Listener, quick, scan, shard_digests
from faults import encoder as test_encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from embedcache.encode import overlapped, slots, stages, tile_reader, wiring
from embedcache.encode.stages import STAGES, Stages
from embedcache.errors import InputError, Interrupted, StorageError
from embedcache.files import disk as disk_module
from embedcache.files.disk import Disk
from embedcache.store import EmbeddingStore
from embedcache.volume import Preprocess

PATIENCE = 60.0


class TouchyDisk(Disk):
    """Calls a function before each shard's bytes are written."""

    def __init__(self, before: Callable[[], None]) -> None:
        self._before = before

    def write(self, descriptor, pieces, offset):
        if threading.current_thread().name == "embedcache-write" and sum(map(len, pieces)) > 1 << 20:
            self._before()
        return super().write(descriptor, pieces, offset)


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    """The real disk and an encoder that tells nobody come back; no thread of a run outlives it."""
    yield
    disk_module.set_disk(Disk())
    test_encoder.on_call = lambda images: None
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("embedcache")]


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    return scan(tmp_path / "scan.npy", planes=8)


def slow_source(monkeypatch: pytest.MonkeyPatch, before: Callable[[int], None]) -> None:
    """A source that lets a function run before each tile; takes its plane."""
    read = Preprocess.read

    def slowly(self, volume, tile):
        before(tile.plane)
        return read(self, volume, tile)

    monkeypatch.setattr(Preprocess, "read", slowly)


def in_the_pipeline() -> bool:
    """Whether this is a reader thread of a run, and not what looks at the volume before."""
    return threading.current_thread().name.startswith("embedcache-read")


def wait_until(true: Callable[[], bool]) -> bool:
    end = time.monotonic() + PATIENCE
    while not true() and time.monotonic() < end:
        time.sleep(0.005)
    return true()


def count_calls() -> list[int]:
    calls: list[int] = []
    test_encoder.on_call = calls.append
    return calls


# --- overlapping and back-pressure --------------------------------------------------------------------------


def test_where_the_encoder_is_fast_the_next_shard_is_encoded_meanwhile_but_no_third_one(
    volume, tmp_path, monkeypatch
):
    monkeypatch.setattr(overlapped, "GOES_ON", ("cuda", "cpu"))
    calls = count_calls()
    seen: list[int] = []

    def writing() -> None:
        if not seen:
            seen.append(0)
            assert wait_until(lambda: len(calls) == 4), f"{len(calls)} tiles were encoded meanwhile"
            time.sleep(0.2)
            seen[0] = len(calls)

    disk_module.set_disk(TouchyDisk(writing))
    result = quick(volume, store=tmp_path / "s.zarr")
    assert seen == [4]  # two shards of two
    assert result.encoded == 8


def test_on_a_cpu_nothing_is_encoded_until_the_shard_before_is_durable(volume, tmp_path):
    """So a kill costs one shard at most."""
    calls = count_calls()
    seen: list[int] = []

    def writing() -> None:
        if not seen:
            time.sleep(0.2)
            seen.append(len(calls))

    disk_module.set_disk(TouchyDisk(writing))
    result = quick(volume, store=tmp_path / "s.zarr")
    assert seen == [2]  # tiles of one shard
    assert result.encoded == 8


def test_readers_go_ahead_of_the_encoder_but_only_so_far(tmp_path, monkeypatch):
    read: list[int] = []
    slow_source(monkeypatch, lambda plane: read.append(plane) if in_the_pipeline() else None)
    monkeypatch.setattr(wiring, "_AHEAD_TILES", 4)
    ahead: list[int] = []

    def encoding(_: int) -> None:
        if not ahead:
            wait_until(lambda: len(read) >= 7)
            time.sleep(0.2)
            ahead.append(len(read))

    test_encoder.on_call = encoding
    quick(scan(tmp_path / "scan.npy", planes=40), store=tmp_path / "s.zarr", shard_tiles=64)
    assert ahead == [7]  # batches of one: at work, two ready, one without room; and three that wait for it
    assert sorted(read) == list(range(40))


@settings(deadline=None, max_examples=5)
@given(seed=st.integers(0, 2**32))
def test_bytes_do_not_depend_on_which_stage_is_slow_when(tmp_path_factory, seed):
    folder = tmp_path_factory.mktemp("timing")
    volume = scan(folder / "scan.npy", planes=9)
    pixels = np.load(volume)
    pixels[[2, 3, 5, 8]], pixels[6] = 7, 0  # twins within and between shards, and an empty tile
    np.save(volume, pixels)
    wishes = {"skip_empty": True, "batch_size": 3}
    quiet = quick(volume, store=folder / "quiet.zarr", **wishes)
    rng = random.Random(seed)

    def hiccup(_: int = 0) -> None:
        time.sleep(rng.choice((0.0, 0.0, 0.01, 0.03)))

    with pytest.MonkeyPatch.context() as patch:
        slow_source(patch, hiccup)
        patch.setattr(overlapped, "COMMIT_SECONDS", rng.choice((0.0, 0.02, 300.0)))
        patch.setattr(overlapped, "GOES_ON", rng.choice((("cuda",), ("cpu",))))
        test_encoder.on_call = hiccup
        disk_module.set_disk(TouchyDisk(hiccup))
        found = quick(volume, store=folder / "s.zarr", **wishes)
    disk_module.set_disk(Disk())
    test_encoder.on_call = lambda images: None
    assert shard_digests(folder / "s.zarr") == shard_digests(folder / "quiet.zarr")
    assert (found.encoded, found.identical, found.skipped) == (quiet.encoded, quiet.identical, quiet.skipped)
    assert found.encoder_calls == quiet.encoder_calls == 5


# --- what limits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slow", ["read", "encode", "write"])
def test_the_stage_that_limits_is_named(volume, tmp_path, monkeypatch, slow):
    monkeypatch.setattr(stages, "_UNNOTICED", 0.3)  # a busy machine is late with its first tile
    if slow == "read":
        slow_source(monkeypatch, lambda plane: time.sleep(0.4))
    elif slow == "encode":
        test_encoder.on_call = lambda images: time.sleep(0.2)
    else:
        disk_module.set_disk(TouchyDisk(lambda: time.sleep(0.4)))
    figures = quick(volume, store=tmp_path / "s.zarr").to_dict()
    assert figures["bottleneck"] == slow
    assert list(figures["seconds_by_stage"]) == list(STAGES)
    assert figures["waits"]["writer" if slow == "write" else "input"] >= (0 if slow == "encode" else 0.1)


def test_an_encoder_that_waits_for_a_twentieth_of_its_time_still_limits():
    watch = Stages()
    watch.add("encode", 95.0)
    watch.add("read", 200.0)
    watch.waits["input"] = 4.9
    assert watch.bottleneck == "encode"
    watch.waits["input"] = 5.1
    assert watch.bottleneck == "read"


def test_each_source_piece_is_counted(tmp_path):
    import zarr

    zarr.create_array(str(tmp_path / "v.zarr"), shape=(8, 64, 64), chunks=(4, 32, 32), dtype="uint8")[...] = (
        np.load(scan(tmp_path / "scan.npy", planes=8))
    )
    figures = quick(tmp_path / "v.zarr", store=tmp_path / "s.zarr").to_dict()
    assert (
        0 <= figures["source_chunks_read"] <= 8
    )  # those that the volume's identity has decoded are still there


# --- ends -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError("the device is gone"), KeyboardInterrupt()])
def test_an_error_of_the_encoder_ends_the_run_and_whole_shards_stay(volume, tmp_path, error):
    calls = []

    def fail(images: int) -> None:
        calls.append(images)
        if len(calls) == 6:
            raise error

    test_encoder.on_call = fail
    with pytest.raises(type(error)):
        quick(volume, store=tmp_path / "s.zarr")
    assert EmbeddingStore.open(tmp_path / "s.zarr").committed.tolist()[:8] == [True] * 4 + [False] * 4
    test_encoder.on_call = lambda images: None
    assert quick(volume, store=tmp_path / "s.zarr").encoded == 4


def test_an_error_of_the_disk_ends_the_run_as_the_disk_says(volume, tmp_path):
    def full() -> None:
        raise OSError(28, "No space left on device")

    disk_module.set_disk(TouchyDisk(full))
    with pytest.raises(StorageError, match="No space left"):
        quick(volume, store=tmp_path / "s.zarr")


def test_an_error_that_no_reader_expects_ends_the_run(volume, tmp_path, monkeypatch):
    def broken(plane: int) -> None:
        if in_the_pipeline():
            raise KeyError("a bug")

    slow_source(monkeypatch, broken)
    with pytest.raises(KeyError):
        quick(volume, store=tmp_path / "s.zarr")


# --- a source that stalls -------------------------------------------------------------------------------------


def stall_at(monkeypatch: pytest.MonkeyPatch, plane: int, until: Callable[[], bool]) -> None:
    def before(now: int) -> None:
        if now == plane and in_the_pipeline():
            wait_until(until)

    slow_source(monkeypatch, before)


def test_a_source_that_stalls_is_named_once_and_waited_for(volume, tmp_path, monkeypatch):
    monkeypatch.setattr(overlapped, "STALL_SECONDS", 0.2)
    monkeypatch.setattr(overlapped, "_LOOK_SECONDS", 0.1)
    listener = Listener()
    begin = time.monotonic()

    def said() -> bool:
        return time.monotonic() > begin + 1 and any("has not given tile 5" in line for line in listener.lines)

    stall_at(monkeypatch, 5, said)
    assert quick(volume, listener, store=tmp_path / "s.zarr").encoded == 8
    assert sum("tile 5" in line for line in listener.lines) == 1


def test_a_signal_ends_a_run_whose_source_hangs_and_what_is_encoded_is_committed(
    volume, tmp_path, monkeypatch
):
    monkeypatch.setattr(overlapped, "_LOOK_SECONDS", 0.1)
    monkeypatch.setattr(tile_reader, "HUNG_SECONDS", 0.2)
    over = threading.Event()
    stall_at(monkeypatch, 5, over.is_set)
    calls = count_calls()
    try:
        with pytest.raises(Interrupted, match="5 tiles of this run are committed"):
            quick(volume, stop=lambda: 15 if len(calls) == 5 else None, store=tmp_path / "s.zarr")
        names = [thread.name for thread in threading.enumerate()]
        assert any("embedcache-read" in name for name in names), "it waited for the source"
        assert EmbeddingStore.open(tmp_path / "s.zarr").committed.sum() == 5
    finally:
        over.set()
        wait_until(lambda: not any("embedcache-read" in thread.name for thread in threading.enumerate()))


# --- out of memory --------------------------------------------------------------------------------------------


def too_much_above(images: int, from_call: int = 0) -> list[int]:
    """A device whose memory holds so many images at once, from a call on."""
    calls: list[int] = []

    def on_call(count: int) -> None:
        calls.append(count)
        if count > images and len(calls) > from_call:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB.")

    test_encoder.on_call = on_call
    return calls


def test_out_of_memory_halves_the_batch_until_it_fits(volume, tmp_path):
    listener = Listener()
    calls = too_much_above(2)
    result = quick(volume, listener, store=tmp_path / "s.zarr", batch_size=8)
    assert calls == [8, 4, 2, 2, 2, 2]
    assert (result.encoded, result.encoder_calls) == (8, 8)
    assert [numerics["batch"] for numerics in result.store.state.numerics] == [8, 4, 2]
    assert sum("Memory ran out" in line for line in listener.lines) == 2
    quick(volume, store=tmp_path / "two.zarr", batch_size=2)
    assert shard_digests(tmp_path / "s.zarr") == shard_digests(tmp_path / "two.zarr")


def test_what_was_encoded_before_memory_ran_out_is_recorded_under_its_own_numerics(volume, tmp_path):
    too_much_above(2, from_call=1)
    store = quick(volume, store=tmp_path / "s.zarr", batch_size=4, shard_tiles=4).store
    assert [store.state.shard_record(shard).numerics for shard in (0, 1)] == [0, 1]
    later = quick(scan(tmp_path / "more.npy", planes=8), store=tmp_path / "s.zarr", z_range="0:8")
    assert later.encoded == 0


def test_one_image_that_is_too_much_is_refused_with_a_way_out(volume, tmp_path):
    too_much_above(0)
    with pytest.raises(InputError, match="too small for one image at a time") as refusal:
        quick(volume, store=tmp_path / "s.zarr", batch_size=2)
    assert "--precision bf16" in (refusal.value.hint or "")
    assert refusal.value.exit_code == 2


def test_memory_that_runs_out_while_pixels_are_prepared_is_refused_with_a_way_out_too(
    volume, tmp_path, monkeypatch
):
    def no_room(self, tiles) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 96 MiB.")

    monkeypatch.setattr(slots._HostSlot, "fill", no_room)
    with pytest.raises(InputError, match="96 MiB") as refusal:
        quick(volume, store=tmp_path / "s.zarr")
    assert "--device cpu" in (refusal.value.hint or "")


def test_wishes_that_the_stores_numerics_overrule_are_named(volume, tmp_path):
    quick(volume, store=tmp_path / "s.zarr", batch_size=2, z_range="0:2")
    listener = Listener()
    quick(volume, listener, store=tmp_path / "s.zarr", batch_size=4)
    assert sum("batch 2, which holds; 4 has no effect" in line for line in listener.lines) == 1


# --- a trace --------------------------------------------------------------------------------------------------


def test_a_profile_shows_the_threads_beside_the_encoders_operations_on_one_clock(tmp_path):
    listener, path = Listener(), tmp_path / "run.json"
    volume = scan(tmp_path / "scan.npy", planes=10)
    traced = quick(volume, listener, store=tmp_path / "s.zarr", profile=path)
    events = json.loads(path.read_text())["traceEvents"]
    spans = [event for event in events if event.get("pid") == "embedcache" and event["ph"] == "X"]
    assert {"read", "preprocess", "encode", "write", "waits for the input"} <= {
        span["name"] for span in spans
    }
    encodes = [span for span in spans if span["name"] == "encode"]
    assert len(encodes) == 8  # the first batches
    convolutions = [event for event in events if event.get("name") == "aten::conv2d"]
    inside = [
        any(-500 <= event["ts"] - span["ts"] <= span["dur"] + 500 for span in encodes)
        for event in convolutions
    ]
    assert len(inside) == 16  # two in each of the eight
    assert all(inside)  # to half a millisecond
    assert any(str(path) in line for line in listener.lines)
    assert traced.encoded == 10
