"""The command of stage two: train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from embedcache.cli.app import app
from embedcache.cli.common import cache_dir_option, json_option, say_certificates
from embedcache.cli.defaults import store_and_labels
from embedcache.cli.output import print_json, print_pairs
from embedcache.cli.signals import stop_at_once
from embedcache.encode.sizes import readable_bytes
from embedcache.progress import Terminal


@app.command(
    short_help="Stage two: train the decoder from a store and labels.",
    epilog="Example: embedcache train --store embeddings/scroll1-vit_b-t1024-3fa9c1.zarr --labels ink.zarr",
)
@click.option(
    "--store", "stores", multiple=True, metavar="S", help="A store; may be repeated, in pairs with --labels."
)
@click.option(
    "--labels", "labels", multiple=True, metavar="L", help="Its labels: zarr, TIFF, PNG, or a folder."
)
@click.option("--out", metavar="RUN", help="Folder of the run.  [default: runs/NAME]")
@click.option(
    "--task",
    type=click.Choice(["auto", "semantic", "instances"]),
    default="auto",
    show_default=True,
    help="One mask per tile, or objects with ids.",
)
@click.option(
    "--prompts",
    type=click.Choice(["none", "points", "box", "grid", "iterative"]),
    help="Prompts during training.  [default: none for semantic, iterative for instances]",
)
@click.option("--objects", type=click.Choice(["whole", "components", "ids"]), help="What one object is.")
@click.option(
    "--train",
    "train_parts",
    type=click.Choice(["decoder", "prompt+decoder"]),
    default="prompt+decoder",
    show_default=True,
    help="Which weights learn.",
)
@click.option(
    "--loss",
    type=click.Choice(["sam", "bce+iou", "mse"]),
    default="sam",
    show_default=True,
    help="See docs/training.md.",
)
@click.option("--steps", type=int, help="Optimiser steps.  [default: 2000, or early stop]")
@click.option("--epochs", type=int, help="Passes over the training tiles, instead of --steps.")
@click.option("--batch-size", type=int, help="Tiles per step.  [default: what suits the device]")
@click.option("--lr", type=float, default=1e-4, show_default=True, help="Peak learning rate.")
@click.option("--seed", type=int, default=0, show_default=True, help="Decides every random choice.")
@click.option(
    "--val",
    default="auto",
    show_default=True,
    metavar="SPEC",
    help="auto, planes A:B, image names, or a share (0.2).",
)
@click.option("--supervision", metavar="MASK", help="Labels count only where this mask is positive.")
@click.option(
    "--init", metavar="FILE|random:SEED", help="Where training starts.  [default: the store's own decoder]"
)
@click.option("--resume", is_flag=True, help="Go on with the run in --out.")
@click.option(
    "--logger",
    metavar="WHERE",
    default="tensorboard",
    show_default=True,
    help="Curves beside metrics.jsonl: tensorboard, wandb, mlflow, several with commas, or none.",
)
@click.option("--allow-partial", is_flag=True, help="Train although some labelled tiles are not encoded.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@cache_dir_option
@json_option
def train(
    stores: tuple[str, ...],
    labels: tuple[str, ...],
    train_parts: str,
    cache_dir: str,
    as_json: bool,
    **wishes: Any,
) -> None:
    """Train SAM's prompt encoder and mask decoder from a store and labels; no encoder, no volume needed.

    Without --store it takes the only store of --cache-dir, and labels by their known names beside its volume.
    """
    from embedcache.train import train as run_train

    chosen_stores, chosen_labels = store_and_labels(stores, labels, Path(cache_dir))
    say_certificates(chosen_stores)
    with stop_at_once():
        run = run_train(chosen_stores, chosen_labels, train=train_parts, progress=Terminal(), **wishes)
    summary = run.summary
    if as_json:
        print_json(summary)
        return
    baseline = summary.get("baseline") or {}
    print_pairs(
        "train",
        [
            ("run", summary["run"]),
            ("best " + str(summary["metric"]), summary["best"]),
            ("untrained", baseline.get(summary["metric"])),
            ("prompt source", summary["prompt_source"]),
            ("split", summary["split_rule"]),
            ("steps", summary["steps"]),
            ("time", f"{summary['seconds']:.1f} s"),
            ("samples per second", summary["samples_per_second"]),
            ("waiting for data", f"{100 * summary['data_wait_fraction']:.1f} %"),
            ("peak memory", readable_bytes(summary["peak_memory_bytes"])),
            ("checkpoint", summary["checkpoint"]),
        ],
    )
    click.echo(f"Next: embedcache report {summary['run']}", err=True)
    click.echo(
        f"or:   embedcache predict --checkpoint {summary['checkpoint']} --volume V --output O", err=True
    )
