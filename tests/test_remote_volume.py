"""Volumes behind addresses: the same pixels and store as of the copy on the disk, however the server behaves."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from test_zarr_volume import LAYOUTS, pixels, write_array, write_pyramid
from volume_servers import VolumeServer, write_certificate

from embedcache.cli.app import run as command
from embedcache.encode import EncodeOptions
from embedcache.encode.identity.refusals import command_line
from embedcache.errors import EmbedcacheError, StorageError, VolumeError
from embedcache.remote import sources
from embedcache.remote.kept import KeptFiles
from embedcache.store import EmbeddingStore
from embedcache.volume import open_volume


@pytest.fixture(autouse=True)
def chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Chunks are kept in the test's own folder, and nobody waits long."""
    monkeypatch.setenv("EMBEDCACHE_CHUNKS", str(tmp_path / "chunks"))
    monkeypatch.setattr(sources, "PAUSES", (0.01, 0.01))
    monkeypatch.setattr(sources, "TIMEOUT_SECONDS", (5.0, 10.0))
    return tmp_path / "chunks"


@pytest.fixture
def there(tmp_path: Path) -> Iterator[VolumeServer]:
    """A server of the folder ``there``, which lists nothing."""
    (tmp_path / "there").mkdir()
    with VolumeServer(tmp_path / "there") as server:
        yield server


def whole(volume: Any) -> np.ndarray:
    return np.stack([volume.read(z, slice(None), slice(None)) for z in range(volume.n_planes)])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_the_same_volume_as_on_the_disk(
    tmp_path: Path, there: VolumeServer, layout: str
) -> None:
    values = pixels()
    path = write_array(tmp_path / "there" / "a.zarr", values, **LAYOUTS[layout])
    with open_volume(f"{there.url}/a.zarr/") as volume, open_volume(path) as local:
        assert volume.source == f"{there.url}/a.zarr"
        assert volume.header() == local.header()
        np.testing.assert_array_equal(whole(volume), values)


def read_once(server: VolumeServer, **options: Any) -> np.ndarray:
    with open_volume(f"{server.url}/a.zarr", **options) as volume:
        return whole(volume)


@pytest.mark.parametrize("metadata", [True, False])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_levels_are_found_without_a_listing(
    tmp_path: Path, there: VolumeServer, zarr_format: int, metadata: bool
) -> None:
    path = write_pyramid(tmp_path / "there" / "p.zarr", pixels(), zarr_format=zarr_format, metadata=metadata)
    for level in range(3):
        with (
            open_volume(f"{there.url}/p.zarr", level=level) as volume,
            open_volume(path, level=level) as local,
            open_volume(f"{there.url}/p.zarr/{level}") as by_path,
        ):
            assert volume.header() == local.header() == by_path.header()
            assert (
                volume.levels == local.levels == by_path.levels == ((20, 50, 70), (10, 25, 35), (5, 13, 18))
            )
            assert volume.scale == local.scale == by_path.scale == (2.0**level,) * 3
    assert not there.chunks_asked
    with pytest.raises(VolumeError, match="no level 5; levels that are there: 0, 1, 2"):
        open_volume(f"{there.url}/p.zarr", level=5)


