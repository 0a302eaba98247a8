"""The documented format is enough: a reader of numpy and the standard library alone reads every kind of store."""

from __future__ import annotations

import base64
import json
import struct
import tarfile
import zlib
from pathlib import Path

import google_crc32c
import numpy as np
import plain_reader
import pytest
import tensorstore
import torch
from store_samples import DIGEST, commit, embedding, make_store, spec

from embedcache.store import EmbeddingStore
from embedcache.store.journal import compaction
from embedcache.store.shards.quantise import Quantised, quantise

FIXTURE = Path(__file__).parent / "fixtures" / "store-format-1-first.tar.xz"


def read_plainly(root: Path) -> dict[int, np.ndarray]:
    """All committed embeddings, float32, by what docs/format.md says."""
    attributes = json.loads((root / "zarr.json").read_text())["attributes"]["embedcache"]
    assert attributes["format"] == 1
    S, form = attributes["shard_tiles"], attributes["spec"]["store_dtype"]
    V = 2097152 if form == "float16" else 1048576
    lines = [(root / "journal" / "created.jsonl").read_bytes()]
    lines += [p.read_bytes() for p in (root / "journal").glob("*.jsonl") if p.name != "created.jsonl"]
    records = []
    for number, text in enumerate(lines):
        for line in text.split(b"\n")[:-1]:
            body, crc = line[: line.rindex(b',"crc32c":"')], line[-10:-2]
            assert f"{google_crc32c.value(body):08x}".encode() == crc
            record = json.loads(line)
            records.append((number > 0, record["seq"], record))
    done: dict[int, dict[int, tuple[int, int | None]]] = {}
    upto = -1
    for later, seq, record in sorted(records, key=lambda entry: entry[:2]):
        if later and seq <= upto:
            continue
        if record["kind"] == "snapshot":
            upto, done = seq, read_snapshot(root / "journal" / record["file"], S)
        if record["kind"] == "shard":
            slots, stale = bits(record["slots"], S), bits(record.get("stale") or "AAAA" * S, S)
            crcs = np.frombuffer(base64.b64decode(record["crcs"]), "<u4").tolist()
            scale_crcs = np.frombuffer(base64.b64decode(record.get("scale_crcs", "")), "<u4").tolist()
            rows = zip(np.flatnonzero(slots).tolist(), crcs, scale_crcs or [None] * len(crcs), strict=True)
            done[record["shard"]] = {slot: (crc, scale) for slot, crc, scale in rows if not stale[slot]}
        if record["kind"] == "changed":
            flags = zlib.decompress(base64.b64decode(record["stale"]["bits"]))
            for tile in range(record["stale"]["count"]):
                if flags[tile // 8] >> tile % 8 & 1:
                    done.get(tile // S, {}).pop(tile % S, None)
    found = {}
    for shard, tiles in done.items():
        for slot, (crc, scale_crc) in tiles.items():
            data = (root / f"image_embeddings/c/{shard}/0/0/0").read_bytes()
            index = data[-16 * S - 4 : -4]
            assert google_crc32c.value(index) == struct.unpack("<I", data[-4:])[0]
            offset, length = struct.unpack_from("<QQ", index, 16 * slot)
            chunk = data[offset : offset + length]
            assert length == V + 4
            assert google_crc32c.value(chunk[:-4]) == struct.unpack("<I", chunk[-4:])[0] == crc
            values = np.frombuffer(chunk[:-4], "<f2" if form == "float16" else "i1").astype(np.float32)
            values = values.reshape(256, 64, 64)
            if scale_crc is not None:
                row = (root / f"scales/c/{shard}/0").read_bytes()[1024 * slot : 1024 * (slot + 1)]
                assert google_crc32c.value(row) == scale_crc
                values = values * np.frombuffer(row, "<f4")[:, None, None]
            found[shard * S + slot] = values
    return found


def bits(text: str, count: int) -> np.ndarray:
    data = np.frombuffer(base64.b64decode(text), np.uint8)
    return np.unpackbits(data, count=count, bitorder="little").astype(bool)


def read_snapshot(path: Path, S: int) -> dict[int, dict[int, tuple[int, int | None]]]:
    data = path.read_bytes()
    end = 8 + struct.unpack_from("<Q", data)[0]
    header = json.loads(data[8:end])

    def column(name: str, dtype: str) -> np.ndarray:
        first, last = header[name]["data_offsets"]
        return np.frombuffer(data[end + first : end + last], dtype)

    crcs = column("crc", "<u4").tolist()
    scales = column("scale_crc", "<u4").tolist() if "scale_crc" in header else [None] * len(crcs)
    done: dict[int, dict[int, tuple[int, int | None]]] = {}
    for tile in np.flatnonzero(column("flags", "u1") & 127 == 1).tolist():
        done.setdefault(tile // S, {})[tile % S] = (crcs[tile], scales[tile])
    return done


def fill(store: EmbeddingStore) -> None:
    """Tiles of several shards, some the same, one replaced, one taken back and one beside it kept."""
    with store.writer() as writer:
        for tiles in ((0, 1), (2,), (4,)):
            given = {tile: embedding(0 if tile < 2 else tile) for tile in tiles}
            if store.form.dtype == "int8":
                given = {tile: quantised(values) for tile, values in given.items()}
            writer.commit_shard(tiles[0] // 2, embeddings=given, input_digests=dict.fromkeys(tiles, DIGEST))
        writer.change_source(None, [], np.arange(5) == 1)


def quantised(values: np.ndarray) -> Quantised:
    stored, scales = quantise(torch.from_numpy(values.copy())[None])
    return Quantised(stored[0].numpy(), scales[0].numpy())


@pytest.mark.parametrize("store_dtype", ["float16", "int8"])
@pytest.mark.parametrize("compact", [False, True])
def test_plain_numpy_reads_what_the_documentation_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store_dtype: str, compact: bool
) -> None:
    monkeypatch.setattr(compaction, "COMPACT_BYTES", 0 if compact else 1 << 30)
    monkeypatch.setattr(compaction, "SNAPSHOT_SHARE", 0)
    store = make_store(tmp_path, spec=spec(store_dtype=store_dtype))
    fill(store)
    assert (store.state.snapshot is not None) == compact
    found = read_plainly(tmp_path)
    assert sorted(found) == [0, 2, 4] == np.flatnonzero(store.committed).tolist()
    for tile, values in found.items():
        assert np.array_equal(values, store[tile].numpy())


@pytest.mark.parametrize("store_dtype", ["float16", "int8"])
def test_tensorstore_reads_every_array(tmp_path: Path, store_dtype: str) -> None:
    store = make_store(tmp_path, spec=spec(store_dtype=store_dtype))
    fill(store)
    arrays = ("image_embeddings", "scales") if store_dtype == "int8" else ("image_embeddings",)
    opened = []
    for name in arrays:
        kvstore = {"driver": "file", "path": str(tmp_path / name)}
        array = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}).result()
        opened.append(array.read().result().astype(np.float32))
    for tile in (0, 2, 4):
        values = opened[0][tile]
        if store_dtype == "int8":
            values = values * opened[1][tile][:, None, None]
            assert (opened[0][3] == -128).all()
            assert np.isnan(opened[1][3]).all()
        assert np.array_equal(values, store[tile].numpy())


def test_a_store_that_the_first_version_wrote_opens_reads_and_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tarfile.open(FIXTURE) as archive:
        archive.extractall(tmp_path, filter="data")
    store = EmbeddingStore.open(tmp_path / "store.zarr")
    committed = np.flatnonzero(store.committed).tolist()
    before = {tile: store[tile].clone() for tile in committed}
    assert committed
    assert store.failed
    assert store.skip_reasons
    assert (store.certificate, store.state.attributes, store.state.snapshot) == (None, None, None)
    plain = read_plainly(tmp_path / "store.zarr")
    assert all(np.array_equal(plain[tile], before[tile].numpy()) for tile in committed)
    tile = int(np.flatnonzero(~store.committed & (store.table[:, 0] >= 0))[0])
    commit(store, tile)
    with store.writer() as writer:
        writer.change_source({"kind": "npy", "other": True}, [], np.arange(len(store)) == committed[0])
    monkeypatch.setattr(compaction, "COMPACT_BYTES", 0)
    with store.writer():
        pass
    again = EmbeddingStore.open(tmp_path / "store.zarr")
    assert again.state.snapshot is not None
    assert again.spec.volume == {"kind": "npy", "other": True}
    assert np.flatnonzero(again.committed).tolist() == sorted({*committed[1:], tile})
    assert all(torch.equal(again[number], before[number]) for number in committed[1:])


def test_forty_lines_of_numpy_read_a_float16_store_and_refuse_a_damaged_one(tmp_path: Path) -> None:
    store = make_store(tmp_path, n=5, shard_tiles=2)
    commit(store, 0)
    commit(store, 1)
    commit(store, 4)
    found = plain_reader.read_store(tmp_path)
    assert {tile: embedding(tile).tobytes() for tile in (0, 1, 4)} == {
        tile: values.tobytes() for tile, values in found.items()
    }
    assert len(Path(plain_reader.__file__).read_text().splitlines()) <= 40
    with (tmp_path / "image_embeddings/c/2/0/0/0").open("r+b") as stream:
        stream.seek(99)
        stream.write(b"\x55")
    with pytest.raises(ValueError, match="tile 4 differs"):
        plain_reader.read_store(tmp_path)
