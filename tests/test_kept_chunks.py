"""What is kept of volumes that are elsewhere: of the right volume, only ours, and never wrong for long."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_zarr_volume import pixels, write_array
from volume_servers import VolumeServer

from embedcache.errors import InputError, StorageError, VolumeError
from embedcache.remote import sources
from embedcache.remote.s3 import S3Source
from embedcache.remote.witness import Witness
from embedcache.volume import open_volume


@pytest.fixture(autouse=True)
def chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Chunks are kept in the test's own folder, and nobody waits long."""
    monkeypatch.setenv("EMBEDCACHE_CHUNKS", str(tmp_path / "chunks"))
    monkeypatch.setattr(sources, "PAUSES", (0.01, 0.01))
    return tmp_path / "chunks"


def first_plane(url: str, **options: int) -> np.ndarray:
    with open_volume(url, **options) as volume:
        return volume.read(0, slice(0, 50), slice(0, 70))


def test_files_that_are_not_ours_are_never_removed(tmp_path: Path, chunks: Path) -> None:
    write_array(tmp_path / "there" / "a.zarr", pixels(), chunks=(20, 50, 35), compressors=None)
    for name in ("thesis.tex", "scans/a.tif", f"{'0' * 64}/notes.txt", "old.1.partial"):
        (chunks / name).parent.mkdir(parents=True, exist_ok=True)
        (chunks / name).write_bytes(b"years of work" * 10_000)
        os.utime(chunks / name, (0, 0))
    before = {path for path in chunks.rglob("*") if path.is_file()}
    with VolumeServer(tmp_path / "there") as server:
        for _ in range(2):
            np.testing.assert_array_equal(
                first_plane(f"{server.url}/a.zarr", chunk_cache=80_000), pixels()[0]
            )
    after = {path for path in chunks.rglob("*") if path.is_file()}
    assert before < after


def test_a_refusal_soon_after_the_metadata_was_given_is_no_missing_chunk(tmp_path: Path) -> None:
    path = write_array(tmp_path / "there" / "a.zarr", pixels(), chunks=(20, 25, 35), fill_value=7)
    (path / "0.0.0").unlink()
    with (
        VolumeServer(tmp_path / "there", missing=403) as server,
        open_volume(f"{server.url}/a.zarr") as volume,
    ):
        assert (volume.read(0, slice(0, 25), slice(0, 35)) == 7).all()
        shutil.rmtree(path)  # as when a token ends: from this moment on, everything is refused
        with pytest.raises(StorageError, match=r"0\.1\.1: the server refuses \(403\)"):
            volume.read(0, slice(25, 50), slice(35, 70))


def test_one_answer_serves_all_that_were_refused_before_it() -> None:
    asked: list[int] = []
    witness = Witness(lambda: asked.append(1))
    assert witness.gives(0.0)
    assert witness.gives(1e-9)
    assert len(asked) == 1
    assert witness.gives(float("inf"))
    assert len(asked) == 2


@pytest.mark.parametrize("where", ["query", "endpoint"])
def test_volumes_of_one_name_and_the_same_metadata_are_not_mixed_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    both = pixels(), pixels()[::-1]
    for number, values in enumerate(both):
        write_array(tmp_path / str(number) / "bucket" / "a.zarr", values, chunks=(20, 50, 35))
    with VolumeServer(tmp_path / "0") as one, VolumeServer(tmp_path / "1") as other:
        for number, (server, values) in enumerate(zip((one, other), both, strict=True)):
            if where == "query":  # of one server, to which the query says which
                one.files = tmp_path / str(number)
                address = f"{one.url}/bucket/a.zarr?version={number}"
            else:
                monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
                monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
                address = "s3://bucket/a.zarr"
            with open_volume(address, anon=None if where == "query" else True) as volume:
                np.testing.assert_array_equal(volume.read(0, slice(0, 50), slice(0, 70)), values[0])


def test_a_chunk_that_was_kept_damaged_is_fetched_again(tmp_path: Path) -> None:
    path = write_array(tmp_path / "there" / "a.zarr", pixels(), chunks=(20, 50, 70))
    good = (path / "0.0.0").read_bytes()
    (path / "0.0.0").write_bytes(b"<html>Log in first</html>")
    with VolumeServer(tmp_path / "there") as server:
        with pytest.raises(VolumeError, match="cannot be read"):
            first_plane(f"{server.url}/a.zarr")
        (path / "0.0.0").write_bytes(good)
        np.testing.assert_array_equal(first_plane(f"{server.url}/a.zarr"), pixels()[0])
        asked = server.chunks_asked.total()
        np.testing.assert_array_equal(first_plane(f"{server.url}/a.zarr"), pixels()[0])
        assert server.chunks_asked.total() == asked


def test_files_that_a_server_sends_compressed_are_decompressed(tmp_path: Path) -> None:
    values = pixels()
    write_array(tmp_path / "there" / "a.zarr", values, chunks=(20, 50, 35), compressors=None)
    with VolumeServer(tmp_path / "there", encoding="gzip") as server:
        np.testing.assert_array_equal(first_plane(f"{server.url}/a.zarr"), values[0])


def test_a_server_that_has_every_name_is_not_asked_for_ever() -> None:
    with VolumeServer(lambda name: b"{}") as server:
        with pytest.raises(VolumeError, match="cannot be opened"):
            open_volume(f"{server.url}/group/0")
        assert server.asked.total() < 500


def test_a_secret_in_an_address_that_names_no_bucket_is_not_shown() -> None:
    with pytest.raises(InputError, match="names no bucket") as caught:
        S3Source("s3://KEY:s3cret@/a.zarr?token=t0ken")
    assert "s3cret" not in str(caught.value)
    assert "t0ken" not in str(caught.value)
