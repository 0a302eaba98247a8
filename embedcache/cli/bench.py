"""The commands that measure this machine: bench encode."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from embedcache.cli.app import Command, app
from embedcache.cli.common import Decorated, apply, json_option, warn_untrained
from embedcache.cli.output import print_json, print_pairs, print_table
from embedcache.cli.signals import stop_at_once
from embedcache.encode.sizes import readable_bytes
from embedcache.progress import Terminal

if TYPE_CHECKING:
    from embedcache.bench.encoders import EncoderBench


class BenchGroup(click.Group):
    """The parts of ``bench``, each a command like all others."""

    command_class = Command


@app.group(
    cls=BenchGroup,
    short_help="This machine's figures beside the stock way.",
    epilog="Example: embedcache bench encode --model vit_b --rounds 3",
)
def bench() -> None:
    """Measure this machine beside the stock way, in turns in one run."""


def model_options(command: Decorated) -> Decorated:
    """Add ``--model`` and ``--checkpoint``."""
    return apply(
        command,
        click.option("--model", default="vit_b", show_default=True, help="vit_b, vit_l, vit_h or vit_tiny."),
        click.option(
            "--checkpoint",
            default="random:0",
            show_default=True,
            metavar="FILE|auto|random:SEED",
            help="Weights; the speed does not depend on them.",
        ),
    )


def device_options(command: Decorated) -> Decorated:
    """Add ``--threads`` and ``--device``."""
    return apply(
        command,
        click.option("--threads", type=int, metavar="N", help="CPU threads.  [default: torch's]"),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
    )


@bench.command(
    name="encode",
    short_help="SAM's image encoder: ours, stock, and other libraries'.",
    epilog="Example: embedcache bench encode --model vit_b --rounds 3",
)
@model_options
@click.option("--rounds", type=int, default=3, show_default=True, help="Turns that each variant takes.")
@click.option("--batch-size", type=int, help="Images in one call.  [default: 1 on a CPU, 8 on a GPU]")
@device_options
@click.option("--only", multiple=True, metavar="NAME", help="Only this variant; may be repeated.")
@click.option(
    "--tiles",
    type=int,
    default=512,
    show_default=True,
    help="Tiles of the pipeline's ceiling; 0 leaves it out.",
)
@click.option("--profile", metavar="FILE", help="Write a trace of one call of ours, for Perfetto.")
@json_option
def bench_encode(as_json: bool, tiles: int, **wishes: Any) -> None:
    """Measure the image encoder of SAM: stock, other libraries' where installed, and ours, in turns.

    Each has a process of its own: seconds per image, times faster than stock in float32, difference from it, and
    peak memory. Then the pipeline with an encoder that costs nothing: what all the rest could do at most.
    """
    from embedcache.bench.ceiling import pipeline_ceiling
    from embedcache.bench.encoders import bench_encoders

    progress = Terminal()
    with stop_at_once():
        found = bench_encoders(progress, **wishes)
        ceiling = None
        if tiles > 0:
            progress.say(f"The pipeline with an encoder that costs nothing, over {tiles} tiles …")
            ceiling = pipeline_ceiling(tiles, device=found.device, threads=wishes["threads"])
    if as_json:
        print_json(found.to_dict() | {"pipeline": ceiling})
        return
    _print_encoders(found)
    if ceiling is not None:
        _print_ceiling(ceiling)
    for name, why in found.not_run.items():
        click.echo(f"{name}: not run: {why}", err=True)
    print_pairs("machine", list(found.machine.items()))
    if found.checkpoint.startswith("random:"):
        warn_untrained()


def _print_encoders(found: EncoderBench) -> None:
    rows = []
    for one in found.figures:
        error = "—" if one.error is None else f"{one.error['relative_l2']:.1e}"
        ratio = f"{found.ratios[one.name]:.2f}×" if one.name in found.ratios else "—"
        spread = f"{min(one.seconds):.3g}–{max(one.seconds):.3g}"
        peak = "—" if one.peak_memory_bytes is None else readable_bytes(one.peak_memory_bytes)
        start = f"{one.start_seconds:.1f} s, {readable_bytes(one.start_memory_bytes)}"
        rows.append((one.label, f"{one.median:.3g}", spread, ratio, error, peak, start))
    header = ("encoder", "s/image", "min–max", "× stock float32", "rel. L2", "peak memory", "start-up")
    title = f"{found.model}, {found.checkpoint}, batch {found.batch}, {found.rounds} rounds in turns"
    print_table(title, header, rows)


def _print_ceiling(ceiling: dict[str, Any]) -> None:
    run = ceiling["run"]
    print_pairs(
        "pipeline, encoder of no cost",
        [
            ("tiles per second", ceiling["tiles_per_second"]),
            ("tiles", ceiling["tiles"]),
            (
                "source chunks",
                f"{ceiling['source_chunks']}, {run.get('source_chunks_read', '—')} decodes in the run",
            ),
            ("limited by", run.get("bottleneck")),
            ("peak memory", readable_bytes(ceiling["peak_memory_bytes"])),
        ],
    )
