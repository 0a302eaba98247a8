"""What goes in or comes out ill: NaN and overflow, zeros that are data, source chunks that cannot be read."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np

from embedcache.store import EmbeddingStore

from .child import call
from .outcome import LostError, Outcome, Row, SilentError, detected, survived
from .stage import SIDE, TILES, Stage, known, planes

KINDS = ("NaN", "infinity", "minus infinity", "beyond float16")


def _not_finite(stage: Stage, case: tuple[str, str], rng: Random) -> Outcome:
    """Some tiles come out of the encoder with a value that is not finite, or not in float16."""
    kind, dtype = case
    pixels = planes(3)
    ill = sorted(rng.sample(range(TILES), rng.randrange(1, 4)))
    for plane in ill:
        pixels[plane, :3, :3] = 255
        pixels[plane, :3, -3:] = 4 + KINDS.index(kind)
    volume, store = stage.here / "scan.npy", stage.here / "s.zarr"
    np.save(volume, pixels)
    model = {"model": "ill", "checkpoint": stage.base / "ill.pth", "volume": volume, "store_dtype": dtype}
    child = stage.run(*stage.encode(store, **model))
    there = set(known(store))
    if there & set(ill):
        raise SilentError(f"{kind}: tiles {sorted(there & set(ill))} were stored")
    assert child.code == 7, f"exit code {child.code}: {child.said[-800:]}"
    if set(range(TILES)) - set(ill) - there:
        raise LostError("healthy tiles were not stored")
    assert sorted(map(int, child.result["failed"])) == ill, child.result["failed"]
    assert sorted(EmbeddingStore.open(store).failed) == ill
    again = stage.run(*stage.encode(store, **model))
    assert again.code == 7, "the tiles are still ill"
    assert again.result["encoder_calls"] <= len(ill), "healthy tiles were encoded again"
    return detected(n_tiles_refused=len(ill))


def _zeros(stage: Stage, _: int, rng: Random) -> Outcome:
    """Embeddings of nothing but zeros are data, and constant or empty planes are tiles like others."""
    pixels = planes(4)
    black = sorted(rng.sample(range(TILES), 2))
    pixels[black] = 0
    white = rng.choice([plane for plane in range(TILES) if plane not in black])
    pixels[white] = 100
    volume, store = stage.here / "scan.npy", stage.here / "s.zarr"
    np.save(volume, pixels)
    model = {"model": "ill", "checkpoint": stage.base / "ill.pth", "volume": volume}
    child = stage.run(*stage.encode(store, **model))
    assert child.code == 0, child.said[-800:]
    opened = EmbeddingStore.open(store)
    if set(np.flatnonzero(opened.committed).tolist()) != set(range(TILES)):
        raise LostError("a tile of zeros is not there")
    for plane in range(TILES):
        if bool((opened[plane] == 0).all()) != (plane in black):
            raise SilentError(f"tile {plane} is not what its encoder gave")
    assert stage.run(*stage.encode(store, **model)).result["encoder_calls"] == 0, (
        "zeros were taken for missing"
    )
    return survived()


def _prepare_zarr(stage: Stage) -> None:
    """The volume as a Zarr array with a checksum in each chunk of one plane."""

    def write() -> None:
        import zarr
        from zarr.codecs import Crc32cCodec

        array = zarr.create_array(
            store=str(stage.folder / "scan.zarr"),
            shape=(TILES, SIDE, SIDE),
            chunks=(1, SIDE, SIDE),
            dtype="uint8",
            compressors=(Crc32cCodec(),),
        )
        array[:] = planes(0)

    call(write, stage.log())


def _broken_source(stage: Stage, case: str, rng: Random) -> Outcome:
    """Chunks of the source are damaged: refused, or their tiles fail by name and the others are encoded."""
    volume, store = stage.copy(stage.folder / "scan.zarr", "scan.zarr"), stage.here / "s.zarr"
    ill = sorted(rng.sample(range(TILES), rng.randrange(1, 4)))
    for plane in ill:
        chunk = volume / "c" / str(plane) / "0" / "0"
        data = bytearray(chunk.read_bytes())
        if case == "flipped":
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif case == "cut":
            del data[rng.randrange(len(data)) :]
        chunk.write_bytes(data)
    child = stage.run(*stage.encode(store, volume=volume))
    # The identity of so small a volume takes in all of its tiles, so that nothing may be encoded at all
    if child.code in (2, 6):
        assert not (store / "zarr.json").exists(), "a store was begun for a volume that cannot be read"
        return detected(n_refused_before_the_first_tile=1)
    assert child.code == 7, f"exit code {child.code}: {child.said[-800:]}"
    there = set(known(store))
    if there & set(ill):
        raise SilentError(f"tiles {sorted(there & set(ill))} were encoded from damaged chunks")
    assert there == set(range(TILES)) - set(ill), "others did not go on"
    return detected(n_tiles_refused=len(ill))


def _prepare_long_zarr(stage: Stage) -> None:
    """A volume of so many planes that its identity reads few of them."""

    def write() -> None:
        import zarr
        from zarr.codecs import Crc32cCodec

        array = zarr.create_array(
            store=str(stage.folder / "scan.zarr"),
            shape=(500, 16, 16),
            chunks=(1, 16, 16),
            dtype="uint8",
            compressors=(Crc32cCodec(),),
        )
        array[:] = np.random.default_rng(7).integers(0, 256, (500, 16, 16), dtype=np.uint8)

    call(write, stage.log())


def _broken_source_later(stage: Stage, case: str, rng: Random) -> Outcome:
    """Chunks that the volume's identity does not read are damaged."""
    volume, store = stage.copy(stage.folder / "scan.zarr", "scan.zarr"), stage.here / "s.zarr"
    ill = sorted(rng.sample([1, 2, 3, 4, 5, 6], 2))
    healthy = {plane: _chunk(volume, plane).read_bytes() for plane in ill}
    for plane, data in healthy.items():
        at = rng.randrange(len(data))
        damaged = bytes([*data[:at], data[at] ^ 8, *data[at + 1 :]]) if case == "flipped" else data[:at]
        _chunk(volume, plane).write_bytes(damaged)
    words = stage.encode(store, volume=volume, tile="16", z_range="0:8")
    child = stage.run(*words)
    assert child.code == 7, f"exit code {child.code}: {child.said[-800:]}"
    there = set(known(store))
    if there & set(ill):
        raise SilentError(f"tiles {sorted(there & set(ill))} were encoded from damaged chunks")
    assert there == set(range(8)) - set(ill), "others did not go on"
    assert sorted(map(int, child.result["failed"])) == ill, child.result["failed"]
    for plane, data in healthy.items():
        _chunk(volume, plane).write_bytes(data)
    again = stage.run(*words)
    assert again.code == 0, again.said[-500:]
    assert again.result["encoder_calls"] == len(ill), "more than the failed tiles was encoded"
    return detected(n_tiles_refused=len(ill))


def _chunk(volume: Path, plane: int) -> Path:
    return volume / "c" / str(plane) / "0" / "0"


ROWS = (
    Row(
        "not-finite",
        "NaN, ±infinity or a value beyond float16 from the encoder, in one place of one tile",
        "exit 7 naming the tiles, none of them stored, the others are; float16 and int8",
        _not_finite,
        cases=lambda _: [(kind, dtype) for kind in KINDS for dtype in ("float16", "int8")] * 2,
        weight=15,
    ),
    Row(
        "zeros-are-data",
        "embeddings of zeros, constant planes",
        "stored, read as zeros, never taken for missing",
        _zeros,
        trials=8,
        weight=5,
    ),
    Row(
        "broken-source",
        "chunks of the source flipped or cut",
        "exit 7 naming the tiles, the others go on; once mended only these are encoded",
        _broken_source_later,
        cases=lambda _: ["flipped", "cut"] * 6,
        prepare=_prepare_long_zarr,
        weight=10,
    ),
    Row(
        "broken-source-small",
        "the same in a volume all of whose chunks its identity reads",
        "refused by name, or as above",
        _broken_source,
        cases=lambda _: ["flipped", "cut"] * 4,
        prepare=_prepare_zarr,
        weight=4,
    ),
)
