"""The commands that do the work: encode, plan, train, predict, evaluate, report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from embedcache.cli.app import app
from embedcache.cli.defaults import labels_for, only_store, store_and_labels
from embedcache.cli.encode_options import encode_options, machine_options, recipe_options, selection_options
from embedcache.cli.output import print_json, print_pairs
from embedcache.cli.signals import interruptible, stop_at_once
from embedcache.encode import EncodeResult, run_encode
from embedcache.encode.estimate import estimate
from embedcache.encode.plan import readable_bytes
from embedcache.errors import EXIT_FAILED_TILES, ConfigError
from embedcache.progress import Terminal
from embedcache.store import EmbeddingStore

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout, nothing else."
)
cache_dir_option = click.option(
    "--cache-dir", envvar="EMBEDCACHE_DIR", default="embeddings", show_default=True, help="Where stores live."
)


@app.command(
    short_help="Stage one: encode a volume into a store of embeddings.",
    epilog="Example: embedcache encode --volume scroll1.zarr --tile 512 --z-range 0:2000",
)
@click.option("--volume", required=True, metavar="V", help="Zarr, folder of images, TIFF, PNG, JPEG, .npy …")
@recipe_options
@selection_options
@machine_options
@click.option(
    "--check-pixels",
    default="16",
    show_default=True,
    metavar="N|all",
    help="Recorded tiles read again and compared before their embeddings are reused.",
)
@click.option(
    "--allow-numerics", is_flag=True, help="Go on although this machine rounds differently than the first."
)
@json_option
def encode(volume: str, like: str | None, as_json: bool, **wishes: Any) -> None:
    """Encode a volume: run SAM's image encoder once over every tile and keep the embeddings in a Zarr store.

    Run again, it resumes, adds what is missing, or says that everything is there.
    """
    options = encode_options(volume, like, wishes)
    with interruptible() as interruption:
        result = run_encode(options, Terminal(), interruption)
    if as_json:
        print_json(result.to_dict())
    else:
        _print_encode(result)
    click.get_current_context().exit(result.exit_code)


def _print_encode(result: EncodeResult) -> None:
    figures = result.to_dict()
    rows: list[tuple[str, object]] = [
        ("store", result.store.path),
        ("tiles selected", result.selected),
        ("encoded now", result.encoded),
        ("reused", result.reused),
        ("skipped (empty)", result.skipped),
        ("failed", len(result.failed)),
        ("encoder calls", result.encoder_calls),
        ("written", readable_bytes(result.bytes_written)),
        ("time", f"{result.seconds:.1f} s"),
        ("device", f"{result.device}, {result.precision}"),
        ("fingerprint", result.store.fingerprint),
    ]
    print_pairs("encode", rows)
    if result.checked_pixels:
        click.echo(
            f"The pixels of {result.checked_pixels} recorded tiles were read again: unchanged.", err=True
        )
    if not result.encoded and not result.failed:
        click.echo(
            "Nothing to do: every selected tile is in the store"
            + (" or empty" if result.skipped else "")
            + ". No image went through the encoder.",
            err=True,
        )
    for number, reason in list(result.failed.items())[:10]:
        tile = result.store.tile(number)
        place = f"{result.store.plane_name(tile.plane)}, y0={tile.y0}, x0={tile.x0}"
        click.echo(f"failed: tile {number} ({place}): {reason}", err=True)
    if result.failed:
        click.echo(
            f"{len(result.failed)} tile(s) failed; once their pixels are mended the same command encodes them. "
            "`train --allow-partial` goes on without them.",
            err=True,
        )
    if figures["untrained"]:
        warn_untrained()


def warn_untrained() -> None:
    """Say that the encoder's weights are random."""
    click.echo(
        "Note: the encoder's weights are random (untrained). Good for trying out, not for results.", err=True
    )


@app.command(
    short_help="What encoding would take: tiles, bytes, hours.",
    epilog="Example: embedcache plan --volume scroll1.zarr --tile 512 --level 1",
)
@click.option("--volume", required=True, metavar="V", help="The volume.")
@recipe_options
@selection_options
@machine_options
@json_option
def plan(volume: str, like: str | None, as_json: bool, **wishes: Any) -> None:
    """Tell what encoding a volume would take: tiles, bytes, free disk, files, hours, and when the cache has paid.

    The time comes from a few tiles encoded on this machine; nothing is written or downloaded.
    """
    options = encode_options(volume, like, wishes)
    with stop_at_once():
        figures = estimate(options, Terminal())
    if as_json:
        print_json(figures.to_dict())
        return
    print_pairs(
        "plan",
        [
            ("store", figures.store),
            ("tiles in the volume", figures.tiles_total),
            ("tiles selected", figures.tiles_selected),
            ("tiles missing", figures.tiles_missing),
            ("files", figures.files),
            ("bytes", readable_bytes(figures.bytes)),
            ("bytes free", readable_bytes(figures.bytes_free)),
            ("seconds per tile", figures.seconds_per_tile),
            ("time", _duration(figures.seconds_estimated)),
            ("epochs until the cache has paid", figures.break_even_epochs),
            ("device", f"{figures.device}, {figures.precision}"),
        ],
    )
    if figures.unknown:
        click.echo(f"The time is not known: {figures.unknown}.", err=True)
    if not figures.fits:
        click.echo("The disk is too small for this; `encode` would refuse with exit code 6.", err=True)


