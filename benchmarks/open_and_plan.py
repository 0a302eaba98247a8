"""Opening and planning a large store: seconds, and megabytes beyond imports, in a fresh process.

    python benchmarks/open_and_plan.py --tiles 1200000

The store is whole but for its embeddings: tile table, journal with a record for each shard, as ``encode`` would
have left it. It is measured as it is then (``lines``) and after its next writer has compacted the journal
(``compacted``). Each runs in processes of its own: open the store, read its tile table, select all, plan.
"""

from __future__ import annotations

import argparse
import base64
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr

from embedcache.encode.plan import plan_encode
from embedcache.encode.survey import selected_tiles
from embedcache.store import EmbeddingStore, EncodeSpec
from embedcache.store.journal.lines import MAIN, encode_line
from embedcache.store.journal.packing import pack_flags
from embedcache.store.shards.shard import FLOAT16
from embedcache.volume import Preprocess, Selection, TileGrid, open_volume

TILES_PER_PLANE = 100
DONE = 0.9
"""Share of the shards that are committed."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiles", type=int, default=1_200_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where to make the store; by default a temporary one")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    return parser.parse_args()


def make(folder: Path, tiles: int) -> Path:
    """A store of so many tiles whose embeddings are missing; reading metadata never notices."""
    side = 1024 * round(TILES_PER_PLANE**0.5)
    shape = (tiles // TILES_PER_PLANE, side, side)
    zarr.create_array(
        folder / "volume.zarr", shape=shape, chunks=(128, 128, 128), dtype="uint8", zarr_format=2
    )
    preprocess, grid = Preprocess("repeat", (0.0, 255.0)), TileGrid(1024)
    spec = EncodeSpec(
        model_type="vit_b",
        encoder_digest="sha256:" + "0" * 64,
        precision="fp32",
        preprocess=preprocess,
        volume={"kind": "zarr", "shape": list(shape), "dtype": "uint8"},
        grid=grid,
    )
    store = EmbeddingStore.create(
        folder / "store.zarr",
        spec=spec,
        table=grid.table_uniform(*shape),
        decoder_state={"prompt_encoder.a": torch.zeros(4)},
        provenance={"source": "made up"},
    )
    lines = [
        {"kind": "numerics", "numerics": {"batch": 1}},
        {"kind": "selection", "selection": {}, "wanted": pack_flags(store.table[:, 0] >= 0)},
    ]
    lines += [shard_line(store, shard) for shard in range(int(store.n_shards * DONE))]
    with (store.path / "journal" / MAIN).open("w") as stream:
        for sequence, line in enumerate(lines, start=store.state.sequence + 1):
            stream.write(encode_line({**line, "seq": sequence}) + "\n")
    return store.path


def shard_line(store: EmbeddingStore, shard: int) -> dict[str, Any]:
    rng = np.random.default_rng(shard)
    first = shard * store.shard_tiles
    there = store.table[first : first + store.shard_tiles, 0] >= 0
    flags = np.zeros(store.shard_tiles, np.bool_)
    flags[: len(there)] = there
    n = int(flags.sum())
    return {
        "kind": "shard",
        "shard": shard,
        "slots": text(np.packbits(flags, bitorder="little").tobytes()),
        "crcs": text(rng.bytes(4 * n)),
        "min": text(np.full(n, -1, "<f2").tobytes()),
        "max": text(np.full(n, 1, "<f2").tobytes()),
        "inputs": text(rng.bytes(32 * n)),
        "skipped": {},
        "failed": {},
        "digest": f"sha256:{rng.bytes(32).hex()}",
        "bytes": FLOAT16.shard_bytes(n, store.shard_tiles),
        "numerics": 0,
        "writer": "process 1 on nowhere",
        "seconds": {"encode": 1.0, "read": 0.1},
    }


def text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def measure(path: Path) -> dict[str, float]:
    """In this process, which has done nothing yet but import."""
    volume = open_volume(path.parent / "volume.zarr")
    before = resident_megabytes()
    begin = time.perf_counter()
    store = EmbeddingStore.open(path)
    opened = time.perf_counter()
    selected = selected_tiles(store.table, Selection(), volume)
    plan = plan_encode(store.table, selected, store.committed | store.skipped, store.shard_tiles)
    todo = sum(len(members) for _, members in plan.shards())
    end = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    assert todo == int(plan.missing.sum()) > 0
    return {"seconds": end - begin, "seconds_open": opened - begin, "megabytes": peak - before}


def resident_megabytes() -> float:
    """What the imports have left in memory, rather than their peak: the stricter of the two."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS")


def measured(path: Path, rounds: int) -> dict[str, float]:
    """The median of several fresh processes, and the largest memory."""
    found = []
    for _ in range(rounds):
        command = [sys.executable, __file__, "--measure", str(path)]
        found.append(json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout))
    figures = {name: round(statistics.median(one[name] for one in found), 3) for name in found[0]}
    return {**figures, "megabytes": round(max(one["megabytes"] for one in found), 1)}


def main() -> None:
    arguments = parse()
    if arguments.measure:
        print(json.dumps(measure(Path(arguments.measure))))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = make(Path(folder), arguments.tiles)
        journal = sum(file.stat().st_size for file in (path / "journal").glob("*.jsonl"))
        lines = measured(path, arguments.rounds)
        begin = time.perf_counter()
        with EmbeddingStore.open(path).writer():
            pass
        compacting = time.perf_counter() - begin
        snapshot = sum(file.stat().st_size for file in (path / "journal").glob("snapshot-*"))
        figures = {
            "tiles": arguments.tiles,
            "lines": {"journal_bytes": journal, **lines},
            "compacted": {"snapshot_bytes": snapshot, **measured(path, arguments.rounds)},
            "seconds_compacting": round(compacting, 2),
        }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
