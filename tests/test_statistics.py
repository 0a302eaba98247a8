"""The figures of a volume: exact, in one pass, each chunk decoded once, the same however many threads read."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import zarr
from encode_samples import Listener, change, quick
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from embedcache.errors import Interrupted, MismatchError, VolumeError
from embedcache.volume import open_volume, remembered, statistics
from embedcache.volume.normalisation import Statistics
from embedcache.volume.statistics import gather_statistics
from embedcache.volume.tally import Tally

PERCENTILES = {"p0_5": 0.5, "p1": 1, "p99": 99, "p99_5": 99.5}
TYPES = ["uint8", "int8", "uint16", "int16", "int32", "uint32", "float16", "float32", "float64"]


@pytest.fixture(autouse=True)
def memory(tmp_path, monkeypatch) -> Path:
    """Where figures are kept; nothing is written below the home folder."""
    monkeypatch.setenv("EMBEDCACHE_STATISTICS", str(tmp_path / "memory"))
    return tmp_path / "memory"


def noise(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).normal(40, 25, shape)
    if np.dtype(dtype).kind == "u":
        values = np.abs(values)
    return values.astype(dtype)


def as_zarr(folder: Path, values: np.ndarray, chunks: tuple[int, ...], **opening):
    array = zarr.create_array(
        str(folder / "v.zarr"), shape=values.shape, chunks=chunks, dtype=values.dtype, overwrite=True
    )
    array[...] = values
    return open_volume(folder / "v.zarr", **opening)


def require_figures(found: Statistics, values: np.ndarray) -> None:
    """What numpy says of the whole array at once."""
    finite = values[np.isfinite(values)].astype(np.float64)
    assert (found.count, found.left_out) == (finite.size, values.size - finite.size)
    assert (found.minimum, found.maximum) == (finite.min(), finite.max())
    np.testing.assert_allclose(found.mean, finite.mean(), rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(found.std, finite.std(), rtol=1e-9, atol=1e-9)
    exact = values.dtype.kind in "ui" and values.dtype.itemsize <= 2
    for name, share in PERCENTILES.items():
        expected = np.percentile(finite, share)
        # interpolated between two values, each of which is known to 2^-11 of itself
        room = 1e-12 if exact else 2.0**-11 * max(abs(finite.min()), abs(finite.max()))
        assert abs(getattr(found, name) - expected) <= max(room, 1e-12 * abs(expected)), name


@settings(max_examples=40, deadline=None)
@given(
    dtype=st.sampled_from(TYPES),
    shape=st.tuples(st.integers(1, 9), st.integers(1, 40), st.integers(1, 40)),
    chunk=st.tuples(st.integers(1, 9), st.integers(1, 40), st.integers(1, 40)),
    holes=st.booleans(),
    seed=st.integers(0, 99),
)
def test_one_pass_over_any_chunks_finds_what_numpy_finds_in_the_whole(dtype, shape, chunk, holes, seed):
    values = noise(shape, dtype, seed)
    if holes and dtype.startswith("float") and values.size > 4:
        values.flat[::3] = np.nan
        values.flat[1] = np.inf
    with tempfile.TemporaryDirectory() as folder, as_zarr(Path(folder), values, chunk) as volume:
        require_figures(gather_statistics(volume), values)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_a_percentile_of_floats_is_right_to_two_to_the_minus_eleven(dtype):
    """Bins are cut at the same relative distance everywhere; integers up to 16 bits have a bin each."""
    values = noise((1 << 18,), dtype) + np.array(200).astype(dtype)
    tally = Tally(values.dtype)
    for part in np.array_split(values, 7):
        tally.add(*tally.of(part))
    found = tally.figures("volume")
    for name, share in PERCENTILES.items():
        expected = np.percentile(values.astype(float), share)
        assert abs(getattr(found, name) - expected) <= (2.0**-11 if dtype == "float32" else 0) * expected


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40))
def test_floats_of_every_size_and_sign_keep_their_order(values):
    array = np.array(values, np.float32)
    tally = Tally(array.dtype)
    tally.add(*tally.of(array))
    found = tally.figures("volume")
    assert found.minimum <= found.p0_5 <= found.p1 <= found.p99 <= found.p99_5 <= found.maximum


def test_zero_and_small_whole_numbers_are_percentiles_as_they_are(tmp_path):
    """A masked background of exactly 0 must not become a tiny number above it."""
    values = np.zeros((2, 100, 100), np.float32)
    values[:, :30] = 2047.0
    found = gather_statistics(as_zarr(tmp_path, values, (1, 32, 32)))
    assert (found.p1, found.p99) == (0.0, 2047.0)


def test_sums_do_not_lose_small_differences_of_large_numbers(tmp_path):
    values = (1e9 + np.random.default_rng(0).normal(0, 1, (4, 200, 200))).astype(np.float64)
    found = gather_statistics(as_zarr(tmp_path, values, (1, 64, 64)))
    np.testing.assert_allclose(found.std, values.std(), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_the_bits_do_not_depend_on_the_number_of_threads(dtype, tmp_path, monkeypatch):
    volume = as_zarr(tmp_path, noise((9, 200, 200), dtype), (4, 32, 32))
    monkeypatch.setattr(statistics, "AT_ONCE", 1 << 12)
    found = set()
    for readers in (1, 2, 7):
        monkeypatch.setattr(statistics, "READERS", readers)
        found.add(gather_statistics(volume))
    assert len(found) == 1


def test_each_chunk_is_decoded_once_in_the_memory_that_is_allowed(tmp_path):
    values = noise((33, 200, 130), "uint16")
    limit = 1 << 20
    volume = as_zarr(tmp_path, values, (16, 32, 64), read_memory=limit)
    most = 0
    keep = volume.cache._keep

    def watched(*given) -> None:
        nonlocal most
        keep(*given)
        most = max(most, volume.cache.bytes_held)

    volume.cache._keep = watched
    require_figures(gather_statistics(volume), values)
    assert volume.reads.chunks == 3 * 7 * 3
    assert volume.reads.bytes == values.nbytes
    assert 0 < most <= limit


def test_a_collection_is_counted_image_by_image(tmp_path):
    pictures = [noise((30 + 7 * at, 50), "uint8", at) for at in range(3)]
    for at, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"{at}.png")
    found = gather_statistics(open_volume(tmp_path))
    require_figures(found, np.concatenate([picture.ravel() for picture in pictures]))


# --- inside a mask ----------------------------------------------------------------------------------------------


def mask_of(folder: Path, inside: np.ndarray) -> str:
    if inside.ndim == 2:
        Image.fromarray((inside * 255).astype(np.uint8)).save(folder / "mask.png")
        return str(folder / "mask.png")
    np.save(folder / "mask.npy", inside.astype(np.uint8))
    return str(folder / "mask.npy")


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_inside_a_mask_is_what_boolean_indexing_takes(flat, dtype, tmp_path):
    values = noise((5, 90, 70), dtype)
    inside = np.random.default_rng(3).random((90, 70) if flat else values.shape) > 0.8
    volume = as_zarr(tmp_path, values, (2, 32, 32))
    found = gather_statistics(volume, mask=mask_of(tmp_path, inside))
    require_figures(found, values[np.broadcast_to(inside, values.shape)])
    assert found.over == "mask"


@pytest.mark.parametrize("size", [(80, 60), (81, 61)])
def test_a_mask_of_half_the_size_covers_two_by_two_pixels_with_each_of_its_own(size, tmp_path):
    values = noise((2, *size), "uint16")
    small = np.random.default_rng(3).random((-(-size[0] // 2), -(-size[1] // 2))) > 0.7
    inside = np.kron(small, np.ones((2, 2), bool))[: size[0], : size[1]]
    found = gather_statistics(as_zarr(tmp_path, values, (1, 32, 32)), mask=mask_of(tmp_path, small))
    require_figures(found, values[:, inside])


def test_a_pixel_counts_where_any_pixel_of_a_larger_mask_touches_it(tmp_path):
    values = noise((2, 40, 30), "uint16")
    large = np.random.default_rng(3).random((120, 90)) > 0.95
    inside = large.reshape(40, 3, 30, 3).any(axis=(1, 3))
    found = gather_statistics(as_zarr(tmp_path, values, (1, 16, 16)), mask=mask_of(tmp_path, large))
    require_figures(found, values[:, inside])


def test_what_lies_outside_a_mask_is_not_even_read(tmp_path, monkeypatch):
    monkeypatch.setattr(statistics, "AT_ONCE", 1 << 10)
    inside = np.zeros((256, 256), bool)
    inside[5:20, 40:50] = True
    volume = as_zarr(tmp_path, noise((4, 256, 256), "uint8"), (4, 32, 32))
    gather_statistics(volume, mask=mask_of(tmp_path, inside))
    assert volume.reads.chunks == 1


def test_an_empty_mask_and_a_mask_of_another_size_are_refused(tmp_path):
    volume = as_zarr(tmp_path, noise((2, 40, 30), "uint8"), (1, 16, 16))
    with pytest.raises(VolumeError, match=r"mask.png is positive on no pixel of .*\n.*leave out ':mask'"):
        gather_statistics(volume, mask=mask_of(tmp_path, np.zeros((40, 30), bool)))
    with pytest.raises(VolumeError, match="50 × 30 pixels, the plane of"):
        gather_statistics(volume, mask=mask_of(tmp_path, np.ones((50, 30), bool)))


def test_a_volume_of_nan_has_no_figures(tmp_path):
    volume = as_zarr(tmp_path, np.full((2, 9, 9), np.nan, np.float32), (1, 9, 9))
    with pytest.raises(VolumeError, match="all 162 pixels are NaN or infinite"):
        gather_statistics(volume)


# --- in a store -------------------------------------------------------------------------------------------------


def scan(folder: Path, seed: int = 0) -> Path:
    path = folder / "scan.npy"
    np.save(path, np.random.default_rng(seed).normal(2000, 300, (4, 64, 64)).astype(np.uint16))
    return path


def test_a_store_says_from_which_figures_its_window_was_found(tmp_path):
    path, store = scan(tmp_path), tmp_path / "s.zarr"
    made = quick(path, store=store, window="global_zscore").store
    figures = made.spec.statistics
    values = np.load(path).astype(float)
    assert figures["window"] == "global_zscore"
    assert figures["mean"] == pytest.approx(values.mean())
    assert made.spec.preprocess.window == (
        figures["mean"] - 3 * figures["std"],
        figures["mean"] + 3 * figures["std"],
    )
    assert made.provenance["asked"]["window"] == "global_zscore"
    again = quick(path, store=store, window="global_zscore")
    assert (again.encoded, again.store.fingerprint) == (0, made.fingerprint)


def test_the_same_window_in_numbers_is_the_same_space_but_not_the_same_store(tmp_path):
    path = scan(tmp_path)
    made = quick(path, store=tmp_path / "a.zarr", window="ct").store
    low, high = made.spec.preprocess.window
    numbers = quick(path, store=tmp_path / "b.zarr", window=f"{low!r}:{high!r}").store
    assert numbers.spec.statistics is None
    assert numbers.embedding_space == made.embedding_space
    assert numbers.fingerprint != made.fingerprint


def test_another_volume_encoded_like_the_first_is_of_its_space(tmp_path):
    first = quick(scan(tmp_path), store=tmp_path / "a.zarr", window="global_zscore").store
    (tmp_path / "second").mkdir()
    wishes = dict(first.provenance["recipe"])
    second = quick(scan(tmp_path / "second", seed=5), store=tmp_path / "b.zarr", **wishes).store
    assert second.embedding_space == first.embedding_space
    # and the first one is found again under its own recipe, its figures untouched
    again = quick(tmp_path / "scan.npy", store=tmp_path / "a.zarr", **wishes)
    assert (again.encoded, again.store.spec.statistics) == (0, first.spec.statistics)


def test_a_changed_volume_is_seen_and_its_window_stays_when_it_is_encoded_anew(tmp_path):
    path, wishes = scan(tmp_path), {"store": tmp_path / "s.zarr", "window": "global_zscore"}
    made = quick(path, **wishes).store
    change(path, plane=2)
    with pytest.raises(MismatchError):
        quick(path, **wishes)
    renewed = quick(path, changed="reencode", **wishes)
    assert (renewed.changed, renewed.store.spec.statistics) == (1, made.spec.statistics)
    assert renewed.store.spec.preprocess == made.spec.preprocess
    assert renewed.store.spec.volume["sampled_window"] != list(made.spec.preprocess.window)
    assert quick(path, **wishes).encoded == 0


def test_widening_the_mask_keeps_the_window_of_the_first_one_and_says_so(tmp_path):
    path, mask = scan(tmp_path), np.zeros((64, 64), bool)
    mask[:32] = True
    wishes = {"store": tmp_path / "s.zarr", "window": "ct:mask"}
    made = quick(path, mask=mask_of(tmp_path, mask), z_range="0:2", **wishes).store
    assert made.spec.statistics["over"] == "mask"
    listener = Listener()
    wider = quick(path, listener, mask=mask_of(tmp_path, np.ones((64, 64), bool)), **wishes)
    assert (wider.encoded, wider.store.spec) == (2, made.spec)
    assert any("keeps the window" in line and "another mask" in line for line in listener.lines)
    with pytest.raises(VolumeError, match="--window ct:mask takes its statistics inside --mask"):
        quick(path, **wishes)


def test_a_repeated_encode_does_not_read_the_volume_again(tmp_path, memory, monkeypatch):
    """Large volumes are streamed once on a machine; the next run finds the figures."""
    monkeypatch.setattr(remembered, "SMALL_BYTES", 0)
    values = noise((8, 256, 256), "uint16")
    as_zarr(tmp_path, values, (8, 16, 16)).close()
    wishes = {"store": tmp_path / "s.zarr", "window": "global_zscore", "bbox": "0:64,0:64", "z_range": "0:1"}
    first, again = (quick(tmp_path / "v.zarr", **wishes, check_pixels=2) for _ in range(2))
    assert first.store.fingerprint == again.store.fingerprint
    assert len(list(memory.iterdir())) == 1
    reads = [0]
    gathered = statistics.gather_statistics
    monkeypatch.setattr(remembered, "gather_statistics", lambda *a, **k: reads.append(1) or gathered(*a, **k))
    quick(tmp_path / "v.zarr", **wishes)
    assert reads == [0]
    # another tile size is another store of the same figures
    quick(tmp_path / "v.zarr", **{**wishes, "store": tmp_path / "t.zarr"}, tile=32)
    assert reads == [0]


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"statistics":{"count":1},"sha256":"x"}', b"\xff"])
def test_damaged_memory_is_read_as_none(damage, memory):
    remembered.remember("k", Statistics(1, 0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0))
    assert remembered.remembered("k") is not None
    (memory / "k.json").write_bytes(damage)
    assert remembered.remembered("k") is None


def test_one_flipped_digit_in_the_memory_is_noticed(memory):
    remembered.remember("k", Statistics(10, 0, 123.0, 4.0, 1.0, 200.0, 2.0, 3.0, 190.0, 199.0))
    text = (memory / "k.json").read_text()
    (memory / "k.json").write_text(text.replace("123", "124"))
    assert remembered.remembered("k") is None


def test_changed_pixels_or_another_mask_are_not_answered_from_memory(tmp_path, memory, monkeypatch):
    from embedcache.progress import Silent

    monkeypatch.setattr(remembered, "SMALL_BYTES", 0)
    path = scan(tmp_path)
    found = [remembered.statistics_of(open_volume(path), mask=None, progress=Silent())]
    masks = [np.ones((64, 64), bool), np.eye(64, dtype=bool)]
    found += [
        remembered.statistics_of(open_volume(path), mask=mask_of(tmp_path, mask), progress=Silent())
        for mask in masks
    ]
    change(path, plane=1)
    found.append(remembered.statistics_of(open_volume(path), mask=None, progress=Silent()))
    assert len({each.mean for each in found}) == 3  # a mask of everything is everything
    assert len(list(memory.iterdir())) == 4


def test_a_signal_ends_the_pass_between_two_boxes_and_nothing_is_kept(tmp_path, memory, monkeypatch):
    monkeypatch.setattr(remembered, "SMALL_BYTES", 0)
    monkeypatch.setattr(statistics, "AT_ONCE", 1 << 12)
    asked = []
    with pytest.raises(Interrupted, match="Nothing was written yet") as interruption:
        quick(
            scan(tmp_path),
            store=tmp_path / "s.zarr",
            window="ct",
            stop=lambda: asked.append(1) or (15 if len(asked) > 1 else None),
        )
    assert interruption.value.exit_code == 128 + 15
    assert len(asked) == 2
    assert not memory.exists()
    assert not (tmp_path / "s.zarr").exists()


def test_images_added_to_a_folder_leave_its_window_as_it_is(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name, low in (("a", 10), ("b", 40)):
        Image.fromarray(noise((64, 64), "uint8", low)).save(folder / f"{name}.png")
    wishes = {"cache_dir": tmp_path / "cache", "window": "global_zscore"}
    made = quick(folder, **wishes)
    Image.fromarray(noise((64, 64), "uint8", 3) // 3).save(folder / "c.png")
    grown = quick(folder, **wishes)
    assert (made.encoded, grown.encoded, grown.store.path) == (2, 1, made.store.path)
    assert grown.store.spec == made.store.spec


def test_where_nothing_can_be_kept_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(remembered, "SMALL_BYTES", 0)
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("EMBEDCACHE_STATISTICS", str(tmp_path / "file" / "below"))
    listener = Listener()
    remembered.statistics_of(open_volume(scan(tmp_path)), mask=None, progress=listener)
    assert any("could not be kept" in line for line in listener.lines)
