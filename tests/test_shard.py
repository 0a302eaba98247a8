"""The bytes of a shard: where each embedding lies, and no damage goes unseen."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_samples import embedding, quantised

from embedcache.errors import CorruptionError, InputError, StorageError
from embedcache.files import crc32c
from embedcache.store import layout
from embedcache.store.shards.quantise import Quantised
from embedcache.store.shards.shard import (
    FLOAT16,
    INT8,
    NOT_STORED,
    ShardFile,
    chunk_numbers,
    encode_index,
    extremes,
    form_of,
    index_bytes,
    payload,
    shard_index,
)

SLOTS = np.array([0, 2])
SHARD_TILES = 3
SIZE = FLOAT16.shard_bytes(2, SHARD_TILES)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose shard 0 holds embeddings 0 and 2."""
    root = tmp_path_factory.mktemp("store")
    index = encode_index(shard_index(SLOTS, np.arange(2), FLOAT16, SHARD_TILES))
    write_shard(root, b"".join(chunk(int(slot)) for slot in SLOTS) + index)
    return root


def write_shard(root: Path, data: bytes, shard: int = 0) -> Path:
    path = layout.shard_path(root, shard)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def chunk(seed: int) -> bytes:
    data = bytes(payload(embedding(seed)))
    return data + crc32c(data).to_bytes(4, "little")


def opened(root: Path, shard: int = 0) -> ShardFile:
    return ShardFile(root, shard, FLOAT16, SHARD_TILES)


def read(file: ShardFile, slot: int) -> tuple[np.ndarray, int]:
    out = np.empty(FLOAT16.payload_bytes, np.uint8)
    crc = file.read_into(slot, out.data)
    return out.view("<f2").reshape(256, 64, 64), crc


def test_a_shard_gives_back_what_was_put_in(root: Path) -> None:
    file = opened(root)
    for slot in (0, 2):
        values, crc = read(file, slot)
        assert np.array_equal(values, embedding(slot))
        assert crc == crc32c(payload(embedding(slot)))
    assert file.size == SIZE
    assert file.digest() == "sha256:" + hashlib.sha256(file.path.read_bytes()).hexdigest()
    file.close()
    file.close()


def test_a_slot_that_is_not_stored_is_an_error(root: Path) -> None:
    with pytest.raises(CorruptionError, match="slot 1"):
        read(opened(root), 1)


@given(st.lists(st.integers(0, 5), max_size=12), st.data())
@settings(deadline=None)
def test_tiles_of_equal_keys_share_the_chunk_of_the_first(keys: list[int], data: st.DataObject) -> None:
    slots = np.array(sorted(data.draw(st.permutations(range(16)))[: len(keys)]), np.int64)
    chunks = chunk_numbers(keys)
    index = shard_index(slots, chunks, INT8, 16)
    firsts = list(dict.fromkeys(keys))
    for slot, key in zip(slots, keys, strict=True):
        assert index[slot].tolist() == [firsts.index(key) * INT8.chunk_bytes, INT8.chunk_bytes]
    others = np.setdiff1d(np.arange(16), slots)
    assert (index[others] == NOT_STORED).all()
    encoded = encode_index(index)
    assert len(encoded) == index_bytes(16)
    assert np.array_equal(np.frombuffer(encoded[:-4], "<u8").reshape(16, 2), index)


