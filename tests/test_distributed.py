"""Workers: several processes encode, one publishes, and the store's bytes are those of one process."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dask
import numpy as np
import pytest
import worker_encoders
import worker_fork
from encode_samples import QUICK, Listener, change, quick, scan, shard_digests

from embedcache.encode.options import options_from
from embedcache.encode.prepare import prepare
from embedcache.errors import InputError, Interrupted, MismatchError
from embedcache.progress import Silent
from embedcache.store import EmbeddingStore

DASK = [sys.executable, "-m", "dask"]
THREE = ["--nworkers", "3", "--nthreads", "1", "--memory-limit", "0"]


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory) -> Iterator[str]:
    """Address of a scheduler with three workers, started as a person would; they load torch once, then fork."""
    folder = tmp_path_factory.mktemp("dask")
    file = folder / "scheduler.json"
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parent),
        "DASK_DISTRIBUTED__WORKER__MULTIPROCESSING_METHOD": "forkserver",
    }
    log = (folder / "log").open("w")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": log, "env": environment, "start_new_session": True}
    encoders = [
        "--local-directory",
        str(folder),
        "--preload",
        worker_encoders.__name__,
        "--preload-nanny",
        worker_fork.__name__,
    ]
    common = ["--scheduler-file", str(file), "--no-dashboard"]
    processes = [
        subprocess.Popen([*DASK, "scheduler", *common, "--host", "127.0.0.1", "--port", "0"], **quiet),
        subprocess.Popen([*DASK, "worker", *common, *THREE, *encoders], **quiet),
    ]
    while not file.is_file():
        assert processes[0].poll() is None
        time.sleep(0.05)
    try:
        yield json.loads(file.read_text())["address"]
    finally:
        for process in processes:  # with its children
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)


def worker_pids(scheduler: str) -> list[int]:
    from distributed import Client

    with Client(scheduler, set_as_default=False) as client:
        client.wait_for_workers(3, timeout=300)
        return list(client.run(os.getpid).values())


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    return scan(tmp_path / "scan.npy", planes=9, high=250)


@pytest.mark.parametrize("form", [{}, {"store_dtype": "int8", "precision": "auto"}])
def test_workers_and_parts_give_the_bytes_of_one_process(scheduler, volume, tmp_path, form):
    one = quick(volume, store=tmp_path / "one.zarr", **form)
    for part in range(4):
        quick(volume, store=tmp_path / "four.zarr", num_parts=4, part_id=part, **form)
    worker_pids(scheduler)  # now they are there
    three = quick(volume, store=tmp_path / "three.zarr", scheduler=scheduler, **form)
    assert shard_digests(tmp_path / "three.zarr") == shard_digests(tmp_path / "one.zarr")
    assert shard_digests(tmp_path / "four.zarr") == shard_digests(tmp_path / "one.zarr")
    assert (three.encoded, three.encoder_calls, three.bytes_written) == (9, 9, one.bytes_written)
    assert three.store.status().complete
    assert three.store.state.numerics == one.store.state.numerics
    assert three.seconds_by_stage["encode"] > 0


def test_workers_complete_shards_that_were_begun_and_then_find_nothing_to_do(scheduler, volume, tmp_path):
    quick(volume, store=tmp_path / "one.zarr")
    quick(volume, store=tmp_path / "s.zarr", z_range="0:9:2")  # one of two tiles of each shard
    rest = quick(volume, store=tmp_path / "s.zarr", scheduler=scheduler)
    again = quick(volume, store=tmp_path / "s.zarr", scheduler=scheduler)
    assert (rest.encoded, rest.reused, again.encoded) == (4, 5, 0)
    assert shard_digests(tmp_path / "s.zarr") == shard_digests(tmp_path / "one.zarr")


def test_workers_give_views_the_bytes_of_one_process(scheduler, tmp_path):
    small = scan(tmp_path / "small.npy", planes=3)
    quick(small, store=tmp_path / "one.zarr", views="flips")
    quick(small, store=tmp_path / "s.zarr")
    result = quick(small, store=tmp_path / "s.zarr", views="flips", scheduler=scheduler)
    assert result.encoded == 9
    assert shard_digests(tmp_path / "s.zarr") == shard_digests(tmp_path / "one.zarr")


def test_workers_of_this_machine_come_and_go_with_the_run(volume, tmp_path, capfd):
    quick(volume, store=tmp_path / "one.zarr")
    with dask.config.set({"distributed.worker.preload": ["worker_encoders"]}):
        result = quick(volume, store=tmp_path / "s.zarr", workers=2)
    assert shard_digests(tmp_path / "s.zarr") == shard_digests(tmp_path / "one.zarr")
    assert (result.workers, result.device, result.encoder_calls) == (2, "cpu", 9)
    assert result.source_chunks_read == 0  # a .npy has none
    assert not multiprocessing.active_children()
    assert capfd.readouterr().err == ""


def test_tiles_of_equal_pixels_are_copied_by_workers_too(scheduler, volume, tmp_path):
    np.save(volume, np.load(volume)[[0, 0, 0, 0, 1, 0, 1, 0, 0]])
    result = quick(volume, store=tmp_path / "s.zarr", scheduler=scheduler)
    assert (result.encoded, result.encoder_calls + result.identical) == (9, 9)
    assert result.identical >= 2  # the first two shards hold the same plane twice
    quick(volume, store=tmp_path / "one.zarr")
    assert shard_digests(tmp_path / "s.zarr") == shard_digests(tmp_path / "one.zarr")


class KillsOne(Listener):
    """Kills a process at the first sign of progress."""

    def __init__(self, pid: int) -> None:
        super().__init__()
        self._pid = pid

    def advance(self, steps: int = 1, note: str = "") -> None:
        if self._pid and steps > 0:
            os.kill(self._pid, signal.SIGKILL)
            self._pid = 0


def test_a_worker_that_is_killed_costs_nothing_but_its_work(scheduler, volume, tmp_path):
    quick(volume, store=tmp_path / "one.zarr")  # the same encoder, and not slow
    killer = KillsOne(worker_pids(scheduler)[0])
    result = quick(volume, killer, store=tmp_path / "s.zarr", model="slow", scheduler=scheduler)
    assert any("died" in line for line in killer.lines)
    assert (result.encoded, result.failed, result.exit_code) == (9, {}, 0)
    assert shard_digests(tmp_path / "s.zarr") == shard_digests(tmp_path / "one.zarr")
    assert not list((tmp_path / "s.zarr").rglob("*.partial"))


def test_tiles_that_kill_three_workers_are_given_up_and_named_and_the_others_are_there(
    scheduler, volume, tmp_path
):
    pixels = np.load(volume)
    pixels[5, 0, 0] = 255
    np.save(volume, pixels)
    told = Listener()
    result = quick(volume, told, store=tmp_path / "s.zarr", model="deadly", scheduler=scheduler)
    assert sorted(result.failed) == [4, 5]  # the shard of plane 5
    assert "3 workers died" in result.failed[5]
    assert any("Shard 2: given up" in line for line in told.lines)
    assert (result.encoded, result.exit_code) == (7, 7)
    mended = quick(volume, store=tmp_path / "s.zarr", z_range="4:5", model="deadly")
    assert mended.encoded == 1


def test_a_signal_ends_the_run_and_keeps_what_the_workers_had(scheduler, volume, tmp_path):
    class Counts(Listener):
        seen = 0

        def advance(self, steps: int = 1, note: str = "") -> None:
            self.seen += steps

    counts = Counts()
    wishes = {"model": "slow", "store": tmp_path / "s.zarr", "scheduler": scheduler, "shard_tiles": 9}
    with pytest.raises(Interrupted) as caught:
        quick(volume, counts, stop=lambda: 15 if counts.seen >= 2 else None, **wishes)
    assert caught.value.exit_code == 143
    committed = EmbeddingStore.open(tmp_path / "s.zarr").committed.sum()
    assert 0 < committed < 9
    assert quick(volume, **wishes).encoded == 9 - committed
    quick(volume, store=tmp_path / "one.zarr", shard_tiles=9)
    assert shard_digests(tmp_path / "s.zarr") == shard_digests(tmp_path / "one.zarr")


def test_changed_tiles_are_encoded_anew_by_workers(scheduler, volume, tmp_path):
    quick(volume, store=tmp_path / "s.zarr")
    change(volume, 3)
    result = quick(volume, store=tmp_path / "s.zarr", scheduler=scheduler, changed="reencode")
    assert (result.changed, result.encoded) == (1, 1)
    quick(volume, store=tmp_path / "one.zarr")
    assert shard_digests(tmp_path / "s.zarr") == shard_digests(tmp_path / "one.zarr")


class Hides(Listener):
    """Moves a file away when the work begins."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def start(self, what: str, total: int) -> None:
        self._path.rename(self._path.with_suffix(".hidden"))


