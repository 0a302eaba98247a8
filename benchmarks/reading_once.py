"""How often source chunks are decoded when a volume is read tile by tile: slice by slice, and in our order.

    python benchmarks/reading_once.py --folder /path/on/the/disk --planes 192 --side 1024

Made-up noise is written in several layouts. *Ours* reads every tile in the order of ``plan_reading``, with two
threads, as ``encode`` does. *Slice by slice* reads the tiles plane after plane with nothing kept from one to the
next, as a loop over 2-D images does, for the first ``--old-planes`` planes only. Each runs in a process of its
own, in turn. Prints JSON, medians by time: chunks decoded, distinct ones, times each was decoded, milliseconds
per tile, and the memory that reading took at its peak beyond what the opened volume held.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numcodecs
import numpy as np
import tifffile
import zarr
from PIL import Image

from embedcache.encode.reading import chunk_reads, plan_reading
from embedcache.geometry import Tile
from embedcache.volume import Preprocess, TileGrid, Volume, open_volume

Values = np.ndarray


@dataclass(frozen=True)
class Layout:
    """A way of storing the volume, and of cutting it."""

    write: Callable[[Path, Values], None]
    tile: int = 512
    overlap: int = 0
    channels: str = "repeat"
    ending: str = ""


def zarr_of(**options: Any) -> Callable[[Path, Values], None]:
    def write(path: Path, values: Values) -> None:
        given = {"chunks": (128, 128, 128), "zarr_format": 2, "compressors": numcodecs.Zstd(1), **options}
        zarr.create_array(str(path), shape=values.shape, dtype=values.dtype, **given)[...] = values

    return write


def hdf5(path: Path, values: Values) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("raw", data=values, chunks=(64, 128, 128), compression="lzf")


def tiff_strips(path: Path, values: Values) -> None:
    tifffile.imwrite(path, values, compression="zlib", rowsperstrip=64, metadata=None)


def images(path: Path, values: Values) -> None:
    path.mkdir()
    for number, plane in enumerate(values[:16]):
        Image.fromarray(plane).save(path / f"{number:03}.png", compress_level=1)


LAYOUTS = {
    "zarr v2, 128³": Layout(zarr_of()),
    "zarr v2, 128³, overlap 128": Layout(zarr_of(), overlap=128),
    "zarr v2, 128³, adjacent:1": Layout(zarr_of(), channels="adjacent:1"),
    "zarr v3, 128³ in shards": Layout(
        zarr_of(zarr_format=3, compressors=zarr.codecs.ZstdCodec(level=1), shards=(128, 512, 512))
    ),
    "HDF5, 64×128²": Layout(hdf5, ending=".h5"),
    "TIFF, strips": Layout(tiff_strips, ending=".tif"),
    "PNG folder": Layout(images),
}


def main() -> None:
    arguments = parse()
    if arguments.measure:
        json.dump(measure(arguments), sys.stdout)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        values = noise(arguments.planes, arguments.side)
        for number, layout in enumerate(LAYOUTS.values()):
            layout.write(Path(folder) / f"{number}{layout.ending}", values)
        del values
        found = {name: compare(Path(folder), number, arguments) for number, name in enumerate(LAYOUTS)}
    print(json.dumps({"planes": arguments.planes, "side": arguments.side, "layouts": found}, indent=2))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="where to write; default: the folder of temporary files")
    parser.add_argument("--planes", type=int, default=192)
    parser.add_argument("--side", type=int, default=1024, help="height and width of a plane")
    parser.add_argument("--old-planes", type=int, default=8, help="planes read slice by slice")
    parser.add_argument("--read-memory", type=int, default=256 << 20, help="bytes of decoded pixels kept")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", choices=["ours", "slices"], help=argparse.SUPPRESS)
    parser.add_argument("--layout", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--source", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def noise(planes: int, side: int) -> Values:
    """Noise that compresses by about a quarter, as scanned matter does."""
    generator = np.random.default_rng(0)
    values = np.empty((planes, side, side), np.uint8)
    for plane in values:
        plane[...] = np.clip(generator.normal(120, 12, (side, side)), 0, 255)
    return values


def compare(folder: Path, number: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Both ways in turn, each in new processes; medians of the rounds."""
    rounds: dict[str, list[dict[str, Any]]] = {"ours": [], "slices": []}
    source = folder / f"{number}{list(LAYOUTS.values())[number].ending}"
    for _ in range(arguments.rounds):
        for way, found in rounds.items():
            command = [
                sys.executable,
                __file__,
                "--measure",
                way,
                "--layout",
                str(number),
                "--source",
                str(source),
            ]
            command += [
                "--old-planes",
                str(arguments.old_planes),
                "--read-memory",
                str(arguments.read_memory),
            ]
            found.append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
    result = {}
    for way, found in rounds.items():
        result[way] = sorted(found, key=lambda one: one["ms_per_tile"])[len(found) // 2]
    result["ratio"] = {
        "ms_per_tile": round(result["slices"]["ms_per_tile"] / result["ours"]["ms_per_tile"], 1)
    }
    return result


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    layout = list(LAYOUTS.values())[arguments.layout]
    preprocess = Preprocess(layout.channels)
    with open_volume(arguments.source, read_memory=arguments.read_memory) as volume:
        table = table_of(volume, preprocess, TileGrid(layout.tile, layout.overlap))
        before = peak_memory()
        begin = time.perf_counter()
        way = ours if arguments.measure == "ours" else slices
        tiles, decoded, distinct = way(volume, preprocess, table, arguments.old_planes)
        seconds = time.perf_counter() - begin
        peak = peak_memory()
    return {
        "tiles": tiles,
        "decoded": decoded,
        "distinct": distinct,
        "times": round(decoded / distinct, 2),
        "ms_per_tile": round(1000 * seconds / tiles, 3),
        "peak_mib": (peak - before) >> 20,
    }


def peak_memory() -> int:
    """Most bytes that this process has held; getrusage would count those of the one that forked it too."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


def table_of(volume: Volume, preprocess: Preprocess, grid: TileGrid) -> Values:
    sizes = [volume.plane_size(plane) for plane in range(volume.n_planes)]
    return grid.table(sizes[: preprocess.n_planes(volume)], uniform=volume.uniform)


def ours(volume: Volume, preprocess: Preprocess, table: Values, _: int) -> tuple[int, int, int]:
    """Every tile in the order of its reading, by two threads."""
    reading = plan_reading(volume, preprocess, table, table[:, 0] >= 0, 64)
    volume.expect(reading)
    tiles = 0
    with ThreadPoolExecutor(2) as pool:
        for _shard, members in reading:
            for _ in pool.map(
                lambda number: preprocess.read(volume, Tile(*map(int, table[number]))), members
            ):
                tiles += 1
    return tiles, volume.reads.chunks, chunk_reads(reading).distinct


def slices(volume: Volume, preprocess: Preprocess, table: Values, planes: int) -> tuple[int, int, int]:
    """The tiles of the first planes, plane after plane, nothing kept between two tiles."""
    numbers = np.flatnonzero((table[:, 0] >= 0) & (table[:, 0] < planes))
    numbers = numbers[np.argsort(table[numbers, 0], kind="stable")]
    chunks: set[Any] = set()
    decoded = 0
    for number in numbers.tolist():
        tile = Tile(*map(int, table[number]))
        volume.cache.clear()
        preprocess.read(volume, tile)
        decoded = volume.reads.chunks
        pieces = volume.pieces
        rows, columns = (tile.y0, tile.y0 + tile.height), (tile.x0, tile.x0 + tile.width)
        around = [tile.plane] if pieces is None else pieces.around(tile.plane, rows, columns)
        chunks.update(around)
    return len(numbers), decoded, len(chunks)


if __name__ == "__main__":
    main()
