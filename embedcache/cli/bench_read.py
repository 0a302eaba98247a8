"""The command that measures reading: bench read."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING

import click

from embedcache.cli.bench import bench
from embedcache.cli.common import json_option
from embedcache.cli.output import print_json, print_pairs, print_table
from embedcache.cli.signals import stop_at_once
from embedcache.progress import Terminal

if TYPE_CHECKING:
    from embedcache.bench.reads import ReadBench


@bench.command(
    name="read",
    short_help="Shuffled reads of embeddings: ours, memmap, and other libraries.",
    epilog="Example: embedcache bench read --folder /data --rounds 15",
)
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="On the disk to be measured; nothing stays there.  [default: that of temporary files]",
)
@click.option("--tiles", type=int, default=256, show_default=True, help="Embeddings of a pass, 2 MiB each.")
@click.option("--batch-size", "batch", type=int, default=32, show_default=True, help="Embeddings of a batch.")
@click.option("--rounds", type=int, default=7, show_default=True, help="Turns that each way takes.")
@click.option("--only", multiple=True, metavar="NAME", help="Only this way; may be repeated.")
@json_option
def bench_read(
    as_json: bool, folder: Path | None, tiles: int, batch: int, rounds: int, only: tuple[str, ...]
) -> None:
    """Measure how fast embeddings are read in random order, into memory that is there, in turns.

    Out of the system's cache: memmap, plain reads, the store's reader checked always, once and never, tensorstore
    and zarr-python; and from the disk, with the cache emptied. Each stands beside memmap, or beside plain reads
    from the disk, with as many threads.
    """
    from embedcache.bench.reads import bench_reads

    with stop_at_once():
        found = bench_reads(Terminal(), tiles=tiles, batch=batch, rounds=rounds, folder=folder, only=only)
    if as_json:
        print_json(found.to_dict())
        return
    _print_reads(found)
    for name, why in found.not_run.items():
        click.echo(f"{name}: not run: {why}", err=True)
    print_pairs("machine", list(found.machine.items()))


def _print_reads(found: ReadBench) -> None:
    from embedcache.bench.readers import WAYS
    from embedcache.store.shards.shard import FLOAT16

    labels = {way.name: way.label for way in WAYS}
    ratios, cpu = found.ratios(), found.ratios(found.cpu_seconds)
    rows = []
    for way in WAYS:
        if way.name not in found.seconds:
            continue
        times = found.seconds[way.name]
        median = statistics.median(times)
        spread = f"{min(times) * 1e3:.3g}–{max(times) * 1e3:.3g}"
        speed = f"{FLOAT16.payload_bytes / 1e6 / median:,.0f}"
        beside = f"{ratios[way.name]:.2f} of {labels[way.reference]}"
        rows.append((way.label, speed, f"{median * 1e3:.3g}", spread, beside, f"{cpu[way.name]:.2f}"))
    header = ("way", "MB/s", "ms/embedding", "min–max", "speed", "by processor time")
    print_table(f"{found.tiles} embeddings, batches of {found.batch}, {found.rounds} rounds", header, rows)
