"""The command that measures training: bench train."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from embedcache.cli.bench import bench, device_options, model_options
from embedcache.cli.common import json_option, warn_untrained
from embedcache.cli.output import print_json, print_pairs, print_table
from embedcache.cli.signals import stop_at_once
from embedcache.encode.sizes import readable_bytes
from embedcache.progress import Terminal

if TYPE_CHECKING:
    from embedcache.bench.step_figures import TrainBench


@bench.command(
    name="train",
    short_help="A training step: cached or not, ours or stock.",
    epilog="Example: embedcache bench train --model vit_b --rounds 3",
)
@model_options
@click.option("--rounds", type=int, default=3, show_default=True, help="Steps that each way takes.")
@click.option(
    "--case",
    "cases",
    multiple=True,
    metavar="IMAGESxBOXES",
    help="Images of a step and boxes on each; may be repeated.  [default: 1x1, 1x16, 8x1]",
)
@device_options
@click.option("--only", multiple=True, metavar="NAME", help="Only this way; may be repeated.")
@click.option(
    "--wait/--no-wait", default=True, show_default=True, help="Also a real training's wait for data."
)
@json_option
def bench_train(as_json: bool, **wishes: Any) -> None:
    """Measure a training step: cached or with the encoder in it, by our decoder or stock's, in turns.

    Each way has a process of its own: seconds per step, memory, and what is kept for the backward pass. All take
    the same steps, so that their losses can be compared too.
    """
    from embedcache.bench.training import bench_training

    with stop_at_once():
        found = bench_training(Terminal(), **wishes)
    if as_json:
        print_json(found.to_dict())
        return
    _print(found)
    for name, why in found.not_run.items():
        click.echo(f"{name}: not run: {why}", err=True)
    print_pairs("machine", list(found.machine.items()))
    if found.checkpoint.startswith("random:"):
        warn_untrained()


def _print(found: TrainBench) -> None:
    rows = []
    for one in found.figures:
        ratio = found.ratios.get(f"{one.case} {one.way}")
        rows.append(
            (
                one.case.replace("x", " × "),
                one.label,
                f"{one.median:.3g}",
                f"{min(one.seconds):.3g}–{max(one.seconds):.3g}",
                "1" if ratio is None else f"{ratio:.2f}",
                readable_bytes(one.saved_bytes),
                readable_bytes(one.peak_memory_bytes),
            )
        )
    header = (
        "images × boxes",
        "way",
        "s/step",
        "min–max",
        "× ours cached",
        "kept for backward",
        "peak memory",
    )
    print_table(f"{found.model}, {found.checkpoint}, {found.rounds} rounds in turns", header, rows)
    from embedcache.bench.waiting import WHERE_FROM

    pairs: list[tuple[str, object]] = []
    if found.loss_difference is not None:
        pairs.append(
            ("last loss, cached and in the loop, relative difference", f"{found.loss_difference:.1e}")
        )
    for where, share in found.waits.items():
        pairs.append((f"share of steps waiting for data, {WHERE_FROM[where]}", f"{share:.2%}"))
    if pairs:
        print_pairs("training", pairs)