@given(bit=st.integers(0, 8 * SIZE - 1))
@settings(max_examples=60, deadline=None)
def test_any_flipped_bit_is_found(root: Path, bit: int) -> None:
    data = bytearray(layout.shard_path(root, 0).read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    write_shard(root, bytes(data), shard=1)
    with pytest.raises(CorruptionError):
        read_all(root, shard=1)


@given(size=st.integers(0, SIZE - 1))
@settings(max_examples=30, deadline=None)
def test_any_cut_is_found(root: Path, size: int) -> None:
    write_shard(root, layout.shard_path(root, 0).read_bytes()[:size], shard=2)
    with pytest.raises(CorruptionError):
        read_all(root, shard=2)


@given(st.integers(0, NOT_STORED), st.integers(0, NOT_STORED))
@settings(max_examples=60, deadline=None)
def test_an_index_may_point_anywhere_and_nothing_but_whole_chunks_is_read(
    root: Path, offset: int, length: int
) -> None:
    index = shard_index(SLOTS, np.arange(2), FLOAT16, SHARD_TILES)
    index[0] = offset, length
    data = layout.shard_path(root, 0).read_bytes()[: 2 * FLOAT16.chunk_bytes] + encode_index(index)
    write_shard(root, data, shard=3)
    if (offset, length) not in ((0, FLOAT16.chunk_bytes), (FLOAT16.chunk_bytes, FLOAT16.chunk_bytes)):
        with pytest.raises(CorruptionError):
            read(opened(root, 3), 0)
    assert np.array_equal(read(opened(root, 3), 2)[0], embedding(2))


@pytest.mark.parametrize("offset", [1, FLOAT16.chunk_bytes + 1, SIZE, 2**63, NOT_STORED])
def test_an_index_with_the_right_length_may_point_anywhere_too(
    tmp_path: Path, root: Path, offset: int
) -> None:
    index = shard_index(SLOTS, np.arange(2), FLOAT16, SHARD_TILES)
    index[0, 0] = offset
    write_shard(
        tmp_path, layout.shard_path(root, 0).read_bytes()[: 2 * FLOAT16.chunk_bytes] + encode_index(index)
    )
    with pytest.raises(CorruptionError):
        read(opened(tmp_path), 0)


def test_a_damaged_index_costs_no_chunk(tmp_path: Path, root: Path) -> None:
    write_shard(tmp_path, layout.shard_path(root, 0).read_bytes()[: 2 * FLOAT16.chunk_bytes])
    out = bytearray(FLOAT16.payload_bytes)
    file = opened(tmp_path)
    assert file.read_at(FLOAT16.chunk_bytes, memoryview(out)) == crc32c(payload(embedding(2)))
    with pytest.raises(CorruptionError, match="index"):
        _ = file.index


@pytest.mark.parametrize("harm", ["missing", "file above", "link", "linked folder", "folder", "pipe"])
def test_anything_but_a_regular_file_is_corruption(tmp_path: Path, root: Path, harm: str) -> None:
    path = layout.shard_path(tmp_path, 0)
    path.parent.mkdir(parents=True)
    if harm == "file above":
        path.parent.rmdir()
        path.parent.write_bytes(b"")
    elif harm == "link":
        path.symlink_to(layout.shard_path(root, 0))
    elif harm == "linked folder":
        path.parent.rmdir()
        path.parent.symlink_to(layout.shard_path(root, 0).parent)
    elif harm == "folder":
        path.mkdir()
    elif harm == "pipe":
        os.mkfifo(path)
    with pytest.raises(CorruptionError):
        opened(tmp_path)


def test_a_refusal_of_the_system_is_not_called_corruption(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> int:
        raise OSError(5, "Input/output error")

    file = opened(root)
    monkeypatch.setattr(os, "preadv", failing)
    with pytest.raises(StorageError, match="Input/output error"):
        read(file, 0)
    monkeypatch.setattr(os, "open", failing)
    with pytest.raises(StorageError, match="Input/output error"):
        opened(root)


def test_the_forms_are_known_by_the_name_of_their_values() -> None:
    assert (form_of("float16"), form_of("int8")) == (FLOAT16, INT8)
    assert (FLOAT16.payload_bytes, INT8.chunk_bytes) == (2 << 20, (1 << 20) + 4)
    with pytest.raises(InputError, match="float8"):
        form_of("float8")


def test_an_embedding_of_another_byte_order_is_stored_little_endian() -> None:
    values = embedding(3)
    assert bytes(payload(values.astype(">f2"))) == values.astype("<f2").tobytes()
    assert bytes(payload(quantised(3))) == quantised(3).values.tobytes()


@given(
    st.lists(st.floats(width=16, allow_nan=True, allow_infinity=True), min_size=1, max_size=30),
)
def test_extremes_are_those_of_the_values_and_not_finite_when_a_value_is_not(values: list[float]) -> None:
    array = np.array(values, np.float16)
    low, high = extremes(array)
    assert np.isfinite([low, high]).all() == np.isfinite(array).all()
    if np.isfinite(array).all():
        assert (low, high) == (array.min(), array.max())


def test_extremes_of_a_quantised_embedding_are_those_of_its_floats() -> None:
    stored = quantised(4)
    floats = stored.values * stored.scales[:, None, None]
    assert extremes(stored) == (np.float16(floats.min()), np.float16(floats.max()))
    for scale in (np.nan, np.inf, 1e6):
        scales = stored.scales.copy()
        scales[7] = scale
        assert not np.isfinite(extremes(Quantised(stored.values, scales))).all()


def read_all(root: Path, shard: int) -> None:
    file = opened(root, shard)
    for slot in (0, 2):
        read(file, slot)