def _duration(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    for unit, length in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"


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
    type=click.Choice(["tensorboard", "none"]),
    default="tensorboard",
    show_default=True,
    help="Scalars beside metrics.jsonl.",
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


@app.command(
    short_help="Stitched masks for a store or a new volume.",
    epilog="Example: embedcache predict --volume scroll2.zarr --checkpoint runs/first --output ink.zarr",
)
@click.option("--store", metavar="S", help="A store of the same embedding space.")
@click.option("--volume", metavar="V", help="A volume: it is encoded by the checkpoint's recipe first.")
@click.option("--checkpoint", required=True, metavar="C", help="A run, or its best.safetensors.")
@click.option(
    "--output",
    required=True,
    metavar="O",
    help="What is written, by its ending: .zarr, .tif, .png, a folder, .csv.",
)
@click.option(
    "--threshold", type=float, help="Probability above which a pixel is positive.  [default: the run's]"
)
@click.option(
    "--probabilities",
    is_flag=True,
    help="Write probabilities instead of masks: float32 in zarr and TIFF, 0…255 in PNG.",
)
@selection_options
@machine_options
@json_option
def predict(
    store: str | None, volume: str | None, checkpoint: str, output: str, as_json: bool, **wishes: Any
) -> None:
    """Predict masks for a store or a new volume, stitched at the volume's own resolution."""
    from embedcache.results import predict as run_predict

    if (store is None) == (volume is None):
        raise ConfigError("predict takes either --store or --volume.")
    with stop_at_once():
        source = volume if store is None else EmbeddingStore.open(store)
        result = run_predict(source or "", checkpoint, output, progress=Terminal(), **wishes)
    figures = result.to_dict()
    if as_json:
        print_json(figures)
    else:
        print_pairs("predict", list(figures.items()))
    if result.tiles_failed:
        click.echo(f"{result.tiles_failed} tile(s) could not be encoded and are not predicted.", err=True)
        click.get_current_context().exit(EXIT_FAILED_TILES)


@app.command(
    short_help="Figures of a checkpoint beside the untrained decoder.",
    epilog="Example: embedcache evaluate --store S --labels ink.zarr --checkpoint runs/first",
)
@click.option("--store", metavar="S", help="The store.  [default: the only one of --cache-dir]")
@click.option("--labels", metavar="L", help="Its labels.")
@click.option(
    "--checkpoint", metavar="C", help="A run, or its best.safetensors.  [default: the untrained decoder]"
)
@click.option(
    "--split", type=click.Choice(["val", "train", "all"]), help="Which tiles.  [default: the run's own val]"
)
@click.option(
    "--prompts",
    type=click.Choice(["none", "points", "box", "grid", "iterative"]),
    help="Prompts; what is derived from the truth is named oracle.  [default: the run's]",
)
@click.option("--supervision", metavar="MASK", help="Labels count only where this mask is positive.")
@click.option(
    "--threshold", type=float, help="Probability above which a pixel is positive.  [default: the run's]"
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@cache_dir_option
@json_option
def evaluate(
    store: str | None,
    labels: str | None,
    checkpoint: str | None,
    cache_dir: str,
    as_json: bool,
    **wishes: Any,
) -> None:
    """Evaluate a checkpoint beside the untrained decoder; prompt source and split are named with every figure."""
    from embedcache.results import evaluate as run_evaluate

    chosen_store = store or str(only_store(Path(cache_dir)))
    chosen_labels = labels or labels_for(chosen_store)
    with stop_at_once():
        result = run_evaluate(
            chosen_store, chosen_labels, checkpoint=checkpoint, progress=Terminal(), **wishes
        ).to_dict()
    if as_json:
        print_json(result)
        return
    baseline = result.pop("baseline") or {}
    rows: list[tuple[str, object]] = []
    for name, value in result.items():
        beside = f"   (untrained {baseline[name]:.4g})" if isinstance(baseline.get(name), float) else ""
        rows.append((name, f"{value:.4g}{beside}" if isinstance(value, float) else value))
    print_pairs("evaluate", rows)


@app.command(
    short_help="One HTML page about one or more runs.",
    epilog="Example: embedcache report runs/first --output first.html",
)
@click.argument("runs", nargs=-1, required=True, metavar="RUN…")
@click.option("--output", metavar="O", help="The page.  [default: report.html in the first run]")
@json_option
def report(runs: tuple[str, ...], output: str | None, as_json: bool) -> None:
    """Report runs on one self-contained HTML page: figures, curves, pictures before and after, provenance."""
    from embedcache.results import report as run_report

    with stop_at_once():
        page = run_report(list(runs), output)
    if as_json:
        print_json({"output": str(page)})
    else:
        click.echo(str(page))
