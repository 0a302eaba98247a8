"""Turns a recipe (of a store or a checkpoint) and a caller's wishes into ``EncodeOptions``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from embedcache.encode.option_checks import ATTENTIONS, COMPILES, check_machine, check_source
from embedcache.encode.recipe import RECIPE_FIELDS, recipe_of
from embedcache.encode.sizes import parse_bytes
from embedcache.errors import ConfigError
from embedcache.geometry import VIEW_SETS
from embedcache.store.spec import STORE_DTYPES

REENCODE = "reencode"
CHANGED = ("stop", REENCODE)
"""What may be done about recorded tiles whose pixels changed."""

READ_MEMORY = 2 << 30
"""Bytes of decoded source pixels that are kept until their last tile is read."""

CHUNK_CACHE = 20 << 30
"""Bytes of chunks that are kept on this machine of volumes that are read from an address."""


__all__ = ["ATTENTIONS", "COMPILES", "EncodeOptions", "default_cache_dir", "options_from", "parse_tile"]


@dataclass(frozen=True)
class EncodeOptions:
    """What stage one is asked to do. The defaults are those of ``embedcache encode``.

    Parameters
    ----------
    volume : str
        Path of the volume.
    store : str, optional
        Path of the store; by default a folder of ``cache_dir`` named for volume, model, tile and fingerprint.
    model, checkpoint : str
        Model name, and ``auto``, ``random:SEED`` or a file.
    tile : int or None
        Side of a tile in pixels of the level; None takes each plane whole (``full``).
    overlap : int
        Pixels that neighbouring tiles share.
    level : int
        Pyramid level that is encoded.
    z_range, bbox, mask : str, optional
        The selection: ``A:B[:STEP]``, ``Y0:Y1,X0:X1``, and a mask whose positive pixels are wanted.
    views : str
        In which views each tile is encoded: ``none`` as it lies only, ``flips`` or ``d4``; of no store's identity.
    skip_empty : bool, optional
        Do not encode tiles whose pixels are all zero; by default on where a mask is given.
    channels, window : str, optional
        The channel recipe and the intensity window; by default what suits the volume.
    precision, store_dtype, device : str
        ``auto``, ``bf16`` or ``fp32``; ``float16`` or ``int8``; ``auto`` or a torch device.
    batch_size : int, optional
        Tiles in one encoder call.
    shard_tiles : int
        Embeddings in one file of the store; the unit of commit.
    cache_dir : str
        Where stores live when ``store`` is not given: ``$EMBEDCACHE_DIR`` or ``./embeddings``.
    check_pixels : int or None
        How many recorded tiles are read again and compared before their embeddings are reused; None: all.
    seed : int, optional
        Of the choice of these tiles; by default another one each time.
    changed : str
        What to do about recorded tiles whose pixels changed: ``stop``, or ``reencode`` exactly these in place.
    attention : str
        How the encoder computes attention: ``auto``, or a variant of :mod:`embedcache.sam.vit`.
    compile : str
        Whether the encoder is compiled: ``auto`` where the tiles to encode repay it, ``on`` or ``off``.
    threads : int, optional
        CPU threads per encoder.
    workers : int
        Processes of this machine that encode together, each with an encoder (and a GPU) of its own.
    scheduler : str, optional
        Address of a dask scheduler whose workers encode.
    read_memory : int
        Bytes of decoded source pixels kept for tiles that are still to be read.
    profile : str, optional
        Where a trace of the run is written, for chrome://tracing or Perfetto.
    num_parts, part_id : int, optional
        Encode one of several parts, counted from 0; the others are encoded by other processes.
    allow_numerics : bool
        Go on although this machine computes with other bits than the store's first commit.
    licence : str
        Licence of the data, kept in the store's provenance.
    image : str, optional
        Which image of a fragment: ``surface``, ``ir``, or the name of a folder or file in it.
    anon : bool, optional
        Whether an address is asked without credentials; by default as the address and the environment suggest.
    chunk_cache : int
        Bytes of chunks kept on this machine of a volume that is read from an address; 0: none.
    empty_threshold : float
        A tile is empty where no pixel is above this, in the source's units.
    citation, source_url : str
        How the data wants to be cited, and where it was fetched; kept in the store's provenance.
    recipe_from : str
        The store or checkpoint whose recipe these options have; set by :func:`options_from`, for messages.
    """

    volume: str
    store: str | None = None
    model: str = "vit_b"
    checkpoint: str = "auto"
    tile: int | None = 1024
    overlap: int = 0
    level: int = 0
    z_range: str | None = None
    bbox: str | None = None
    mask: str | None = None
    views: str = "none"
    skip_empty: bool | None = None
    channels: str | None = None
    window: str | None = None
    precision: str = "auto"
    store_dtype: str = "float16"
    device: str = "auto"
    batch_size: int | None = None
    shard_tiles: int = 64
    cache_dir: str = field(default_factory=lambda: default_cache_dir())
    check_pixels: int | None = 16
    seed: int | None = None
    changed: str = "stop"
    attention: str = "auto"
    compile: str = "auto"
    threads: int | None = None
    workers: int = 1
    scheduler: str | None = None
    read_memory: int = READ_MEMORY
    profile: str | None = None
    num_parts: int | None = None
    part_id: int | None = None
    allow_numerics: bool = False
    licence: str = ""
    image: str | None = None
    anon: bool | None = None
    chunk_cache: int = CHUNK_CACHE
    empty_threshold: float = 0.0
    citation: str = ""
    source_url: str = ""
    recipe_from: str = ""

    def __post_init__(self) -> None:
        """Refuse values that no volume could make right."""
        if self.store_dtype not in STORE_DTYPES:
            raise ConfigError(f"--store-dtype {self.store_dtype}: expected {' or '.join(STORE_DTYPES)}.")
        if self.views not in VIEW_SETS:
            raise ConfigError(f"--views {self.views}: expected {', '.join(VIEW_SETS)}.")
        if self.changed not in CHANGED:
            raise ConfigError(f"--changed {self.changed}: expected {' or '.join(CHANGED)}.")
        if self.changed == REENCODE and (self.num_parts or 1) > 1:
            raise ConfigError(
                "--changed reencode compares the whole store and is done by one process, not by parts.",
                hint="Leave out --num-parts; parts may go on when it has ended.",
            )
        if self.batch_size is not None and self.batch_size < 1:
            raise ConfigError(f"--batch-size {self.batch_size}: must be at least 1.")
        if not 1 <= self.shard_tiles <= 4096:
            raise ConfigError(f"--shard-tiles {self.shard_tiles}: must lie between 1 and 4096.")
        if self.check_pixels is not None and self.check_pixels < 0:
            raise ConfigError(f"--check-pixels {self.check_pixels}: give a number of tiles from 0, or 'all'.")
        if self.seed is not None and self.seed < 0:
            raise ConfigError(f"--seed {self.seed}: must be at least 0.")
        check_machine(self)
        check_source(self)

    @property
    def by_workers(self) -> bool:
        """Whether other processes encode, and this one publishes what they stage."""
        return self.workers > 1 or self.scheduler is not None

    @property
    def skips_empty(self) -> bool:
        """Whether empty tiles are left out: as asked, else where a mask or a threshold is given."""
        if self.skip_empty is not None:
            return self.skip_empty
        return self.mask is not None or self.empty_threshold != 0

    def with_recipe(self, recipe: Mapping[str, Any]) -> EncodeOptions:
        """The same wishes with every option of the recipe taken from ``recipe``."""
        known = {name: recipe[name] for name in RECIPE_FIELDS if name in recipe}
        if known.get("tile") == "full":
            known["tile"] = None
        return replace(self, **known)


def default_cache_dir() -> str:
    """``$EMBEDCACHE_DIR``, or ``embeddings`` in the current folder."""
    return os.environ.get("EMBEDCACHE_DIR") or "embeddings"


def options_from(volume: str | Path, wishes: Mapping[str, Any], like: object = None) -> EncodeOptions:
    """Options for a volume from keyword wishes; ``like`` overrides the recipe part.

    Raises
    ------
    ConfigError
        A wish that is no option.
    """
    names = {option.name for option in fields(EncodeOptions)} - {"recipe_from"}
    unknown = sorted(set(wishes) - names)
    if unknown:
        raise ConfigError(
            f"encode has no option {', '.join(unknown)}.", hint=f"Known: {', '.join(sorted(names))}."
        )
    given = {name: value for name, value in wishes.items() if value is not None or name == "check_pixels"}
    for path_option in ("store", "cache_dir", "mask", "checkpoint", "profile"):
        if path_option in given:
            given[path_option] = str(given[path_option])
    if "tile" in given:
        given["tile"] = parse_tile(given["tile"])
    for size in ("read_memory", "chunk_cache"):
        if size in given:
            given[size] = parse_bytes(given[size], f"--{size.replace('_', '-')}")
    options = EncodeOptions(volume=str(volume), **given)
    if like is None:
        return options
    origin = "" if isinstance(like, Mapping) else str(getattr(like, "path", None) or like)
    return replace(options.with_recipe(recipe_of(like)), recipe_from=origin)


def parse_tile(text: object) -> int | None:
    """``full`` to None, digits to a number of pixels."""
    if text is None or text == "full":
        return None
    try:
        tile = int(str(text))
    except ValueError:
        tile = 0
    if tile < 16:
        raise ConfigError(f"--tile {text}: expected 'full' or a number of pixels from 16.")
    return tile
