from __future__ import annotations

import builtins
import contextlib
import functools
import sys
import tempfile
import threading
import tracemalloc
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from embedcache.errors import VolumeError
from embedcache.volume import (
    Preprocess,
    TileGrid,
    open_volume,
    pixel_digest,
    resolve_preprocess,
    volume_identity,
)
from embedcache.volume.cache import BlockCache
from embedcache.volume.folder import natural_key
from embedcache.volume.pieces import Piece

VALUES = np.random.default_rng(1).integers(0, 255, (6, 30, 40)).astype(np.uint8)
WHOLE = slice(None)


def npy(path: Path, values: np.ndarray = VALUES) -> Path:
    np.save(path, values)
    return path


def identity(path: Path, *, tile: int = 16, channels: str | None = None) -> dict[str, object]:
    with open_volume(path) as volume:
        return volume_identity(volume, TileGrid(tile), resolve_preprocess(volume, channels=channels))


# --- what opens, and what does not --------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["uint8", ">u2", "<f4"])
def test_npy_is_read_through_a_memory_map(tmp_path: Path, dtype: str, order: str) -> None:
    volume = open_volume(npy(tmp_path / "v.npy", np.asarray(VALUES.astype(dtype), order=order)))
    assert (volume.kind, volume.n_planes, volume.plane_size(0), volume.chunks) == ("npy", 6, (30, 40), None)
    crop = volume.read(4, slice(2, 9), slice(3, 40))
    assert crop.dtype.isnative
    np.testing.assert_array_equal(crop, VALUES[4, 2:9, 3:40])
    assert not isinstance(crop, np.memmap)


def test_a_flat_npy_is_one_plane_and_a_coloured_one_is_colour(tmp_path: Path) -> None:
    assert open_volume(npy(tmp_path / "a.npy", VALUES[0])).n_planes == 1
    colour = open_volume(npy(tmp_path / "b.npy", VALUES[:, :, :39].reshape(6, 30, 13, 3)))
    assert (colour.n_planes, colour.channels, colour.plane_size(0)) == (6, 3, (30, 13))
    one = open_volume(npy(tmp_path / "c.npy", VALUES[0, :, :39].reshape(30, 13, 3)))
    assert (one.n_planes, one.channels, one.plane_size(0)) == (1, 3, (30, 13))


@pytest.mark.parametrize("chunks", [None, (2, 10, 10)])
def test_hdf5_is_read_by_file_and_dataset(tmp_path: Path, chunks: tuple[int, ...] | None) -> None:
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file.create_dataset("group/raw", data=VALUES, chunks=chunks, compression="gzip" if chunks else None)
        file.create_dataset("other", data=VALUES[::-1])
    with open_volume(f"{tmp_path}/v.h5:group/raw") as volume:
        assert (volume.kind, volume.chunks, volume.n_planes) == ("hdf5", chunks, 6)
        np.testing.assert_array_equal(volume.read(5, slice(1, 29), slice(7, 9)), VALUES[5, 1:29, 7:9])
    with open_volume(tmp_path / "v.h5") as only:  # one array at the top: no name is needed
        np.testing.assert_array_equal(only.read(0, WHOLE, WHOLE), VALUES[5])
    with pytest.raises(VolumeError, match="holds no array 'nothing'") as error:
        open_volume(f"{tmp_path}/v.h5:nothing")
    assert "Arrays at its top: other" in str(error.value)
    with pytest.raises(VolumeError, match="holds no array 'group'"):
        open_volume(f"{tmp_path}/v.h5:group")
    with pytest.raises(VolumeError, match="does not exist"):
        open_volume(tmp_path / "none.h5")


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz"])
@pytest.mark.parametrize("slope", [None, 2.0])
def test_nifti_is_read_as_planes_along_its_third_axis(tmp_path: Path, name: str, slope: float | None) -> None:
    image = nibabel.Nifti1Image(VALUES.T.astype(np.int16), np.eye(4))
    if slope:
        image.header.set_slope_inter(slope, 1)
    nibabel.save(image, tmp_path / name)
    volume = open_volume(tmp_path / name)
    assert (volume.kind, volume.n_planes, volume.plane_size(0)) == ("nifti", 6, (30, 40))
    found = volume.read(4, slice(2, 9), slice(3, 40))
    expected = np.asarray(nibabel.load(tmp_path / name).dataobj).T[4, 2:9, 3:40]
    np.testing.assert_allclose(found, expected)
    assert found.dtype == (np.float32 if slope else np.int16)


