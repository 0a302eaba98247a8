"""The commands that use what was trained: predict, evaluate, report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from embedcache.cli.app import app
from embedcache.cli.common import cache_dir_option, json_option, one_or_each, require_one_or_each
from embedcache.cli.defaults import labels_for, supervision_for
from embedcache.cli.encode_options import machine_options, selection_options
from embedcache.cli.figures import print_evaluation, worded
from embedcache.cli.output import print_json, print_pairs
from embedcache.cli.run_stores import chosen_stores
from embedcache.cli.signals import stop_at_once
from embedcache.cli.source_options import source_options
from embedcache.errors import EXIT_SOME_FAILED, ConfigError
from embedcache.progress import Terminal
from embedcache.results.as_trained import was_trained_on
from embedcache.results.flatten import FLATTEN
from embedcache.results.thresholds import LADDER
from embedcache.store import EmbeddingStore
from embedcache.train.questions.prompts import PROMPTS


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
    "--start", metavar="FILE", help="Earlier predictions, for a run that was trained with --prompts mask."
)
@click.option("--boxes", metavar="FILE", help="Boxes of your own, for a run trained with --prompts boxes.")
@click.option(
    "--probabilities",
    is_flag=True,
    help="Write probabilities instead of masks: float32 in zarr and TIFF, 0…255 in PNG.",
)
@click.option(
    "--flatten",
    type=click.Choice(FLATTEN),
    default="none",
    show_default=True,
    help="Join all planes of a surface volume to one, by the mean or the largest of their probabilities.",
)
@click.option(
    "--id",
    "name",
    metavar="NAME",
    help="Of one mask: its Id in a .csv.  [default: its fragment's folder, else the plane's name]",
)
@source_options
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
        print_pairs("predict", worded(figures))
    if result.tiles_failed:
        click.echo(f"{result.tiles_failed} tile(s) could not be encoded and are not predicted.", err=True)
        click.get_current_context().exit(EXIT_SOME_FAILED)


@app.command(
    short_help="Figures of a checkpoint beside the untrained decoder.",
    epilog="Example: embedcache evaluate --store S --labels ink.zarr --checkpoint runs/first",
)
@click.option(
    "--store",
    "stores",
    multiple=True,
    metavar="S",
    help="A store; may be repeated, in pairs with --labels.  [default: the only one of --cache-dir; of several "
    "what the run held out]",
)
@click.option("--labels", "labels", multiple=True, metavar="L", help="Its labels.")
@click.option(
    "--checkpoint", metavar="C", help="A run, or its best.safetensors.  [default: the untrained decoder]"
)
@click.option(
    "--split", type=click.Choice(["val", "train", "all"]), help="Which tiles.  [default: the run's own val]"
)
@click.option(
    "--prompts",
    type=click.Choice(PROMPTS),
    help="Prompts; what is derived from the truth is named oracle.  [default: the run's]",
)
@click.option(
    "--supervision",
    multiple=True,
    metavar="MASK",
    help="Labels count only where this mask is positive; none: everywhere.  [default: the run's, or beside them]",
)
@click.option(
    "--start",
    multiple=True,
    metavar="FILE",
    help="Earlier predictions, for --prompts mask.  [default: the run's]",
)
@click.option(
    "--boxes",
    multiple=True,
    metavar="FILE",
    help="Boxes of your own, for --prompts boxes.  [default: the run's]",
)
@click.option(
    "--threshold", type=float, help="Probability above which a pixel is positive.  [default: the run's]"
)
@click.option(
    "--thresholds",
    is_flag=False,
    flag_value=LADDER,
    metavar="[A:B:STEP]",
    help=f"Figures at each of these too, and the best by F0.5.  [without a value: {LADDER}]",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@cache_dir_option
@json_option
def evaluate(
    stores: tuple[str, ...],
    labels: tuple[str, ...],
    checkpoint: str | None,
    cache_dir: str,
    as_json: bool,
    **wishes: Any,
) -> None:
    """Evaluate a checkpoint beside the untrained decoder; prompt source and split are named with every figure."""
    from embedcache.results import evaluate as run_evaluate

    found = None if stores else chosen_stores(Path(cache_dir), checkpoint, wishes["split"], labels)
    chosen = list(stores) if found is None else found.stores
    truths = found.labels if found is not None else list(labels) or [labels_for(store) for store in chosen]
    start, boxes = (one_or_each(wishes.pop(name)) for name in ("start", "boxes"))
    masks = _masks(chosen, truths, wishes.pop("supervision"), checkpoint)
    with stop_at_once():
        result = run_evaluate(
            chosen,
            truths,
            checkpoint=checkpoint,
            supervision=masks,
            progress=Terminal(),
            start=start,
            boxes=boxes,
            **wishes,
        ).to_dict()
    if as_json:
        print_json(result)
    else:
        print_evaluation(result)


def _masks(
    stores: Sequence[str], labels: Sequence[str], given: Sequence[str], checkpoint: str | None
) -> list[str | None]:
    """The supervision mask of each pair: what is given, what lies beside labels that no run read, or the run's."""
    require_one_or_each("supervision", given, stores)
    each = list(given) * len(stores) if len(given) == 1 else list(given)
    if each:
        return [*each]
    return [
        None if checkpoint is not None and was_trained_on(checkpoint, store) else supervision_for(label)
        for store, label in zip(stores, labels, strict=False)
    ]


@app.command(
    short_help="One HTML page about one or more runs.",
    epilog="Example: embedcache report runs/first --output first.html",
)
@click.argument("runs", nargs=-1, required=True, metavar="RUN…")
@click.option(
    "--output",
    metavar="O",
    help="The page.  [default: report.html in the run; of several comparison.html in the first]",
)
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
