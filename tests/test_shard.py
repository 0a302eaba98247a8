"""The bytes of a shard: read by Zarr, and no damage goes unseen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_samples import embedding

from embedcache.errors import CorruptionError
from embedcache.files import crc32c
from embedcache.store.shard import (
    CHUNK_BYTES,
    ShardFile,
    embedding_bytes,
    encode_index,
    extremes,
    index_bytes,
    shard_bytes,
)

SLOTS = np.array([0, 2])
SHARD_TILES = 3


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shard") / "0"
    parts = [bytes(embedding_bytes(embedding(int(slot)))) for slot in SLOTS]
    chunks = b"".join(part + crc32c(part).to_bytes(4, "little") for part in parts)
    path.write_bytes(chunks + encode_index(SLOTS, SHARD_TILES))
    return path


def test_a_shard_gives_back_what_was_put_in(shard: Path) -> None:
    opened = ShardFile(shard, SHARD_TILES)
    assert opened.slots.tolist() == [0, 2]
    for slot in (0, 2):
        values, crc = opened.read(slot)
        assert np.array_equal(values, embedding(slot))
        assert crc == crc32c(embedding_bytes(embedding(slot)))
    assert opened.size == shard_bytes(2, SHARD_TILES)


def test_a_slot_that_is_not_stored_is_an_error(shard: Path) -> None:
    with pytest.raises(CorruptionError, match="slot 1"):
        ShardFile(shard, SHARD_TILES).read(1)


@given(bit=st.integers(0, 8 * (2 * CHUNK_BYTES + index_bytes(SHARD_TILES)) - 1))
@settings(max_examples=60, deadline=None)
def test_any_flipped_bit_is_found(shard: Path, bit: int) -> None:
    data = bytearray(shard.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    damaged = shard.with_name("flipped")
    damaged.write_bytes(data)
    with pytest.raises(CorruptionError):
        read_all(damaged)


@given(size=st.integers(0, 2 * CHUNK_BYTES + index_bytes(SHARD_TILES) - 1))
@settings(max_examples=30, deadline=None)
def test_any_cut_is_found(shard: Path, size: int) -> None:
    damaged = shard.with_name("cut")
    damaged.write_bytes(shard.read_bytes()[:size])
    with pytest.raises(CorruptionError):
        read_all(damaged)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CorruptionError, match="missing"):
        ShardFile(tmp_path / "none", SHARD_TILES)


def test_an_embedding_of_another_byte_order_is_stored_little_endian() -> None:
    values = embedding(3)
    assert bytes(embedding_bytes(values.astype(">f2"))) == values.astype("<f2").tobytes()


@given(
    st.lists(st.floats(width=16, allow_nan=True, allow_infinity=True), min_size=1, max_size=30),
)
def test_extremes_are_those_of_the_values_and_not_finite_when_a_value_is_not(values: list[float]) -> None:
    array = np.array(values, np.float16)
    low, high = extremes(array)
    assert np.isfinite([low, high]).all() == np.isfinite(array).all()
    if np.isfinite(array).all():
        assert (low, high) == (array.min(), array.max())


def read_all(path: Path) -> None:
    opened = ShardFile(path, SHARD_TILES)
    for slot in (0, 2):
        opened.read(slot)