def encode(volume: str, store: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    words = ["encode", "--volume", volume, "--store", str(store), "--model", "vit_tiny", "--json"]
    recipe = ["--checkpoint", "random:0", "--tile", "64", "--z-range", "0:1", "--window", "p1:p99"]
    capsys.readouterr()
    assert command(words + recipe) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_store_encoded_from_https_is_the_one_of_the_copy_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    local = write_pyramid(tmp_path / "there" / "v.zarr", pixels((6, 70, 90)))
    certificate = write_certificate(tmp_path)
    with VolumeServer(tmp_path / "there", tls=certificate) as server:
        with pytest.raises(StorageError, match="certificate is not trusted here") as caught:
            open_volume(f"{server.url}/v.zarr")
        assert "REQUESTS_CA_BUNDLE" in str(caught.value.hint)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        far = encode(f"{server.url}/v.zarr", tmp_path / "far.zarr", capsys)
        assert set(server.chunks_asked.values()) == {1}
        store = EmbeddingStore.open(tmp_path / "far.zarr")
        assert store.provenance["source"] == f"{server.url}/v.zarr"
        assert far["tiles_encoded"] == store.committed.sum() == 4
        near = encode(str(local), tmp_path / "far.zarr", capsys)  # refused, were it another volume
        assert near["fingerprint"] == far["fingerprint"]
        assert (near["tiles_encoded"], near["pixels_checked"]) == (0, 4)
        before = server.chunk_bytes
        again = encode(f"{server.url}/v.zarr/", tmp_path / "far.zarr", capsys)
        assert (again["tiles_encoded"], again["tiles_reused"]) == (0, far["tiles_encoded"])
        assert server.chunk_bytes == before


@pytest.mark.parametrize("fault", ["drop", "stall", "short", "long", "busy", "many"])
def test_what_fails_is_asked_again_and_nothing_wrong_is_taken(
    tmp_path: Path, there: VolumeServer, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault == "stall":
        monkeypatch.setattr(sources, "TIMEOUT_SECONDS", (5.0, 0.6))
    values = pixels()
    write_array(tmp_path / "there" / "a.zarr", values, chunks=(20, 50, 35), compressors=None)
    there.schedule = [fault, fault, "fine", fault]
    with open_volume(f"{there.url}/a.zarr") as volume:
        np.testing.assert_array_equal(whole(volume), values)
        assert volume.fetched.retries >= 3 if fault == "stall" else volume.fetched.retries == 3
    assert there.schedule == []


def test_a_chunk_that_cannot_be_had_is_an_error_of_its_tile_and_the_others_go_on(
    tmp_path: Path, there: VolumeServer
) -> None:
    values = pixels()
    write_array(tmp_path / "there" / "a.zarr", values, chunks=(20, 50, 35))
    there.schedule = ["busy"] * 3
    with open_volume(f"{there.url}/a.zarr") as volume:
        with pytest.raises(VolumeError, match=r"/a\.zarr/0\.0\.0 cannot be read: the server answered 503"):
            volume.read(0, slice(0, 50), slice(0, 35))
        np.testing.assert_array_equal(volume.read(0, slice(0, 50), slice(35, 70)), values[0, :, 35:])
        np.testing.assert_array_equal(volume.read(0, slice(0, 50), slice(0, 70)), values[0])


def test_a_server_that_is_gone_ends_the_run_after_twenty_failures(
    tmp_path: Path, there: VolumeServer
) -> None:
    write_array(tmp_path / "there" / "a.zarr", pixels((1, 8, 200)), chunks=(1, 8, 8))
    there.schedule = ["busy"] * 1000
    with open_volume(f"{there.url}/a.zarr") as volume:
        for place in range(19):
            with pytest.raises(VolumeError):
                volume.read(0, slice(0, 8), slice(place * 8, place * 8 + 8))
        with pytest.raises(StorageError, match="20th in a row") as caught:
            volume.read(0, slice(0, 8), slice(152, 160))
        assert caught.value.exit_code == 6


def test_a_chunk_that_is_not_there_is_the_fill_value_and_is_asked_for_once(
    tmp_path: Path, there: VolumeServer
) -> None:
    path = write_array(tmp_path / "there" / "a.zarr", pixels(), chunks=(20, 50, 35), fill_value=7)
    (path / "0.0.1").unlink()
    with open_volume(f"{there.url}/a.zarr", read_memory=1) as volume:
        for _ in range(3):
            assert (volume.read(3, slice(0, 50), slice(35, 70)) == 7).all()
            volume.read(3, slice(0, 50), slice(0, 35))  # the cache holds one block: the other one goes
        assert volume.fetched.missing == 1
    assert there.asked["a.zarr/0.0.1"] == 1


def test_a_refusal_means_missing_only_while_the_metadata_is_given(tmp_path: Path) -> None:
    path = write_array(tmp_path / "there" / "a.zarr", pixels(), chunks=(20, 50, 35), fill_value=7)
    (path / "0.0.1").unlink()
    with (
        VolumeServer(tmp_path / "there", missing=403) as server,
        open_volume(f"{server.url}/a.zarr") as volume,
    ):
        assert (volume.read(3, slice(0, 50), slice(35, 70)) == 7).all()
    with (
        VolumeServer(tmp_path / "there", missing=403) as server,
        open_volume(f"{server.url}/a.zarr") as volume,
    ):
        shutil.rmtree(path)  # from now on, everything is refused
        with pytest.raises(StorageError, match=r"0\.0\.1: the server refuses \(403\)"):
            volume.read(3, slice(0, 50), slice(35, 70))
        with pytest.raises(VolumeError, match=r"a\.zarr: the server refuses \(403\)"):
            open_volume(f"{server.url}/a.zarr")


def test_a_user_and_password_are_sent_asked_for_and_never_shown(tmp_path: Path) -> None:
    values = pixels()
    write_array(tmp_path / "there" / "a.zarr", values)
    basic = "Basic " + b64encode(b"me:secret!").decode()
    with VolumeServer(tmp_path / "there", user=basic) as server:
        with pytest.raises(VolumeError, match=r"needs a user and password \(401\)") as caught:
            open_volume(f"{server.url}/a.zarr")
        assert "USER:PASSWORD@HOST" in str(caught.value.hint)
        with pytest.raises(VolumeError, match="refuses the ones given") as caught:
            open_volume(f"{server.url}/a.zarr".replace("//", "//me:wrong-word@"))
        assert "wrong-word" not in str(caught.value)
        with open_volume(f"{server.url}/a.zarr".replace("//", "//me:secret%21@")) as volume:
            assert volume.source == f"{server.url}/a.zarr"
            np.testing.assert_array_equal(volume.read(1, slice(0, 50), slice(0, 70)), values[1])


def test_a_query_goes_along_and_is_never_shown(tmp_path: Path, there: VolumeServer) -> None:
    write_array(tmp_path / "there" / "a.zarr", pixels(), chunks=(20, 50, 70))
    with open_volume(f"{there.url}/a.zarr?token=t0ken") as volume:
        assert volume.source == f"{there.url}/a.zarr"
        there.schedule = ["busy"] * 9
        with pytest.raises(VolumeError) as caught:
            volume.read(0, slice(0, 5), slice(0, 5))
    assert all(request["path"].endswith("?token=t0ken") for request in there.seen)
    there.http.shutdown()
    there.http.server_close()
    with pytest.raises(StorageError, match=r"a\.zarr cannot be reached: ") as gone:
        open_volume(f"{there.url}/a.zarr?token=t0ken")
    assert "t0ken" not in f"{caught.value}{gone.value}"
    assert gone.value.exit_code == 6


def test_a_server_may_send_on_to_another_host_which_gets_no_password(tmp_path: Path) -> None:
    values = pixels()
    write_array(tmp_path / "there" / "a.zarr", values)
    with VolumeServer(tmp_path / "there") as other, VolumeServer(tmp_path / "there") as first:
        first.send_on = other.url.replace("127.0.0.1", "localhost")
        with open_volume(f"{first.url}/a.zarr".replace("//", "//me:secret@")) as volume:
            np.testing.assert_array_equal(volume.read(1, slice(0, 50), slice(0, 70)), values[1])
        assert all("Authorization" in request for request in first.seen)
        assert other.seen
        assert not any("Authorization" in request for request in other.seen)


def test_a_server_that_asks_for_a_pause_gets_one(tmp_path: Path, there: VolumeServer) -> None:
    write_array(tmp_path / "there" / "a.zarr", pixels(), chunks=(20, 50, 70))
    there.schedule, there.retry_after = ["many"], "1"
    started = time.perf_counter()
    with open_volume(f"{there.url}/a.zarr") as volume:
        volume.read(0, slice(0, 5), slice(0, 5))
    assert time.perf_counter() - started >= 1.0


def test_chunks_are_fetched_beside_each_other_each_once_and_never_again(
    tmp_path: Path, there: VolumeServer, chunks: Path
) -> None:
    values = pixels((24, 48, 48))
    path = write_array(tmp_path / "there" / "a.zarr", values, chunks=(8, 8, 8))
    there.wait = 0.02
    with open_volume(f"{there.url}/a.zarr", read_memory=100_000) as volume, ThreadPoolExecutor(8) as readers:
        planes = list(readers.map(lambda z: volume.read(z, slice(0, 48), slice(0, 48)), range(24)))
        np.testing.assert_array_equal(np.stack(planes), values)
        assert 4 <= there.most <= 16
    assert set(there.chunks_asked.values()) == {1}
    assert len(there.chunks_asked) == 3 * 36
    np.testing.assert_array_equal(read_once(there), values)
    assert set(there.chunks_asked.values()) == {1}
    shutil.rmtree(path)  # another volume at the same address: nothing of the old one is shown
    write_array(path, values[::-1], chunks=(8, 8, 16))
    np.testing.assert_array_equal(read_once(there), values[::-1])
    np.testing.assert_array_equal(read_once(there, chunk_cache=0), values[::-1])


def test_a_memory_smaller_than_one_crop_neither_hangs_nor_fetches_again(
    tmp_path: Path, there: VolumeServer
) -> None:
    values = pixels((16, 96, 96))
    write_array(tmp_path / "there" / "a.zarr", values, chunks=(16, 16, 16))
    with open_volume(f"{there.url}/a.zarr", read_memory=4096) as volume, ThreadPoolExecutor(4) as readers:
        planes = list(readers.map(lambda z: volume.read(z, slice(0, 96), slice(0, 96)), range(16)))
    np.testing.assert_array_equal(np.stack(planes), values)
    assert set(there.chunks_asked.values()) == {1}


def test_all_volumes_together_keep_no_more_than_they_may(
    tmp_path: Path, there: VolumeServer, chunks: Path
) -> None:
    limit = 30_000
    for name in ("a.zarr", "b.zarr"):
        write_array(tmp_path / "there" / name, pixels(), chunks=(4, 25, 35), compressors=None)
    for name in ("a.zarr", "b.zarr", "a.zarr"):
        with open_volume(f"{there.url}/{name}", chunk_cache=limit) as volume:
            np.testing.assert_array_equal(whole(volume), pixels())
        kept = [path.stat().st_size for path in chunks.rglob("*") if path.is_file()]
        assert 0 < sum(kept) <= limit
    broken = next(path for path in chunks.rglob("*") if path.is_file())
    broken.write_bytes(b"x" + broken.read_bytes()[1:])
    np.testing.assert_array_equal(read_once(there, chunk_cache=limit), pixels())
    shutil.rmtree(chunks)
    read_once(there, chunk_cache=0)
    assert not chunks.exists()


def test_of_a_sharded_array_only_the_parts_that_are_read_are_fetched(
    tmp_path: Path, there: VolumeServer
) -> None:
    values = pixels((32, 64, 64))
    path = write_array(
        tmp_path / "there" / "a.zarr", values, zarr_format=3, chunks=(8, 16, 16), shards=values.shape,
        compressors=None,
    )  # fmt: skip
    (shard,) = [found for found in path.rglob("*") if found.is_file() and found.name != "zarr.json"]
    with open_volume(f"{there.url}/a.zarr") as volume:
        np.testing.assert_array_equal(volume.read(9, slice(0, 20), slice(0, 16)), values[9, :20, :16])
        assert volume.fetched.bytes < shard.stat().st_size / 8
        assert there.chunks_asked.total() == 3  # the index once, two inner chunks
        np.testing.assert_array_equal(whole(volume), values)
        assert there.chunk_bytes <= 1.05 * shard.stat().st_size


def _planes_of(volume: Any, found: Any) -> None:
    found.put(whole(volume))


def test_a_process_that_forked_reads_on(tmp_path: Path, there: VolumeServer) -> None:
    values = pixels((8, 32, 48))
    write_array(tmp_path / "there" / "a.zarr", values, chunks=(4, 16, 16))
    with open_volume(f"{there.url}/a.zarr", read_memory=1) as volume:
        np.testing.assert_array_equal(volume.read(0, slice(0, 32), slice(0, 48)), values[0])
        forking = multiprocessing.get_context("fork")
        found = forking.Queue()
        child = forking.Process(target=_planes_of, args=(volume, found))
        child.start()
        try:
            np.testing.assert_array_equal(found.get(timeout=20), values)
        finally:
            child.kill()
            child.join()
        np.testing.assert_array_equal(whole(volume), values)


@pytest.mark.parametrize(
    ("path", "says", "hint"),
    [
        ("nothing.zarr", "holds no Zarr metadata", "cannot be listed: give the group or the array"),
        ("scan.tif", "over the network only Zarr opens", "Download"),
        ("empty", "Zarr group without OME metadata", "Give the path of the array"),
        ("broken", "zattrs is not readable as JSON", "Fetch"),
    ],
)
def test_what_is_no_volume_is_refused_with_the_reason(
    tmp_path: Path, there: VolumeServer, path: str, says: str, hint: str
) -> None:
    zarr.create_group(str(tmp_path / "there" / "empty"), zarr_format=2)
    (tmp_path / "there" / "broken").mkdir()
    (tmp_path / "there" / "broken" / ".zattrs").write_text("<html>Not here</html>")
    with pytest.raises(VolumeError, match=says) as caught:
        open_volume(f"{there.url}/{path}")
    assert hint in str(caught.value.hint)
    assert caught.value.exit_code == 2


def test_an_unknown_host_is_no_wrong_input() -> None:
    with pytest.raises(
        EmbedcacheError, match=r"127\.0\.0\.1:1/v\.zarr cannot be reached: .*refused"
    ) as caught:
        open_volume("http://127.0.0.1:1/v.zarr")
    assert caught.value.exit_code == 6


def test_what_a_killed_process_left_behind_is_cleared_away_and_what_is_being_written_is_not(
    tmp_path: Path,
) -> None:
    left, living = tmp_path / "kept" / "a.1.partial", tmp_path / "kept" / "b.2.partial"
    left.parent.mkdir()
    for path in (left, living):
        path.write_bytes(b"half")
    os.utime(left, (0, 0))
    kept = KeptFiles(tmp_path / "kept", 100)
    assert (kept.bytes, left.exists(), living.exists()) == (0, False, True)
    kept.keep("deep/c", b"chunk")
    assert bytes(KeptFiles(tmp_path / "kept", 100).read("deep/c") or b"") == b"chunk"
    assert kept.read("deep/d") is None


def test_a_command_for_copying_shows_no_password() -> None:
    line = command_line(EncodeOptions(volume="https://me:secret@host/v.zarr?token=abc", tile=512))
    assert "https://host/v.zarr" in line
    assert "secret" not in line
    assert "abc" not in line