@pytest.mark.parametrize(("module", "name"), [("h5py", "v.h5"), ("nibabel", "v.nii")])
def test_a_missing_reader_is_named_with_the_way_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, name: str
) -> None:
    (tmp_path / name).write_bytes(b"")
    real = builtins.__import__

    def without(wanted: str, *rest: object) -> object:
        if wanted == module:
            raise ImportError(wanted)
        return real(wanted, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(VolumeError, match=f"needs {module}, which is not installed") as error:
        open_volume(tmp_path / name)
    assert "pip install 'embedcache[" in str(error.value)


@pytest.mark.parametrize("name", ["v.npy", "v.h5", "v.nii", "v.nii.gz", "v.tif", "v.png"])
def test_files_that_are_not_what_they_are_called_are_input_errors(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"this is text, not pixels, and long enough to be read as a header" * 9)
    with pytest.raises(VolumeError, match=name) as error:
        open_volume(tmp_path / name).read(0, WHOLE, WHOLE)
    assert error.value.exit_code == 2


@pytest.mark.parametrize("shape", [(), (5,), (0, 3, 4), (2, 3, 4, 5)])
def test_arrays_that_hold_no_planes_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(VolumeError, match=r"is empty|is not a volume"):
        open_volume(npy(tmp_path / "v.npy", np.zeros(shape)))
    with pytest.raises(VolumeError, match="path of the volume is empty"):
        open_volume("")


def test_a_missing_path_is_refused_and_the_nearest_folder_named(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="does not exist") as error:
        open_volume(tmp_path / "nowhere" / "v.zarr")
    assert f"nearest folder that exists is {tmp_path}" in str(error.value)


def test_an_empty_folder_and_an_unknown_ending_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="is empty"):
        open_volume(tmp_path)
    (tmp_path / "v.docx").write_bytes(b"x")
    with pytest.raises(VolumeError, match="holds neither Zarr metadata"):
        open_volume(tmp_path)
    with pytest.raises(VolumeError, match=r"end in '\.docx' are not known") as error:
        open_volume(tmp_path / "v.docx")
    assert "OME-Zarr" in str(error.value)


def test_what_is_no_zarr_at_an_address_is_refused_and_file_urls_are_paths(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="over the network only Zarr opens"):
        open_volume("https://127.0.0.1/v.tif")
    assert open_volume(f"file://{npy(tmp_path / 'v.npy')}").n_planes == 6


def test_levels_of_something_without_a_pyramid_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="no pyramid: only level 0 is there, not level 1"):
        open_volume(npy(tmp_path / "v.npy"), level=1)


def test_an_array_has_no_image_records(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="not a collection"):
        open_volume(npy(tmp_path / "v.npy")).image_record(0)


def test_opening_an_image_loads_no_reader_that_it_does_not_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(VALUES[0]).save(tmp_path / "a.npy.png")
    heavy = ("h5py", "nibabel", "zarr", "embedcache.volume.zarr_volume", "embedcache.volume.array_volume")
    for name in heavy:
        monkeypatch.delitem(sys.modules, name, raising=False)
    with open_volume(tmp_path / "a.npy.png"):
        pass
    assert {name for name in heavy if name in sys.modules} <= {"embedcache.volume.array_volume"}
    open_volume(npy(tmp_path / "v.npy"))
    assert not {"h5py", "nibabel", "zarr"} & set(sys.modules)


