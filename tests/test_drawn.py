"""What a training's pictures promise: green in, red out, at the right pixels, and the same tiles each time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from training_stores import blob_labels, make_store, save_labels

from embedcache.geometry import Tile
from embedcache.sam.decoder import Decoder, Prompts
from embedcache.train.asking.drawn import (
    ANSWER,
    BETWEEN,
    IN,
    LONG_SIDE,
    OUT,
    TRUTH,
    Frame,
    draw_tile,
    draw_validation,
    shown_tiles,
)
from embedcache.train.asking.validation import Held
from embedcache.train.loggers import Pixels
from embedcache.train.questions.dataset import EmbeddingDataset

CPU = torch.device("cpu")
EMBEDDING = torch.randn(256, 64, 64, generator=torch.Generator().manual_seed(0))


class Kept:
    """A logger that keeps pictures."""

    def __init__(self) -> None:
        self.pictures: list[tuple[int, str, Pixels]] = []

    def scalars(self, step: int, place: str, values: object) -> None:
        raise AssertionError("a picture is no scalar")

    def picture(self, step: int, name: str, pixels: Pixels) -> None:
        self.pictures.append((step, name, pixels))

    def close(self) -> None:
        pass


def nothing(tile: Tile) -> np.ndarray:
    return np.zeros((tile.height, tile.width), bool)


def no(tile: Tile) -> np.ndarray:
    return np.full((tile.height, tile.width), -20.0, np.float32)


def middle(frame: Frame, x: int, y: int) -> tuple[int, int]:
    """Row and column in the picture of a tile's pixel."""
    height, width = frame.size
    return int((y + 0.5) * height / frame.tile.height), int((x + 0.5) * width / frame.tile.width)


@given(st.integers(16, 300), st.integers(16, 300), st.floats(0, 0.999), st.floats(0, 0.999))
@settings(max_examples=25, deadline=None)
def test_a_prompt_is_drawn_on_the_pixel_it_names(height: int, width: int, down: float, right: float) -> None:
    tile = Tile(0, 7, 9, height, width)
    x, y = int(right * width), int(down * height)
    frame = Frame.of(tile)
    assert max(frame.size) == LONG_SIDE
    column, row = frame.place(tile.to_frame([x, y]))
    want = middle(frame, x, y)
    assert abs(row - want[0]) <= 1 + 0.5 * frame.size[0] / height
    assert abs(column - want[1]) <= 1 + 0.5 * frame.size[1] / width


def test_points_are_green_in_and_red_out_and_boxes_green() -> None:
    tile = Tile(0, 0, 0, 100, 200)
    frame = Frame.of(tile)
    coords = tile.to_frame([[[40, 20], [150, 80]]])
    prompts = Prompts(
        (1,),
        torch.from_numpy(coords),
        torch.tensor([[1, 0]], dtype=torch.int32),
        boxes=torch.from_numpy(tile.boxes_to_frame([[100, 10, 180, 50]])),
    )
    picture = draw_tile(EMBEDDING, tile, nothing(tile), no(tile), prompts)
    assert picture.shape == (256, 512 + BETWEEN + 512, 3)
    assert tuple(picture[middle(frame, 40, 20)]) == IN
    assert tuple(picture[middle(frame, 150, 80)]) == OUT
    assert tuple(picture[round(30 * 2.56), 256]) == IN  # the left side of the box
    assert tuple(picture[round(30 * 2.56), 300]) not in (IN, OUT)


def test_what_takes_no_part_is_not_drawn() -> None:
    tile = Tile(0, 0, 0, 64, 64)
    coords = torch.full((2, 2, 2), 512.0)
    coords[:, 1] = 256.0
    prompts = Prompts(
        (2,),
        coords,
        torch.tensor([[1, 1], [-1, -1]], dtype=torch.int32),
        boxes=torch.tensor([[0.0, 0.0, 900.0, 900.0], [100.0, 100.0, 800.0, 800.0]]),
        point_counts=torch.tensor([1, 2]),
        has_box=torch.tensor([False, False]),
    )
    picture = draw_tile(EMBEDDING, tile, nothing(tile), no(tile), prompts)
    green = (picture == np.array(IN)).all(axis=-1)
    rows, columns = np.nonzero(green)
    assert green.any()
    assert abs(rows - 260).max() <= 5
    assert abs(columns - 260).max() <= 5


