"""A store says where its tiles lie in the volume at full resolution, and where its data come from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from encode_samples import Listener, quick

from embedcache.sam.decoder import random_decoder_state
from embedcache.store import EmbeddingStore
from embedcache.store.base_box import base_box


def pyramid(folder: Path, *, halves: tuple[float, float, float] = (1.0, 2.0, 2.0)) -> Path:
    """Two levels; the planes of the second are as many as those of the first, each of half the side."""
    path = folder / "20260411-2.400um-masked.zarr"
    group = zarr.open_group(str(path), mode="w", zarr_format=2)
    values = np.random.default_rng(0).integers(1, 255, (4, 256, 256)).astype(np.uint8)
    shapes = [
        (4, 256, 256),
        tuple(int(size / half) for size, half in zip((4, 256, 256), halves, strict=True)),
    ]
    for level, shape in enumerate(shapes):
        array = group.create_array(str(level), shape=shape, chunks=(4, 64, 64), dtype="uint8")
        array[...] = values[: shape[0], : shape[1], : shape[2]]
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    datasets = [
        {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1.0, 1.0, 1.0]}]},
        {"path": "1", "coordinateTransformations": [{"type": "scale", "scale": list(halves)}]},
    ]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]
    return path


def test_a_tile_of_a_level_covers_its_box_of_the_full_resolution(tmp_path):
    store = quick(pyramid(tmp_path), store=tmp_path / "s.zarr", level=1, z_range="2:3").store
    geometry = store.provenance["geometry"]
    assert (geometry["level"], geometry["scale"], geometry["unit"]) == (1, [1.0, 2.0, 2.0], "micrometer")
    number = int(np.flatnonzero(store.committed)[-1])
    tile = store.tile(number)
    assert (tile.plane, tile.y0, tile.x0, tile.height) == (2, 64, 64, 64)
    assert base_box(store, number) == ((2.0, 3.0), (128.0, 256.0), (128.0, 256.0))


def test_the_voxel_size_of_the_full_resolution_is_kept(tmp_path):
    """Vesuvius' own writer says it in the name only."""
    store = quick(pyramid(tmp_path), store=tmp_path / "s.zarr", level=1, z_range="0:1").store
    assert store.provenance["geometry"]["voxel_size"] == [2.4, 2.4, 2.4]


@pytest.mark.parametrize(
    ("channels", "planes"), [("repeat", (1, 2)), ("adjacent", (1, 2)), ("depth:1-1,2-2,3-3", (1, 4))]
)
def test_a_composite_covers_the_planes_that_it_is_made_of(channels, planes, tmp_path):
    z_range = None if channels.startswith("depth") else "1:2"
    store = quick(
        pyramid(tmp_path), store=tmp_path / "s.zarr", channels=channels, z_range=z_range, bbox="0:64,0:64"
    ).store
    assert base_box(store, int(np.flatnonzero(store.committed)[0]))[0] == planes


def test_a_store_made_before_counts_as_halved_from_level_to_level(tmp_path):
    path = pyramid(tmp_path)
    made = quick(path, store=tmp_path / "s.zarr", level=1, z_range="2:3", bbox="0:64,0:64").store
    new = ("geometry", "origin")
    older = EmbeddingStore.create(
        tmp_path / "older.zarr",
        spec=made.spec,
        table=made.table,
        decoder_state=random_decoder_state(0),
        provenance={name: value for name, value in made.provenance.items() if name not in new},
        shard_tiles=2,
    )
    number = int(np.flatnonzero(made.committed)[0])
    assert base_box(older, number) == ((4.0, 6.0), (0.0, 128.0), (0.0, 128.0))
    # and it is gone on with as it is
    gone_on = quick(path, store=older.path, level=1, z_range="2:3")
    assert (gone_on.encoded, dict(gone_on.store.provenance)) == (4, dict(older.provenance))


# --- origin -----------------------------------------------------------------------------------------------------


@pytest.fixture
def scan(tmp_path) -> Path:
    np.save(tmp_path / "scan.npy", np.random.default_rng(0).integers(1, 255, (2, 64, 64)).astype(np.uint8))
    return tmp_path / "scan.npy"


def test_what_is_told_of_the_data_is_kept_and_later_words_do_not_change_it(scan, tmp_path):
    told = {"licence": "CC BY 4.0", "citation": "A. Author 2026", "source_url": "https://example.org/v"}
    listener = Listener()
    made = quick(scan, listener, store=tmp_path / "s.zarr", z_range="0:1", **told).store
    assert not any("licence" in line for line in listener.lines)
    origin = made.provenance["origin"]
    assert (origin["licence"], origin["citation"], origin["url"]) == tuple(told.values())
    listener = Listener()
    later = quick(scan, listener, store=tmp_path / "s.zarr", **(told | {"licence": "mine"}))
    assert later.store.provenance["origin"] == origin
    assert [line for line in listener.lines if "keeps what it was made with" in line] == [
        f"{tmp_path / 's.zarr'} keeps what it was made with (CC BY 4.0); --licence is for a new store."
    ]


def test_an_unknown_licence_is_said_once_when_the_store_is_made(scan, tmp_path):
    said = []
    for z_range in ("0:1", None):
        listener = Listener()
        quick(scan, listener, store=tmp_path / "s.zarr", z_range=z_range)
        said.append(sum("licence of the data: unknown" in line for line in listener.lines))
    assert said == [1, 0]
