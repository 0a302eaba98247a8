"""Forty lines that read a float16 store from docs/format.md alone: numpy, json and a CRC."""

import base64
import json
from pathlib import Path

import numpy as np
from google_crc32c import value as crc32c


def read_store(root: Path) -> dict[int, np.ndarray]:
    """Every committed embedding, float16 (256, 64, 64), by tile number."""
    attributes = json.loads((root / "zarr.json").read_text())["attributes"]["embedcache"]
    if attributes["format"] != 1 or attributes["spec"]["store_dtype"] != "float16":
        raise ValueError("a store of format 1 and float16 is needed")
    shard_tiles, newest = attributes["shard_tiles"], {}
    for path in (root / "journal").glob("*.jsonl"):
        for line in path.read_bytes().split(b"\n")[:-1]:  # what follows the last line break is torn
            if line[-10:-2] != b"%08x" % crc32c(line[: line.rindex(b',"crc32c":"')]):
                raise ValueError(f"{path}: a line differs from its checksum")
            record = json.loads(line)
            if record["kind"] in ("snapshot", "changed"):
                raise ValueError("a journal that was compacted or whose source changed needs a fuller reader")
            if record["kind"] == "shard" and record["seq"] >= newest.get(record["shard"], record)["seq"]:
                newest[record["shard"]] = record
    found = {}
    for shard, record in newest.items():
        flags = np.frombuffer(base64.b64decode(record["slots"]), np.uint8)
        slots = np.flatnonzero(np.unpackbits(flags, bitorder="little"))
        recorded = np.frombuffer(base64.b64decode(record["crcs"]), "<u4")
        data = (root / f"image_embeddings/c/{shard}/0/0/0").read_bytes() if len(slots) else b""
        index = np.frombuffer(data[len(data) - 16 * shard_tiles - 4 : -4], "<u8").reshape(-1, 2)
        for slot, crc in zip(slots.tolist(), recorded.tolist(), strict=True):
            offset, length = index[slot].tolist()
            payload = data[offset : offset + length - 4]
            if crc32c(payload) != crc:
                raise ValueError(f"tile {shard * shard_tiles + slot} differs from its record")
            found[shard * shard_tiles + slot] = np.frombuffer(payload, "<f2").reshape(256, 64, 64)
    return found
