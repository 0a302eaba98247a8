"""Turns the options that ``encode``, ``plan`` and ``predict --volume`` share into an ``EncodeOptions``."""

from __future__ import annotations

import os
from typing import Any

import click
from click.core import ParameterSource

from embedcache.cli.common import Decorated, apply
from embedcache.encode import EncodeOptions
from embedcache.encode.options import ATTENTIONS, COMPILES, options_from
from embedcache.encode.parts import part_of_array_job
from embedcache.encode.recipe import RECIPE_FIELDS
from embedcache.errors import ConfigError
from embedcache.geometry import VIEW_SETS
from embedcache.store.spec import STORE_DTYPES


def selection_options(function: Decorated) -> Decorated:
    """Add ``--z-range``, ``--bbox``, ``--mask``, ``--skip-empty``, ``--empty-threshold``."""
    return apply(
        function,
        click.option(
            "--z-range",
            metavar="A:B[:STEP][,…]|random:N[:SEED]",
            help="Only these planes (of a folder: these images).",
        ),
        click.option(
            "--bbox", metavar="Y0:Y1,X0:X1", help="Only tiles that touch this box, in pixels of the level."
        ),
        click.option("--mask", metavar="FILE", help="Only tiles where this mask is positive."),
        click.option(
            "--skip-empty/--no-skip-empty",
            default=None,
            help="Leave out tiles that are all zero.  [default: on where a mask is given]",
        ),
        click.option(
            "--empty-threshold",
            type=float,
            default=0.0,
            show_default=True,
            metavar="VALUE",
            help="A tile is empty where no pixel is above this, in the source's units.",
        ),
    )


def views_option(function: Decorated) -> Decorated:
    """Add ``--views``."""
    return apply(
        function,
        click.option(
            "--views",
            type=click.Choice(list(VIEW_SETS)),
            default="none",
            show_default=True,
            help="Encode each tile also mirrored (flips: 4 views) and turned (d4: 8), for training.",
        ),
    )


def machine_options(function: Decorated) -> Decorated:
    """Add ``--batch-size``, ``--device`` and ``--cache-dir``."""
    return apply(
        function,
        click.option(
            "--batch-size", type=int, help="Tiles in one encoder call.  [default: what suits the device]"
        ),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
        click.option(
            "--cache-dir",
            envvar="EMBEDCACHE_DIR",
            default="embeddings",
            show_default=True,
            help="Where stores live; $EMBEDCACHE_DIR sets it too.",
        ),
    )


def engine_options(function: Decorated) -> Decorated:
    """Add how the encoder runs and how many of it: no part of a store's identity."""
    return apply(
        function,
        click.option(
            "--attention",
            type=click.Choice(ATTENTIONS),
            default="auto",
            show_default=True,
            help="How attention is computed, with the same result; auto: what is fastest here.",
        ),
        click.option(
            "--compile",
            type=click.Choice(COMPILES),
            default="auto",
            show_default=True,
            help="Compile the encoder first; auto: where the tiles to encode repay the minute it takes.",
        ),
        click.option(
            "--threads", type=int, metavar="N", help="CPU threads per encoder.  [default: what suits]"
        ),
        click.option(
            "--workers",
            type=int,
            default=1,
            show_default=True,
            metavar="N",
            help="Processes of this machine that encode together, one encoder (and GPU) each.",
        ),
        click.option("--scheduler", metavar="ADDRESS", help="Encode on the workers of a dask scheduler."),
        click.option(
            "--read-memory",
            default="2GiB",
            show_default=True,
            metavar="BYTES",
            help="Decoded source pixels kept until their last tile is read, so that each chunk is read once.",
        ),
    )


def part_options(function: Decorated) -> Decorated:
    """Add ``--num-parts`` and ``--part-id``."""
    return apply(
        function,
        click.option("--num-parts", type=int, metavar="N", help="Share the work among N processes."),
        click.option("--part-id", type=int, metavar="I", help="Which of them this is, from 0 to N - 1."),
    )


