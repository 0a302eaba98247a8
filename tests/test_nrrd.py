"""NRRD as pynrrd writes it and as the format allows it: the same planes, and an error that names what is wrong."""

from __future__ import annotations

import builtins
import contextlib
from pathlib import Path
from typing import Any

import nrrd
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedcache.errors import VolumeError
from embedcache.volume import TileGrid, open_volume, resolve_preprocess, volume_identity

VALUES = np.random.default_rng(3).integers(0, 60000, (5, 30, 40)).astype(np.uint16)
WHOLE = slice(None)


def write(path: Path, values: np.ndarray = VALUES, **header: Any) -> Path:
    nrrd.write(
        str(path), values, {key.replace("_", " "): value for key, value in header.items()}, index_order="C"
    )
    return path


def by_hand(path: Path, values: np.ndarray, *lines: str, before: bytes = b"", encoding: str = "raw") -> Path:
    """A file with header lines that pynrrd does not write."""
    sizes = " ".join(str(length) for length in values.shape[::-1])
    head = ["NRRD0004", f"type: {values.dtype.name}", f"dimension: {values.ndim}", f"sizes: {sizes}",
            f"encoding: {encoding}", *lines]  # fmt: skip
    path.write_bytes("\n".join(head).encode() + b"\n\n" + before + values.tobytes())
    return path


def planes(path: Path) -> np.ndarray:
    with open_volume(path) as volume:
        return np.stack([volume.read(plane, WHOLE, WHOLE) for plane in range(volume.n_planes)])


def refusal(path: Path) -> str:
    with pytest.raises(VolumeError) as caught:
        open_volume(path).read(0, WHOLE, WHOLE)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2"])
@pytest.mark.parametrize("name", ["v.nrrd", "v.nhdr"])
def test_every_encoding_gives_the_planes_that_were_written(tmp_path: Path, encoding: str, name: str) -> None:
    path = write(tmp_path / name, encoding=encoding)
    with open_volume(path) as volume:
        assert (volume.kind, volume.n_planes, volume.plane_size(0)) == ("nrrd", 5, (30, 40))
        crop = volume.read(4, slice(2, 9), slice(3, 40))
        np.testing.assert_array_equal(crop, VALUES[4, 2:9, 3:40])
        assert not isinstance(crop, np.memmap)
    np.testing.assert_array_equal(planes(path), VALUES)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dtype=st.sampled_from(["int8", "uint8", "int16", "uint16", "int32", "uint32", "float32", "float64"]),
    order=st.sampled_from("<>"),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(4, 9)),
    encoding=st.sampled_from(["raw", "gzip"]),
)
def test_types_and_byte_orders(
    tmp_path: Path, dtype: str, order: str, shape: tuple[int, ...], encoding: str
) -> None:
    values = (np.arange(np.prod(shape)).reshape(shape) * 7 % 120).astype(np.dtype(dtype).newbyteorder(order))
    path = write(tmp_path / "v.nrrd", values, encoding=encoding)
    with open_volume(path) as volume:
        found = volume.read(shape[0] - 1, WHOLE, WHOLE)
        assert found.dtype == np.dtype(dtype)
        assert found.dtype.isnative
    np.testing.assert_array_equal(found, values[-1])


@pytest.mark.parametrize("axis", [0, 3])
def test_a_vector_of_three_is_colour_wherever_it_stands(tmp_path: Path, axis: int) -> None:
    colours = np.random.default_rng(0).integers(0, 255, (2, 8, 9, 3)).astype(np.uint8)
    stored = np.moveaxis(colours, 3, 3 - axis)
    kinds = ["domain"] * 3
    kinds.insert(axis, "RGB-color" if axis else "3-vector")
    path = write(tmp_path / "v.nrrd", np.ascontiguousarray(stored), kinds=kinds)
    assert open_volume(path).channels == 3
    np.testing.assert_array_equal(planes(path), colours)


def test_one_image_is_one_plane_and_two_channels_are_refused(tmp_path: Path) -> None:
    np.testing.assert_array_equal(planes(write(tmp_path / "v.nrrd", VALUES[0])), VALUES[:1])
    assert "is not a volume" in refusal(write(tmp_path / "w.nrrd", np.stack([VALUES, VALUES])))


def test_bytes_and_lines_before_the_pixels_are_skipped(tmp_path: Path) -> None:
    for lines, before in (
        (["byte skip: 5"], b"12345"),
        (["line skip: 2"], b"a\nbc\n"),
        (["byte skip: -1"], b"any"),
    ):
        path = by_hand(tmp_path / "v.nrrd", VALUES, "endian: little", *lines, before=before)
        np.testing.assert_array_equal(planes(path), VALUES)