@pytest.mark.parametrize("link", ["soft", "external"])
def test_a_dangling_link_in_hdf5_hides_no_array_beside_it(tmp_path: Path, link: str) -> None:
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file.create_dataset("raw", data=VALUES)
        file["away"] = h5py.SoftLink("/none") if link == "soft" else h5py.ExternalLink("none.h5", "/x")
    assert open_volume(tmp_path / "v.h5").n_planes == 6
    with pytest.raises(VolumeError, match="holds no array 'away'"):
        open_volume(f"{tmp_path}/v.h5:away")


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied"), OSError(36, "File name too long")]
)
def test_a_path_that_the_system_refuses_is_an_input_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    path = npy(tmp_path / "v.npy")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "exists", refuse)
        with pytest.raises(VolumeError, match=r"v\.npy cannot be opened") as caught:
            open_volume(path)
    assert ("owner and mode" in str(caught.value)) == isinstance(error, PermissionError)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["v.npy", "v.nii", "v.nii.gz", "v.h5", "v.tif", "lzw.tif", "v.png"]), data=st.data()
)
def test_no_damage_of_a_file_is_more_than_an_input_error(
    tmp_path: Path, kind: str, data: st.DataObject
) -> None:
    whole = damageable(kind)
    start = data.draw(st.integers(0, len(whole) - 1))
    harm = data.draw(st.binary(min_size=1, max_size=9))
    cut = data.draw(st.booleans())
    (tmp_path / kind).write_bytes(whole[:start] if cut else whole[:start] + harm + whole[start + len(harm) :])
    with contextlib.suppress(VolumeError), open_volume(tmp_path / kind) as volume:
        volume.read(volume.n_planes - 1, WHOLE, WHOLE)


@functools.cache
def damageable(kind: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / kind
        if kind.endswith(".npy"):
            np.save(path, VALUES)
        elif kind.endswith((".nii", ".gz")):
            nibabel.save(nibabel.Nifti1Image(VALUES.T, np.eye(4)), path)
        elif kind.endswith(".h5"):
            with h5py.File(path, "w") as file:
                file.create_dataset("raw", data=VALUES, chunks=(1, 15, 20), compression="gzip")
        elif kind == "v.tif":
            tifffile.imwrite(path, VALUES, photometric="minisblack", compression="zlib")
        else:
            Image.fromarray(VALUES[0]).save(
                path, **({"compression": "tiff_lzw"} if kind == "lzw.tif" else {})
            )
        return path.read_bytes()


def test_names_sort_as_people_count() -> None:
    names = ["10.tif", "2.tif", "1.tif", "a2b10.tif", "a2b9.tif", "02.tif"]
    assert sorted(names, key=natural_key) == ["1.tif", "02.tif", "2.tif", "10.tif", "a2b9.tif", "a2b10.tif"]


# --- identity -----------------------------------------------------------------------------------------------


def test_identity_does_not_depend_on_the_path(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    first, second = npy(tmp_path / "v.npy"), npy(tmp_path / "elsewhere" / "w.npy")
    assert identity(first) == identity(second)


@pytest.mark.parametrize("place", [(0, 0, 0), (5, 29, 39), (3, 17, 2)])
def test_any_changed_pixel_of_a_small_volume_changes_its_identity(
    tmp_path: Path, place: tuple[int, int, int]
) -> None:
    before = identity(npy(tmp_path / "v.npy"))
    changed = VALUES.copy()
    changed[place] ^= 1
    after = identity(npy(tmp_path / "v.npy", changed))
    assert {key for key in before if before[key] != after[key]} == {"pixels"}


def test_identity_of_a_large_volume_reads_little_of_it(tmp_path: Path) -> None:
    path = tmp_path / "huge.zarr"
    zarr.create_array(
        str(path), shape=(14376, 7888, 8096), chunks=(128, 128, 128), dtype="uint8", zarr_format=2
    )
    with open_volume(path) as volume:
        found = volume_identity(volume, TileGrid(1024), Preprocess("repeat"))
    assert found["shape"] == [14376, 7888, 8096]
    assert len(found["pixels"]) == len("sha256:") + 64


def test_identity_of_a_composite_covers_the_planes_that_are_averaged(tmp_path: Path) -> None:
    recipe = "depth:0-1,2-3,4-5"
    before = identity(npy(tmp_path / "v.npy"), channels=recipe)
    changed = VALUES.copy()
    changed[4] += 1
    assert identity(npy(tmp_path / "v.npy", changed), channels=recipe)["pixels"] != before["pixels"]


def test_a_collection_is_told_apart_by_its_image_table_alone(tmp_path: Path) -> None:
    Image.fromarray(VALUES[0]).save(tmp_path / "a.png")
    expected = {"kind": "images", "dtype": "uint8", "channels": 1}
    assert identity(tmp_path) == expected
    Image.fromarray(VALUES[1, :9]).save(tmp_path / "b.png")
    assert identity(tmp_path) == expected


def test_pixel_digests_tell_type_and_shape_apart_but_not_byte_order_or_strides() -> None:
    values = np.arange(12, dtype=np.uint16).reshape(3, 4)
    assert pixel_digest(values) == pixel_digest(values.astype(">u2")) == pixel_digest(values.T.copy().T)
    others = [values.reshape(4, 3), values.astype(np.int16), values.T, values + 1]
    assert len({pixel_digest(other) for other in [values, *others]}) == 5


# --- the cache ----------------------------------------------------------------------------------------------


def plane(number: int) -> Piece:
    return Piece(number, number + 1, 0, 1, 0, 1)


def test_the_cache_stays_within_its_bound_and_keeps_the_newest() -> None:
    cache = BlockCache(100)
    made: list[int] = []

    def block(key: int, size: int) -> np.ndarray:
        def make() -> np.ndarray:
            made.append(key)
            return np.zeros(size, np.uint8)

        return cache.get(plane(key), make)

    for key in range(4):
        block(key, 40)
        assert cache.bytes_held <= 100
    block(3, 40)
    block(2, 40)
    assert made == [0, 1, 2, 3]
    block(9, 500)
    block(9, 500)
    assert made == [0, 1, 2, 3, 9]
    assert cache.bytes_held == 500
    cache.clear()
    assert cache.bytes_held == 0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=60), st.integers(1, 5))