def part_of_environment(wishes: dict[str, Any]) -> dict[str, Any]:
    """The wishes with the part of a SLURM array's task, when none is given; said on stderr."""
    if wishes.get("num_parts") is not None or wishes.get("part_id") is not None:
        return wishes
    part = part_of_array_job(os.environ)
    if part is None:
        return wishes
    click.echo(
        f"This is a task of a SLURM array: it encodes {part} (--num-parts {part.of} --part-id {part.number}). "
        "--num-parts 1 --part-id 0 encodes everything.",
        err=True,
    )
    return wishes | {"num_parts": part.of, "part_id": part.number}


def recipe_options(function: Decorated) -> Decorated:
    """Add the options that decide the embedding space and the grid."""
    return apply(
        function,
        click.option(
            "--store",
            metavar="S",
            help="The store.  [default: a folder of --cache-dir, named for what it holds]",
        ),
        click.option(
            "--like", metavar="STORE|CHECKPOINT", help="Take every option of the recipe from there."
        ),
        click.option(
            "--model", default="vit_b", show_default=True, help="vit_b, vit_l, vit_h, or a registered name."
        ),
        click.option(
            "--checkpoint",
            default="auto",
            show_default=True,
            metavar="FILE|auto|random:SEED",
            help="Weights: a file, the usual folders and then a download, or random ones.",
        ),
        click.option(
            "--tile", default="1024", show_default=True, metavar="N|full", help="Side of a tile in pixels."
        ),
        click.option(
            "--overlap", type=int, default=0, show_default=True, help="Pixels neighbouring tiles share."
        ),
        click.option("--level", type=int, default=0, show_default=True, help="Pyramid level."),
        click.option(
            "--channels",
            metavar="repeat|adjacent[:STEP]|rgb|depth:A-B,C-D,E-F|random:N[:SEED]",
            help="What becomes red, green and blue.  [default: rgb for colour, else repeat]",
        ),
        click.option(
            "--window",
            metavar="dtype|MIN:MAX|pA:pB|NAME[:mask]",
            help="Intensities mapped to 0…255.  [default: dtype for uint8, else p1:p99 of the volume]",
        ),
        click.option(
            "--precision",
            type=click.Choice(["auto", "bf16", "fp32"]),
            default="auto",
            show_default=True,
            help="auto: bf16 where the device has it.",
        ),
        click.option(
            "--store-dtype",
            type=click.Choice(STORE_DTYPES),
            default="float16",
            show_default=True,
            help="Type of the stored embeddings; int8 halves the bytes (one scale per embedding and channel).",
        ),
        click.option(
            "--shard-tiles", type=int, default=64, show_default=True, help="Embeddings in one file."
        ),
    )


def encode_options(volume: str, like: str | None, wishes: dict[str, Any]) -> EncodeOptions:
    """``EncodeOptions`` from parsed options."""
    wishes = {name.replace("-", "_"): value for name, value in wishes.items()}
    if "check_pixels" in wishes:
        wishes["check_pixels"] = parse_check_pixels(wishes["check_pixels"])
    if like is not None:
        _refuse_beside_like()
    tile = wishes.pop("tile", None)
    return options_from(volume, wishes | ({} if tile is None else {"tile": tile}), like)


def _refuse_beside_like() -> None:
    """Options of the recipe that the command line gives beside ``--like`` would be dropped silently."""
    context = click.get_current_context()
    given = [
        name for name in RECIPE_FIELDS if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]
    if given:
        raise ConfigError(
            f"--{given[0].replace('_', '-')} was given beside --like, which takes it from there.",
            hint="Leave one of the two out.",
        )


def parse_check_pixels(text: str | int) -> int | None:
    """A number of tiles, or ``all`` to None."""
    if text == "all":
        return None
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"--check-pixels {text}: expected a number of tiles, or 'all'.") from None