@pytest.mark.parametrize(
    ("header", "size"),
    [
        ({"spacings": [2.4, 2.5, 7.0], "units": ["um"] * 3}, (7.0, 2.5, 2.4)),
        ({"spacings": [2.4, 2.5, 7.0], "units": ["mm"] * 3}, (7000.0, 2500.0, 2400.0)),
        ({"spacings": [2.4, 2.5, 7.0]}, None),
        ({"space": "left-posterior-superior", "space directions": [[0, 2, 0], [3, 0, 0], [0, 0, 4]],
          "space units": ["um"] * 3}, (4.0, 3.0, 2.0)),
        ({}, None),
    ],
)  # fmt: skip
def test_voxel_sizes_come_from_spacings_with_units(
    tmp_path: Path, header: dict[str, Any], size: tuple[float, ...] | None
) -> None:
    found = open_volume(write(tmp_path / "v.nrrd", **header)).voxel_size
    assert found == (None if size is None else pytest.approx(size))


def test_opening_reads_the_header_alone_and_a_compressed_one_is_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gzip

    from embedcache.volume import nrrd_volume

    decoded: list[int] = []

    def counted(*arguments: Any) -> Any:
        decoded.append(1)
        return gzip.open(*arguments)

    monkeypatch.setitem(nrrd_volume._OPENERS, "gzip", counted)
    volume = open_volume(write(tmp_path / "v.nrrd", encoding="gzip"))
    assert not decoded
    for plane in (0, 4, 0):
        volume.read(plane, WHOLE, WHOLE)
    assert len(decoded) == 1


def test_identity_follows_the_pixels_not_the_path(tmp_path: Path) -> None:
    def identity(path: Path) -> object:
        with open_volume(path) as volume:
            return volume_identity(volume, TileGrid(16), resolve_preprocess(volume))

    first, other = write(tmp_path / "v.nrrd"), VALUES.copy()
    other[2, 3, 4] += 1
    (tmp_path / "later.nrrd").write_bytes(first.read_bytes().replace(b"\n# ", b"\n# at another time: ", 1))
    assert (tmp_path / "later.nrrd").stat().st_size > first.stat().st_size
    assert identity(first) == identity(tmp_path / "later.nrrd")
    assert identity(first) != identity(write(tmp_path / "other.nrrd", other))


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["data file: LIST"], "several files"),
        (["data file: s%02d.raw 0 4 1"], "several files"),
        (["data file: gone.raw"], "gone.raw"),
        (["line skip: -1"], "line skip is -1"),
        (["byte skip: -7"], "byte skip -7"),
        (["byte skip: 9"], "pixels are to start at byte"),
    ],
)
def test_headers_that_cannot_be_followed_are_refused(tmp_path: Path, lines: list[str], words: str) -> None:
    assert words in refusal(by_hand(tmp_path / "v.nrrd", VALUES, *lines))


def test_encodings_and_types_that_are_not_read_are_named(tmp_path: Path) -> None:
    assert "its encoding is hex" in refusal(by_hand(tmp_path / "v.nrrd", VALUES, encoding="hex"))
    path = by_hand(tmp_path / "w.nrrd", VALUES)
    path.write_bytes(path.read_bytes().replace(b"type: uint16", b"type: block "))
    assert "of type block" in refusal(path)


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2"])
def test_a_file_that_was_cut_short_is_refused(tmp_path: Path, encoding: str) -> None:
    path = write(tmp_path / "v.nrrd", encoding=encoding)
    path.write_bytes(path.read_bytes()[:-100])
    assert "damaged" in refusal(path) or "incomplete" in refusal(path)


def test_what_is_no_nrrd_is_refused(tmp_path: Path) -> None:
    for number, data in enumerate(
        (b"", b"PK\x03\x04", b"NRRD0004\n", b"NRRD0004\ntype\n\n", b"NRRD0004\nsizes: x\n\n")
    ):
        path = tmp_path / f"{number}.nrrd"
        path.write_bytes(data)
        assert "not a readable NRRD" in refusal(path)


def test_a_missing_pynrrd_is_named_with_the_way_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "v.nrrd")
    real = builtins.__import__

    def without(wanted: str, *rest: Any) -> Any:
        if wanted == "nrrd":
            raise ImportError(wanted)
        return real(wanted, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert "pip install 'embedcache[nrrd]'" in refusal(path)


def test_a_header_that_claims_more_than_memory_holds_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "v.nrrd", encoding="gzip")
    path.write_bytes(path.read_bytes().replace(b"sizes: 40 30 5", b"sizes: 40 9999999999999999 5"))
    assert "do not fit into memory" in refusal(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(encoding=st.sampled_from(["raw", "gzip"]), data=st.data())
def test_no_damage_is_more_than_an_input_error(tmp_path: Path, encoding: str, data: st.DataObject) -> None:
    path = write(tmp_path / "v.nrrd", encoding=encoding, spacings=[1.0, 2.0, 3.0], units=["um"] * 3)
    whole = path.read_bytes()
    start = data.draw(st.integers(0, min(400, len(whole) - 1)))
    harm = data.draw(st.binary(min_size=1, max_size=9))
    path.write_bytes(
        whole[:start] if data.draw(st.booleans()) else whole[:start] + harm + whole[start + len(harm) :]
    )
    with contextlib.suppress(VolumeError), open_volume(path) as volume:
        volume.read(volume.n_planes - 1, WHOLE, WHOLE)
