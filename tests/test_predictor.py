"""The predictor of a stored tile: what SAM's own predictor gives for the same embedding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from store_samples import commit, embedding, make_store, spec
from torch.nn.functional import interpolate

from embedcache.errors import InputError
from embedcache.geometry import Tile
from embedcache.sam import Decoder
from embedcache.store import EmbeddingStore, StorePredictor

ROWS = np.array([[0, 0, 0, 40, 64], [1, 0, 0, 64, 64]], np.int64)

PROMPTS = [
    {"point_coords": [[20.0, 10.0], [50.5, 30.0]], "point_labels": [1, 0]},
    {"box": [3.0, 4.0, 40.0, 33.0]},
    {"point_coords": [[63.0, 39.0]], "point_labels": [1], "box": [0.0, 0.0, 64.0, 40.0]},
    {"mask_input": np.linspace(-4, 4, 256 * 256).reshape(1, 256, 256)},
    {},
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    state = Decoder.random(0).state_dict()
    made = make_store(tmp_path_factory.mktemp("s"), table=ROWS, decoder_state=state)
    commit(made, 0, 1)
    return made


def stock(decoder: Decoder, tile: int, multimask: bool, **prompts: object) -> tuple[np.ndarray, ...]:
    """SAM's predictor, spelled out with segment-anything's own modules."""
    height, width = (int(n) for n in ROWS[tile, 3:])
    content = (int(height * 1024 / 64 + 0.5), int(width * 1024 / 64 + 0.5))
    scale = np.array([content[1] / width, content[0] / height])
    points = boxes = mask = None
    if "point_coords" in prompts:
        coords = torch.tensor(np.array(prompts["point_coords"]) * scale, dtype=torch.float32)
        points = (coords[None], torch.tensor(prompts["point_labels"], dtype=torch.int32)[None])
    if "box" in prompts:
        boxes = torch.tensor(np.array(prompts["box"]) * np.tile(scale, 2), dtype=torch.float32)[None]
    if "mask_input" in prompts:
        mask = torch.tensor(prompts["mask_input"], dtype=torch.float32)[None]
    with torch.no_grad():
        sparse, dense = decoder.prompt_encoder(points=points, boxes=boxes, masks=mask)
        low_res, iou = decoder.mask_decoder(
            image_embeddings=torch.from_numpy(embedding(tile).astype(np.float32))[None],
            image_pe=decoder.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
        )
        logits = interpolate(low_res, (1024, 1024), mode="bilinear", align_corners=False)
        logits = logits[..., : content[0], : content[1]]
        logits = interpolate(logits, (height, width), mode="bilinear", align_corners=False)
    return logits[0].numpy(), iou[0].numpy(), low_res[0].numpy()


@pytest.mark.parametrize("prompts", PROMPTS)
@pytest.mark.parametrize(("tile", "multimask"), [(0, True), (1, False)])
def test_it_gives_what_sam_gives(store: EmbeddingStore, tile: int, multimask: bool, prompts: dict) -> None:
    predictor = store.predictor(tile)
    found = predictor.predict(**prompts, multimask_output=multimask, return_logits=True)
    expected = stock(predictor.decoder, tile, multimask, **prompts)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
    masks, _, _ = predictor.predict(**prompts, multimask_output=multimask)
    assert masks.dtype == np.bool_
    assert np.array_equal(masks, found[0] > 0)


def test_a_turned_tile_is_asked_and_answered_as_the_encoder_saw_it() -> None:
    seen, turned = Tile(0, 0, 0, 40, 64), Tile(0, 0, 0, 64, 40, view=1)
    decoder, stored = Decoder.random(0), torch.from_numpy(embedding(0).astype(np.float32))
    point = {"point_coords": [[60.0, 20.0]], "point_labels": [1]}
    found = StorePredictor(decoder, stored, turned)
    assert found.original_size == (40, 64)
    masks, want = (StorePredictor(decoder, stored, tile).predict(**point)[0] for tile in (turned, seen))
    assert masks.shape == (3, 40, 64)
    assert np.array_equal(masks, want)
    with pytest.raises(InputError) as refusal:
        found.predict(point_coords=[[20.0, 60.0]], point_labels=[1])
    assert "64 × 40 (width × height)" in str(refusal.value.hint)


def test_a_quantised_tile_gives_nearly_the_same(tmp_path: Path, store: EmbeddingStore) -> None:
    state = Decoder.random(0).state_dict()
    quantised = make_store(tmp_path, table=ROWS, decoder_state=state, spec=spec(store_dtype="int8"))
    commit(quantised, 0)
    prompts = {"point_coords": [[20.0, 10.0]], "point_labels": [1]}
    exact, rounded = (made.predictor(0).predict(**prompts)[2] for made in (store, quantised))
    assert not np.array_equal(rounded, exact)
    assert np.sqrt(np.mean((rounded - exact) ** 2)) < 0.05 * exact.std()


def test_another_decoder_may_be_used(store: EmbeddingStore) -> None:
    trained = StorePredictor(Decoder.random(1), store[0], store.tile(0))
    assert not np.allclose(trained.predict()[2], store.predictor(0).predict()[2])
    assert (trained.original_size, trained.input_size) == ((40, 64), (640, 1024))
    assert trained.get_image_embedding().shape == (1, 256, 64, 64)


@pytest.mark.parametrize(
    "prompts",
    [
        {"point_coords": [[1.0, 1.0]]},
        {"point_coords": [1.0, 1.0], "point_labels": [1]},
        {"point_coords": [[500.0, 1.0]], "point_labels": [1]},
        {"box": [[1.0, 2.0, 3.0, 4.0]]},
        {"mask_input": np.zeros((256, 256))},
    ],
)
def test_prompts_that_cannot_be_meant_are_refused(store: EmbeddingStore, prompts: dict) -> None:
    with pytest.raises(InputError):
        store.predictor(0).predict(**prompts)


@pytest.mark.parametrize(
    "prompts",
    [
        {"point_coords": [[10.0, 10.0], [20.0, 41.0]], "point_labels": [1, 0]},
        {"point_coords": [[float("nan"), 1.0]], "point_labels": [1]},
        {"box": [3.0, 4.0, 65.0, 33.0]},
        {"box": [-1.0, 4.0, 40.0, 33.0]},
    ],
)
def test_prompts_beyond_the_tile_are_named_in_its_own_pixels(store: EmbeddingStore, prompts: dict) -> None:
    with pytest.raises(InputError, match="beyond the tile") as caught:
        store.predictor(0).predict(**prompts)
    assert "the tile is 64 × 40" in str(caught.value)
    assert "frame" not in str(caught.value)


def test_pixels_are_shown_only_with_a_volume(store: EmbeddingStore, tmp_path: Path) -> None:
    from embedcache.volume import open_volume

    with pytest.raises(InputError, match="no volume"):
        _ = store.predictor(0).image
    pixels = np.arange(2 * 64 * 64, dtype=np.uint8).reshape(2, 64, 64)
    np.save(tmp_path / "v.npy", pixels)
    with open_volume(tmp_path / "v.npy") as volume:
        image = store.predictor(1, volume).image
    assert image.dtype == np.uint8
    assert np.array_equal(image[..., 0], pixels[1])
