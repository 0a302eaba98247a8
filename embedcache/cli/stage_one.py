"""The commands of stage one: encode, plan."""

from __future__ import annotations

from typing import Any

import click

from embedcache.cli.app import app
from embedcache.cli.common import json_option, log_json_option, progress_for, warn_untrained
from embedcache.cli.encode_options import (
    encode_options,
    engine_options,
    machine_options,
    part_of_environment,
    part_options,
    recipe_options,
    selection_options,
    views_option,
)
from embedcache.cli.output import print_json, print_pairs
from embedcache.cli.signals import interruptible, stop_at_once
from embedcache.cli.source_options import origin_options, source_options
from embedcache.encode import EncodeResult, run_encode
from embedcache.encode.estimate import Estimate, estimate
from embedcache.encode.options import CHANGED
from embedcache.encode.sizes import readable_bytes
from embedcache.progress import Progress, Terminal


@app.command(
    short_help="Stage one: encode a volume into a store of embeddings.",
    epilog="Example: embedcache encode --volume scroll1.zarr --tile 512 --z-range 0:2000",
)
@click.option(
    "--volume",
    required=True,
    metavar="V",
    help="Zarr, images, TIFF, .npy …, a fragment, volpkg or segment, or an address.",
)
@source_options
@recipe_options
@origin_options
@selection_options
@views_option
@machine_options
@engine_options
@part_options
@click.option(
    "--check-pixels",
    default="16",
    show_default=True,
    metavar="N|all",
    help="Recorded tiles read again and compared before their embeddings are reused.",
)
@click.option("--seed", type=int, help="Of the choice of these tiles.  [default: another one each time]")
@click.option(
    "--changed",
    type=click.Choice(CHANGED),
    default="stop",
    show_default=True,
    help="Tiles whose pixels changed since they were encoded: stop, or encode exactly these anew, in place.",
)
@click.option(
    "--allow-numerics", is_flag=True, help="Go on although this machine rounds differently than the first."
)
@click.option("--profile", metavar="FILE", help="Write a trace of the run, for chrome://tracing or Perfetto.")
@json_option
@log_json_option
def encode(volume: str, like: str | None, as_json: bool, log_json: bool, **wishes: Any) -> None:
    """Encode a volume: run SAM's image encoder once over every tile and keep the embeddings in a Zarr store.

    Run again, it resumes, adds what is missing, or says that everything is there.
    """
    options = encode_options(volume, like, part_of_environment(wishes))
    progress = progress_for(as_json, log_json)
    with interruptible() as interruption:
        result = run_encode(options, progress, interruption)
    if as_json:
        print_json(result.to_dict())
    else:
        _print_encode(result)
    _say_rest(result, progress)
    click.get_current_context().exit(result.exit_code)


def _say_rest(result: EncodeResult, progress: Progress) -> None:
    """Tell at the end of a part's run that the others have a share, and what the store lacks by now."""
    part = result.part
    if part is None or part.of == 1:
        return
    missing = result.missing_in_store
    state = f"{missing:,} of its tiles are missing by now" if missing else "it is complete by now"
    progress.say(
        f"{part}: {part.of - 1}/{part.of} of the selection is left to other tasks; {result.store.path}: {state}."
    )


def _print_encode(result: EncodeResult) -> None:
    _print_figures(result)
    if result.checked_pixels:
        outcome = f"{result.changed} had changed" if result.changed else "unchanged"
        drawn = "" if result.check_seed is None else f" (--seed {result.check_seed})"
        click.echo(
            f"The pixels of {result.checked_pixels} of {result.recorded_pixels} recorded tiles were read again"
            f"{drawn}: {outcome}.",
            err=True,
        )
    if not result.encoded and not result.failed:
        click.echo(
            "Nothing to do: every selected tile is in the store"
            + (" or empty" if result.skipped else "")
            + ". No image went through the encoder.",
            err=True,
        )
    _print_failed(result)
    if result.store.provenance.get("untrained"):
        warn_untrained()


def _print_figures(result: EncodeResult) -> None:
    pace = f", {result.to_dict()['tiles_per_second']:.3g} tiles/s" if result.encoded else ""
    rows: list[tuple[str, object]] = [
        ("store", result.store.path),
        ("tiles selected", result.selected),
        ("encoded now", result.encoded),
        ("of equal pixels (copied)", result.identical),
        ("reused", result.reused),
        ("skipped (empty)", result.skipped),
        ("failed", len(result.failed)),
        ("encoder calls", result.encoder_calls),
        ("written", readable_bytes(result.bytes_written)),
        ("time", f"{result.seconds:.1f} s{pace}"),
        ("device", f"{result.device}, {result.precision}"),
        ("fingerprint", result.store.fingerprint),
    ]
    if result.encoded and result.bottleneck:
        rows.insert(-2, ("limited by", result.bottleneck))
    if result.part is not None:
        rows.insert(1, ("part", f"{result.part.number} of {result.part.of}"))
    print_pairs("encode", rows)


def _print_failed(result: EncodeResult) -> None:
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


@app.command(
    short_help="What encoding would take: tiles, bytes, hours.",
    epilog="Example: embedcache plan --volume scroll1.zarr --tile 512 --level 1",
)
@click.option("--volume", required=True, metavar="V", help="The volume.")
@source_options
@recipe_options
@origin_options
@selection_options
@views_option
@machine_options
@engine_options
@part_options
@json_option
def plan(volume: str, like: str | None, as_json: bool, **wishes: Any) -> None:
    """Tell what encoding a volume would take: tiles, bytes, free disk, files, hours, and when the cache has paid.

    The time comes from the run's own pieces, tried here on a few tiles: reading, the encoder as the run would
    start it (compiled, where that pays), and a commit on the store's disk, removed again. Nothing is downloaded.
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
            ("views of each", figures.views),
            ("tiles missing", figures.tiles_missing),
            ("parts", figures.num_parts),
            ("files", figures.files),
            (f"bytes ({figures.store_dtype})", readable_bytes(figures.bytes)),
            ("bytes free", readable_bytes(figures.bytes_free)),
            ("seconds per tile", figures.seconds_per_tile),
            ("before and after", _duration(figures.seconds_start)),
            ("time" if figures.num_parts == 1 else "time of a part", _duration(figures.seconds_estimated)),
            ("limited by", figures.bottleneck),
            ("workers", figures.workers),
            ("writing", _speed(figures.write_bytes_per_second)),
            ("epochs until the cache has paid", figures.break_even_epochs),
            ("encoder", _encoder(figures)),
        ],
    )
    if figures.reading:
        click.echo(figures.reading, err=True)
    if figures.share_encoded < 1:
        click.echo(
            f"Of the tiles that were tried, {1 - figures.share_encoded:.0%} are empty or equal to others; "
            "the time counts on as many of all.",
            err=True,
        )
    if figures.unknown:
        click.echo(f"The time is not known: {figures.unknown}.", err=True)
    if not figures.fits:
        click.echo("The disk is too small for this; `encode` would refuse with exit code 6.", err=True)


def _encoder(figures: Estimate) -> str:
    words = [figures.device, figures.precision]
    if figures.numerics:
        compiled = "compiled" if figures.numerics["compiled"] else "not compiled"
        words += [
            f"attention {figures.numerics['attention']}",
            compiled,
            f"batch {figures.numerics['batch']}",
        ]
    return ", ".join(words)


def _speed(bytes_per_second: float | None) -> str | None:
    return None if bytes_per_second is None else f"{readable_bytes(bytes_per_second)}/s"


def _duration(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    for unit, length in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"
