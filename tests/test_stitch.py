from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from result_samples import embedding, make_store

from embedcache.geometry import Tile
from embedcache.results.stitch import Stitcher, stitch_plane, tent
from embedcache.sam.decoder import Prompts, upscale_logits
from embedcache.volume import TileGrid


@given(st.integers(1, 70), st.integers(1, 70))
def test_a_tent_is_symmetric_positive_and_highest_in_the_middle(height: int, width: int) -> None:
    weights = tent(height, width)
    assert weights.shape == (height, width)
    assert weights.min() > 0
    assert weights.max() <= 1
    np.testing.assert_array_equal(weights, weights[::-1, ::-1])
    assert weights[height // 2, width // 2] == weights.max()


@given(st.integers(20, 90), st.integers(20, 90), st.integers(0, 12), st.integers(0, 2**31))
def test_tiles_cut_from_one_picture_stitch_back_to_it(
    height: int, width: int, overlap: int, seed: int
) -> None:
    picture = np.random.default_rng(seed).random((height, width), np.float32)
    tiles = [Tile(*map(int, row)) for row in TileGrid(20, overlap).table([(height, width)], uniform=False)]
    stitched = stitch_plane((height, width), [(tile, picture[tile.slices]) for tile in tiles])
    np.testing.assert_allclose(stitched, picture, atol=1e-6)


def test_pixels_that_no_tile_covers_are_not_predicted() -> None:
    tile = Tile(0, 2, 3, 4, 5)
    stitched = stitch_plane((10, 10), [(tile, np.zeros((4, 5), np.float32))])
    assert np.isnan(stitched).sum() == 100 - 20
    assert (stitched[tile.slices] == 0).all()


def test_a_seam_fades_from_one_tile_into_the_other() -> None:
    left, right = Tile(0, 0, 0, 8, 8), Tile(0, 0, 4, 8, 8)
    pieces = [(left, np.zeros((8, 8), np.float32)), (right, np.ones((8, 8), np.float32))]
    row = stitch_plane((8, 12), pieces)[3]
    assert (row[:4] == 0).all()
    assert (np.diff(row[3:9]) > 0).all()
    assert (row[8:] == 1).all()


def test_a_lone_tile_is_the_decoders_own_answer(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.zarr", [(40, 64)] * 2)
    decoder = store.decoder().eval()
    stitched = Stitcher(store, decoder, np.array([1])).plane(1)
    with torch.inference_mode():
        answer = decoder(torch.from_numpy(embedding(1)).float()[None], Prompts.none(1))
        wanted = torch.sigmoid(upscale_logits(answer.low_res_logits[0, 0], store.tile(1))).numpy()
    np.testing.assert_allclose(stitched, wanted, atol=1e-5)


def test_the_batch_size_does_not_change_a_plane(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.zarr", [(64, 100)], overlap=16)
    numbers = np.flatnonzero(store.committed)
    planes = [Stitcher(store, store.decoder().eval(), numbers, batch_size=size).plane(0) for size in (1, 3)]
    np.testing.assert_allclose(planes[0], planes[1], atol=1e-5)