def test_workers_that_do_not_see_the_volume_are_named(scheduler, volume, tmp_path):
    with pytest.raises(InputError, match=r"Worker on \S+: .*scan\.npy"):
        quick(volume, Hides(volume), store=tmp_path / "s.zarr", scheduler=scheduler)


def test_workers_that_cannot_compute_under_the_numerics_of_the_store_are_refused(scheduler, volume, tmp_path):
    other = {**quick(volume, store=tmp_path / "one.zarr").store.numerics, "device": "cuda:Another GPU"}
    with empty_store(volume, tmp_path / "s.zarr").writer() as writer:
        writer.decide_numerics(other)
    with pytest.raises(MismatchError, match=r"(?s)Worker on .*device: recorded 'cuda:Another") as caught:
        quick(volume, store=tmp_path / "s.zarr", scheduler=scheduler)
    assert caught.value.differences["device"] == ("cuda:Another GPU", "cpu")


def empty_store(volume: Path, path: Path) -> EmbeddingStore:
    job = prepare(options_from(volume, QUICK | {"store": path}), Silent())
    return EmbeddingStore.create(
        path,
        spec=job.spec,
        table=job.table,
        decoder_state=job.weights.decoder_state(),
        provenance=job.provenance(),
        shard_tiles=job.options.shard_tiles,
    )


def test_a_scheduler_that_does_not_answer_is_told_in_time(volume, tmp_path, monkeypatch):
    from embedcache.encode.distributed import cluster

    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1)
    with pytest.raises(InputError, match=r"127\.0\.0\.1:9: no scheduler answers within 1 s"):
        quick(volume, store=tmp_path / "s.zarr", scheduler="tcp://127.0.0.1:9")