def test_a_cache_that_knows_what_comes_decodes_no_more_than_the_best_order_of_letting_go(
    reads: list[int], room: int
) -> None:
    cache, made = BlockCache(room), []
    cache.expect(lambda piece: [(at, 1) for at, number in enumerate(reads) if number == piece.z0])
    for number in reads:
        cache.get(plane(number), lambda number=number: made.append(number) or np.zeros(1, np.uint8))
        assert cache.bytes_held <= room
    assert cache.bytes_held == 0
    held: list[int] = []
    least = 0
    for at, number in enumerate(reads):  # Belady: out goes what is read again last
        if number not in held:
            least += 1
            if len(held) == room:
                held.remove(max(held, key=lambda old: [*reads[at:], old].index(old)))
            held.append(number)
    assert len(made) <= least


def test_what_is_known_of_blocks_that_went_goes_too() -> None:
    cache = BlockCache(1 << 30)
    cache.expect(lambda piece: [(piece.z0, 1), (piece.z0 + 1, 1), (piece.z0 + 2, 1)])
    tracemalloc.start()
    for number in range(20_000):
        for back in range(min(number, 2), -1, -1):
            cache.get(plane(number - back), lambda: np.zeros(1, np.uint8))
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert cache.reads.chunks == 20_000
    assert used < 1_000_000


def test_blocks_whose_tiles_failed_do_not_stay_for_ever() -> None:
    cache = BlockCache(10)
    cache.expect(lambda piece: [(piece.z0, 2), (piece.z0 + 1, 1)])
    for number in range(60):
        cache.get(plane(number), lambda: np.zeros(4, np.uint8))  # once instead of three times
        assert cache.bytes_held <= 10
    assert cache.bytes_held > 0
    cache.expect(None)
    cache.get(plane(99), lambda: np.zeros(9, np.uint8))
    assert cache.bytes_held == 9


def test_a_block_that_several_threads_want_is_made_once() -> None:
    cache, made, start = BlockCache(), [], threading.Event()

    def make() -> np.ndarray:
        made.append(1)
        threading.Event().wait(0.05)
        return np.zeros(3)

    def work() -> None:
        start.wait()
        cache.get(plane(0), make)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    start.set()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_a_block_that_could_not_be_made_is_tried_again() -> None:
    cache = BlockCache()

    def fail() -> np.ndarray:
        raise OSError("first time")

    with pytest.raises(OSError, match="first time"):
        cache.get(plane(0), fail)
    assert cache.get(plane(0), lambda: np.ones(2)).sum() == 2