def halves(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The question and the answer."""
    side = (picture.shape[1] - BETWEEN) // 2
    return picture[:, :side], picture[:, -side:]


def test_the_truth_is_outlined_in_both_halves_and_the_answer_is_filled_in_one() -> None:
    tile = Tile(0, 0, 0, 64, 64)
    truth, answer = nothing(tile), no(tile)
    truth[8:24, 8:24] = True
    answer[40:56, 40:56] = 20.0
    question, answered = halves(draw_tile(EMBEDDING, tile, truth, answer, Prompts.none(1)))
    for half in (question, answered):
        rows, columns = np.nonzero((half == np.array(TRUTH)).all(axis=-1))
        for found in (rows, columns):
            assert (found.min() // 8, found.max() // 8) in {(7, 24), (7, 23), (8, 24)}
    assert (answered[8 * 40 : 8 * 56, 8 * 40 : 8 * 56] == ANSWER).all()
    assert (answered[8 * 24 + 2 : 8 * 40] == 0).all()  # surely not
    assert not (question == np.array(ANSWER)).all(axis=-1).any()


def test_an_untrained_decoders_guess_is_dim_all_over_and_hides_no_truth() -> None:
    tile = Tile(0, 0, 0, 64, 64)
    truth = nothing(tile)
    truth[8:24, 8:24] = True
    noise = np.random.default_rng(0).normal(0, 0.01, (64, 64)).astype(np.float32)
    _, answered = halves(draw_tile(EMBEDDING, tile, truth, noise, Prompts.none(1)))
    white = (answered == np.array(TRUTH)).all(axis=-1)
    assert white.sum() > 4 * 8 * 16
    assert answered[~white].max() < 100
    sure, unsure = (answer_of(tile, logit)[100, 100] for logit in (5.0, 1.0))
    assert sure[0] > unsure[0] > 100  # yes: the surer, the brighter
    sure, unsure = (answer_of(tile, logit)[100, 100] for logit in (-5.0, -1.0))
    assert sure[0] < unsure[0] < 100
    assert len(set(unsure.tolist())) == 1  # no is grey


def answer_of(tile: Tile, logit: float) -> np.ndarray:
    """The answer's half where every pixel has this logit above the threshold."""
    everywhere = np.full((tile.height, tile.width), logit, np.float32)
    return halves(draw_tile(EMBEDDING, tile, nothing(tile), everywhere, Prompts.none(1)))[1]


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Held:
    folder = tmp_path_factory.mktemp("drawn")
    labels = blob_labels(2, 192, 128)
    labels[1] = 0
    store = make_store(folder / "s.zarr", labels)
    dataset = EmbeddingDataset(store, save_labels(folder / "l.npy", labels), prompts="points")
    return Held(dataset, tuple(int(number) for number in np.flatnonzero(store.committed)))


def test_validation_leaves_pictures_in_the_run_and_at_its_loggers(tmp_path: Path, held: Held) -> None:
    model, logger = Decoder.random(0).train(), Kept()
    paths = draw_validation(model, [held], CPU, folder=tmp_path, step=40, logger=logger)
    assert model.training
    assert 1 <= len(paths) <= 4
    assert [path.name for path in paths] == [f"step-000040-{n}.png" for _, _, n in shown_tiles([held])]
    assert [(step, name) for step, name, _ in logger.pictures] == [
        (40, f"tile-{number}") for _, _, number in shown_tiles([held])
    ]
    for path, (_, _, pixels) in zip(paths, logger.pictures, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(path)), pixels)
        assert (pixels == np.array(IN)).all(axis=-1).any()
    again = draw_validation(model, [held], CPU, folder=tmp_path / "again", step=40, logger=logger)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]


def test_tiles_with_something_in_them_are_shown(held: Held) -> None:
    positive = held.dataset.labels.positive(held.dataset.store, [n for _, _, n in shown_tiles([held, held])])
    assert (positive > 0).all()
    assert shown_tiles([]) == []
