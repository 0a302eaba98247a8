"""The command ``info``: a volume at a glance, and what ``encode`` would do with it."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

from embedcache.cli.app import app
from embedcache.cli.common import json_option
from embedcache.cli.encode_options import encode_options, recipe_options, selection_options
from embedcache.cli.output import first_line, print_json, print_pairs
from embedcache.cli.source_options import source_options
from embedcache.encode.options import EncodeOptions
from embedcache.encode.plan import bytes_per_tile
from embedcache.encode.sizes import readable_bytes
from embedcache.encode.survey import open_source_of, tile_table
from embedcache.errors import ConfigError, VolumeError
from embedcache.files import write_file
from embedcache.remote import is_remote
from embedcache.volume import Preprocess, Selection, TileGrid, Volume, resolve_preprocess, select
from embedcache.volume.formats import format_key
from embedcache.volume.layouts import strip_scheme
from embedcache.volume.look import Thumbnail, histogram, thumbnail
from embedcache.volume.normalisation import is_named
from embedcache.volume.opening import found_in
from embedcache.volume.origin import origin_of
from embedcache.volume.volume import TIFF_SUFFIXES

_BLOCKS = "▁▂▃▄▅▆▇█"


@app.command(
    short_help="What a volume is, and what encode would do with it.",
    epilog="Example: embedcache info scroll1.zarr --level 2 --thumbnail scroll1.png",
)
@click.argument("volume", metavar="V")
@click.option("--thumbnail", "picture", metavar="FILE.png", help="Write a small picture of one plane.")
@click.option("--plane", type=int, metavar="N", help="Which plane.  [default: the middle one]")
@source_options
@recipe_options
@selection_options
@json_option
def info(
    volume: str, picture: str | None, plane: int | None, like: str | None, as_json: bool, **wishes: Any
) -> None:
    """Show what a volume is: shape, levels, type, chunks, voxel size, intensities, and what `encode` would do.

    Takes the options of `encode`. Of the pixels a sample is read, never the whole volume.
    """
    options = encode_options(volume, like, wishes)
    if picture is not None and Path(picture).suffix.lower() != ".png":
        raise ConfigError(f"--thumbnail {picture}: expected a name that ends in .png.")
    with open_source_of(options) as opened:
        would, shown = _would(opened, options)
        figures = _what_it_is(opened, options) | would
        figures |= {"histogram": histogram(opened), "thumbnail": None}
        if picture is not None:
            small = thumbnail(
                opened,
                shown or _whole_range(figures["histogram"]),
                plane=plane,
                at_level=lambda level: _at_level(options, level),
            )
            figures["thumbnail"] = _written(Path(picture), small)
    if as_json:
        print_json(figures)
    else:
        print_pairs("info", _in_words(figures))


def _at_level(options: EncodeOptions, level: int) -> Volume:
    """Another level of the volume; where the path is one array of a pyramid, by the group around it."""
    try:
        return open_source_of(replace(options, level=level))
    except VolumeError:
        parts = options.volume.partition("?") if is_remote(options.volume) else (options.volume, "", "")
        group = parts[0].rstrip("/").rpartition("/")[0] + parts[1] + parts[2]
        return open_source_of(replace(options, volume=group, level=level))


def _what_it_is(opened: Volume, options: EncodeOptions) -> dict[str, Any]:
    sizes = [opened.plane_size(plane) for plane in range(1 if opened.uniform else opened.n_planes)]
    pixels = sum(height * width for height, width in sizes) * (opened.n_planes if opened.uniform else 1)
    return {
        "volume": opened.source,
        "format": _format(opened, options),
        "kind": opened.kind,
        "planes": opened.n_planes,
        "height": max(height for height, _ in sizes),
        "width": max(width for _, width in sizes),
        "sizes_differ": len(set(sizes)) > 1,
        "bytes": pixels * opened.channels * opened.dtype.itemsize,
        "dtype": str(opened.dtype),
        "channels": opened.channels,
        "level": opened.level,
        "levels": [list(shape) for shape in opened.levels],
        "scale": list(opened.scale),
        "voxel_size": None if opened.voxel_size is None else list(opened.voxel_size),
        "chunks": list(opened.chunks) if opened.chunks else None,
        "origin": origin_of(opened.source).to_dict(),
    }


def _format(opened: Volume, options: EncodeOptions) -> str:
    """The row of the table of formats that the path was opened by."""
    if is_remote(opened.source):
        return format_key("remote")
    path, fragment = strip_scheme(options.volume)
    folder = Path(path).expanduser().absolute()
    found = found_in(folder, options.image, fragment=fragment) if folder.is_dir() else None
    if found is not None:
        return format_key(found.layout)
    tiffs = not opened.uniform and opened.plane_name(0).lower().endswith(TIFF_SUFFIXES)
    return format_key("tiff" if tiffs else opened.kind)


def _would(opened: Volume, options: EncodeOptions) -> tuple[dict[str, Any], tuple[float, float] | None]:
    """What ``encode`` would do but for the weights and for what the store has by then, and its window."""
    named = options.window is not None and is_named(options.window)
    try:
        preprocess = resolve_preprocess(
            opened,
            channels=options.channels,
            window=None if named else options.window,
            recipe_from=options.recipe_from,
        )
    except VolumeError as error:
        if options.window is not None or options.channels is not None:
            raise
        # No fault of the command: of a volume of one value there is much to be told all the same.
        refused = {"refused": f"{error.message} {error.hint or ''}".rstrip()}
        return {"encode_channels": None, "encode_window": None, "would": refused}, None
    total, selected = _tiles(opened, preprocess, options)
    would = {
        "model": options.model,
        "tile": options.tile or "full",
        "overlap": options.overlap,
        "channels": preprocess.channels,
        "window": options.window or "{:g}:{:g}".format(*preprocess.window),
        "tiles": total,
        "tiles_selected": selected,
        "bytes": selected * bytes_per_tile(options.store_dtype),
    }
    window = None if named else list(preprocess.window)
    return {
        "encode_channels": preprocess.channels,
        "encode_window": window,
        "would": would,
    }, preprocess.window


def _whole_range(counted: dict[str, Any]) -> tuple[float, float]:
    """A window for a picture of what has none: all values that were seen."""
    low, high = counted["edges"][0], counted["edges"][-1]
    return low, max(high, low + 1)


def _tiles(opened: Volume, preprocess: Preprocess, options: EncodeOptions) -> tuple[int, int]:
    """Tiles of the volume, and of the selection.

    Without a mask the planes and the tiles of one plane are counted apart: the table of a whole scroll would take
    gigabytes.
    """
    grid = TileGrid(tile=options.tile, overlap=options.overlap)
    if not opened.uniform or options.mask is not None:
        sizes = () if opened.uniform else tuple(map(opened.plane_size, range(opened.n_planes)))
        table = tile_table(opened, preprocess, grid, sizes)
        wanted = select(table, Selection(options.z_range, options.bbox, options.mask), volume=opened)
        return int((table[:, 0] >= 0).sum()), int(wanted.sum())
    planes = np.zeros((preprocess.n_planes(opened), 5), np.int64)
    planes[:, 0], planes[:, 3:] = np.arange(len(planes)), opened.plane_size(0)
    boxes = grid.table_images([opened.plane_size(0)])
    deep = int(select(planes, Selection(z_range=options.z_range), volume=opened).sum())
    flat = int(select(boxes, Selection(bbox=options.bbox), volume=opened).sum())
    return len(planes) * len(boxes), deep * flat


def _written(path: Path, small: Thumbnail) -> dict[str, Any]:
    stream = io.BytesIO()
    Image.fromarray(small.pixels).save(stream, "PNG")
    write_file(path.absolute(), stream.getvalue())
    return {
        "output": str(path.absolute()),
        "plane": small.plane,
        "level": small.level,
        "pieces": list(small.pieces),
    }


def _in_words(figures: dict[str, Any]) -> list[tuple[str, object]]:
    told = dict(figures)
    would, counted, picture = told.pop("would"), told.pop("histogram"), told.pop("thumbnail")
    told["bytes"] = readable_bytes(told["bytes"])
    told["levels"] = ", ".join(_product(shape, ",") or "absent" for shape in told["levels"]) or None
    told["scale"] = _product(told["scale"], "g")
    told["voxel_size"] = told["voxel_size"] and _product(told["voxel_size"], "g") + " µm"
    told["origin"] = "; ".join(first_line(text) for text in told["origin"].values() if text) or None
    told["intensities"] = (
        f"{counted['edges'][0]:g} {sparkline(counted['counts'])} {counted['edges'][-1]:g} (heights logarithmic; "
        f"{counted['sampled_pixels']:,} sampled values, {counted['zeros']:,} zero, {counted['nan']:,} NaN)"
    )
    told["encode would"] = _would_in_words(would)
    if picture is not None:
        whole = picture["pieces"] == [1, 1]
        parts = "the whole plane" if whole else f"{_product(picture['pieces'], 'd')} parts of it"
        told["thumbnail"] = (
            f"{picture['output']} (plane {picture['plane']}, level {picture['level']}: {parts})"
        )
    return [(name.replace("_", " "), value) for name, value in told.items()]


def _would_in_words(would: dict[str, Any]) -> str:
    if "refused" in would:
        return f"refuse: {would['refused']}"
    return (
        f"write {would['tiles_selected']:,} of {would['tiles']:,} tiles of {would['tile']}, "
        f"{readable_bytes(would['bytes'])}, channels {would['channels']}, window {would['window']}"
    )


def _product(lengths: list[float], form: str) -> str:
    return " × ".join(format(length, form) for length in lengths)


def sparkline(counts: list[int]) -> str:
    """Counts as one line of block characters; a blank is none, heights are logarithmic."""
    heights = np.log1p(counts) / max(np.log1p(max(counts)), 1e-9)
    return "".join(
        _BLOCKS[min(int(height * len(_BLOCKS)), len(_BLOCKS) - 1)] if count else " "
        for count, height in zip(counts, heights, strict=True)
    )
