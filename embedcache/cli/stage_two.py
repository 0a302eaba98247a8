"""The command of stage two: train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from embedcache.cli.app import app
from embedcache.cli.common import cache_dir_option, json_option, one_or_each, say_certificates
from embedcache.cli.defaults import training_data
from embedcache.cli.output import print_json
from embedcache.cli.signals import interruptible
from embedcache.cli.training_output import print_training
from embedcache.errors import EXIT_SOME_FAILED, counted
from embedcache.progress import Terminal
from embedcache.train.option_checks import AMP, CHECK_READS, RESIDENT, SCHEDULES, VIEWS
from embedcache.train.questions.prompts import PROMPTS


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
@click.option(
    "--data", metavar="FILE", help="Stores and their labels as a TOML file, instead of --store and --labels."
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
    type=click.Choice(PROMPTS),
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
@click.option("--max-objects", type=int, default=8, show_default=True, help="Objects of a tile in a step.")
@click.option(
    "--rounds",
    type=int,
    default=11,
    show_default=True,
    help="Rounds of iterative prompts, with the two that bring no new point.",
)
@click.option("--start", multiple=True, metavar="FILE", help="Predictions that --prompts mask starts from.")
@click.option("--boxes", multiple=True, metavar="FILE", help="Boxes of your own, for --prompts boxes.")
@click.option("--steps", type=int, help="Optimiser steps.  [default: 2000, or early stop]")
@click.option("--epochs", type=int, help="Passes over the training tiles, instead of --steps.")
@click.option("--batch-size", type=int, help="Tiles per batch.  [default: what suits the device]")
@click.option("--accumulate", type=int, default=1, show_default=True, help="Batches that make one step.")
@click.option("--lr", type=float, default=1e-4, show_default=True, help="Peak learning rate.")
@click.option(
    "--schedule",
    type=click.Choice(SCHEDULES),
    default="cosine",
    show_default=True,
    help="Course of the learning rate after its warm-up.",
)
@click.option("--warmup", type=int, help="Steps of warm-up.  [default: a tenth of all, at most 100]")
@click.option("--weight-decay", type=float, default=0.01, show_default=True, help="Of AdamW.")
@click.option("--clip", type=float, default=1.0, show_default=True, help="Largest norm of a step's gradient.")
@click.option(
    "--ema", type=float, default=0.0, help="Decay of the average of weights that is kept.  [default: off]"
)
@click.option(
    "--amp",
    type=click.Choice(AMP),
    default="off",
    show_default=True,
    help="Coarser arithmetic where a device has it.",
)
@click.option("--adapter", is_flag=True, help="Train a small block between embeddings and decoder too.")
@click.option(
    "--views",
    type=click.Choice(VIEWS),
    default="auto",
    show_default=True,
    help="Draw from the views of a tile that the store holds.",
)
@click.option(
    "--jitter/--no-jitter",
    default=True,
    show_default=True,
    help="Vary labels' edges and what counts of a tile.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Decides every random choice.")
@click.option(
    "--val",
    default="auto",
    show_default=True,
    metavar="SPEC",
    help="auto, store:NAME, planes A:B, image names, or a share (0.2).",
)
@click.option("--validate-every", type=int, help="Steps between validations.  [default: a twentieth of all]")
@click.option(
    "--patience",
    type=int,
    default=8,
    show_default=True,
    help="Validations without gain until it ends; 0: never.",
)
@click.option("--overfit", type=int, metavar="N", help="Train and validate on N tiles: can it learn at all?")
@click.option(
    "--supervision",
    multiple=True,
    metavar="MASK",
    help="Labels count only where this mask is positive; none: nor that beside the labels.",
)
@click.option(
    "--validation",
    multiple=True,
    metavar="MASK",
    help="Hold out what is positive in this mask, and nothing else.",
)
@click.option("--ignore", type=int, metavar="VALUE", help="Label pixels of this value do not count.")
@click.option(
    "--init", metavar="FILE|random:SEED", help="Where training starts.  [default: the store's own decoder]"
)
@click.option("--resume", is_flag=True, help="Go on with the run in --out.")
@click.option("--save-every", type=int, help="Steps between states to resume.  [default: each validation]")
@click.option(
    "--sweep",
    metavar="FILE",
    help="Train once for each choice of a TOML file; one table at the end. Exit code 7 when a run failed.",
)
@click.option(
    "--logger",
    metavar="WHERE",
    default="tensorboard",
    show_default=True,
    help="Curves beside metrics.jsonl: tensorboard, wandb, mlflow, several with commas, or none.",
)
@click.option("--allow-partial", is_flag=True, help="Train although some labelled tiles are not encoded.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--resident",
    type=click.Choice(RESIDENT),
    default="auto",
    show_default=True,
    help="Where embeddings are kept once they were read.",
)
@click.option(
    "--check-reads",
    type=click.Choice(CHECK_READS),
    default="always",
    show_default=True,
    help="When an embedding's checksum is compared.",
)
@click.option("--read-threads", type=int, help="Threads that read.  [default: 2, or 4 from 8 cores]")
@cache_dir_option
@json_option
def train(
    stores: tuple[str, ...],
    labels: tuple[str, ...],
    data: str | None,
    out: str | None,
    train_parts: str,
    sweep: str | None,
    cache_dir: str,
    as_json: bool,
    **wishes: Any,
) -> None:
    """Train SAM's prompt encoder and mask decoder from a store and labels; no encoder, no volume needed.

    Without --store it takes the only store of --cache-dir, and labels by their known names beside its volume.
    Several processes train as one: torchrun --nproc-per-node N -m embedcache train …
    """
    found = training_data(
        stores,
        labels,
        Path(cache_dir),
        data=data,
        files={name: wishes[name] for name in ("supervision", "validation", "boxes")},
        val=wishes["val"],
        held_out=wishes["overfit"] is None,
    )
    chosen = found.chosen
    wishes |= {"train": train_parts, "start": one_or_each(wishes["start"]), **found.options}
    if sweep is not None:
        _sweep(chosen, sweep, out, as_json, wishes)
        return
    from embedcache.train import train as run_train
    from embedcache.train.stepping.ranks import speaks

    if speaks():
        say_certificates(chosen[0])
    with interruptible() as stop:
        run = run_train(*chosen, out=out, progress=Terminal(), stop=stop, **wishes)
    if speaks():
        print_training(run.summary, as_json)


def _sweep(
    chosen: tuple[list[str], list[str]], file: str, out: str | None, as_json: bool, wishes: dict[str, Any]
) -> None:
    from embedcache.train.sweep import run_sweep

    if wishes.pop("resume"):
        click.echo("A sweep goes on by itself; --resume is not needed.", err=True)
    say_certificates(chosen[0])
    with interruptible() as stop:
        result = run_sweep(*chosen, Path(file), out=out, progress=Terminal(), options=wishes, stop=stop)
    if as_json:
        print_json(result.to_dict())
    else:
        click.echo(result.table())
    if result.failed:
        click.echo(f"{counted(len(result.failed), 'run')} of {len(result.rows)} failed.", err=True)
        click.get_current_context().exit(EXIT_SOME_FAILED)
