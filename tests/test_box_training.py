"""Training with a user's boxes: each box is asked for what it holds, and tiles without one take no part."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from result_samples import add_views
from training_stores import make_store, save_labels

from embedcache.errors import ConfigError, LabelError
from embedcache.geometry import see, see_boxes
from embedcache.results import evaluate, predict, train
from embedcache.store import EmbeddingStore
from embedcache.train.questions.box_prompts import open_boxes
from embedcache.train.questions.dataset import EmbeddingDataset

LABELS = np.zeros((4, 64, 64), np.uint8)
LABELS[:, 8:24, 8:24] = 1
LABELS[:, 30:50, 34:60] = 2
LABELS[:, 24:30, 20:34] = 3

BOXES = "plane,x0,y0,x1,y1\n" + "".join(
    f"{plane},4,4,26,26\n{plane},30,28,62,54\n{plane},40,2,60,20\n" for plane in (0, 1, 3)
)
"""Around the first, around the second, and around nothing; none on plane 2."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("boxes")
    torch.set_num_threads(1)
    make_store(folder / "s.zarr", LABELS)
    save_labels(folder / "ids.npy", LABELS)
    save_labels(folder / "ink.npy", (LABELS > 0).astype(np.uint8))
    (folder / "boxes.csv").write_text(BOXES)
    return folder


def asked(folder: Path, labels: str, **wishes: object) -> EmbeddingDataset:
    store = EmbeddingStore.open(folder / "s.zarr")
    boxes = open_boxes(folder / "boxes.csv", store)
    return EmbeddingDataset(store, folder / labels, prompts="boxes", boxes=boxes, **wishes)  # type: ignore[arg-type]


def enlarged(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.kron(mask, np.ones((4, 4), np.uint8)))


def test_semantic_labels_are_cut_to_each_box(folder: Path) -> None:
    dataset = asked(folder, "ink.npy")
    assert dataset.tiles.tolist() == [0, 1, 3]
    question = dataset.question(0, 0)
    assert question.prompts.boxes is not None
    np.testing.assert_allclose(question.prompts.boxes[0], [64, 64, 416, 416])
    inside = np.zeros((3, 64, 64), np.uint8)
    inside[0, 4:26, 4:26] = inside[1, 28:54, 30:62] = inside[2, 2:20, 40:60] = 1
    for target, box in zip(question.targets, inside, strict=True):
        assert torch.equal(target, enlarged(box * (LABELS[0] > 0)))
    assert torch.equal(question.whole, enlarged((LABELS[0] > 0).astype(np.uint8)))


def test_of_instances_a_box_means_the_one_with_most_pixels_in_it_and_all_of_that(folder: Path) -> None:
    question = asked(folder, "ids.npy").question(3, 0)
    wanted = [LABELS[3] == 1, LABELS[3] == 2, np.zeros((64, 64), bool)]
    assert torch.equal(question.targets, torch.stack([enlarged(mask.astype(np.uint8)) for mask in wanted]))


def test_fewer_boxes_are_drawn_than_there_are_and_keep_their_objects(folder: Path) -> None:
    all_of_them = asked(folder, "ids.npy").question(0, 0)
    assert all_of_them.prompts.boxes is not None
    pairs = {
        tuple(box): target.numpy().tobytes()
        for box, target in zip(all_of_them.prompts.boxes.tolist(), all_of_them.targets, strict=True)
    }
    seen = set()
    for epoch in range(6):
        question = asked(folder, "ids.npy", max_objects=2).question(0, epoch)
        assert question.prompts.boxes is not None
        assert len(question.prompts.boxes) == 2
        for box, target in zip(question.prompts.boxes.tolist(), question.targets, strict=True):
            assert pairs[tuple(box)] == target.numpy().tobytes()
            seen.add(tuple(box))
    assert len(seen) == 3


def test_jitter_moves_boxes_and_leaves_their_objects_alone(folder: Path) -> None:
    plain, moved = (
        asked(folder, "ids.npy", jitter=jitter).question(0, 0).prompts for jitter in (False, True)
    )
    assert plain.boxes is not None
    assert moved.boxes is not None
    assert 0 < np.abs(plain.boxes - moved.boxes).max() <= 20


def test_a_view_is_asked_with_the_boxes_moved_as_its_pixels_are(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.zarr", LABELS)
    add_views(store, (2, 5))
    (tmp_path / "b.csv").write_text(BOXES)
    boxes = open_boxes(tmp_path / "b.csv", store)
    labels = save_labels(tmp_path / "l.npy", (LABELS > 0).astype(np.uint8))
    dataset = EmbeddingDataset(store, labels, prompts="boxes", boxes=boxes, tiles=[0, 1, 3], views=True)
    seen = set()
    for epoch in range(12):
        question = dataset.question(0, epoch)
        view = int(store.view_of[question.number])
        seen.add(view)
        assert question.prompts.boxes is not None
        lying = np.array([[4, 4, 26, 26], [30, 28, 62, 54], [40, 2, 60, 20]])
        np.testing.assert_allclose(question.prompts.boxes, 16 * see_boxes(lying, (64, 64), view))
        assert torch.equal(question.whole, enlarged(see(LABELS[0] > 0, view).astype(np.uint8)))
    assert seen == {0, 2, 5}


def test_boxes_where_nothing_counts_are_not_asked(folder: Path, tmp_path: Path) -> None:
    store = EmbeddingStore.open(folder / "s.zarr")
    ignored = LABELS.copy()
    ignored[0, :, 40:] = 255
    labels = save_labels(tmp_path / "l.npy", ignored)
    dataset = EmbeddingDataset(
        store,
        labels,
        prompts="boxes",
        boxes=open_boxes(folder / "boxes.csv", store),
        task="instances",
        ignore=255,
    )
    assert len(dataset.question(0, 0).targets) == 2
    assert len(dataset.question(1, 0).targets) == 3


def test_boxes_beside_the_labels_are_refused(folder: Path, tmp_path: Path) -> None:
    store = EmbeddingStore.open(folder / "s.zarr")
    (tmp_path / "b.csv").write_text("plane,x0,y0,x1,y1\n2,4,4,26,26\n")
    boxes = open_boxes(tmp_path / "b.csv", store)
    with pytest.raises(LabelError, match=r"No box .* on the tiles"):
        EmbeddingDataset(store, folder / "ink.npy", prompts="boxes", boxes=boxes, tiles=[0, 1])
    with pytest.raises(ConfigError, match="boxes") as caught:
        EmbeddingDataset(store, folder / "ink.npy", prompts="boxes")
    assert "--boxes" in str(caught.value.hint)


def test_a_training_with_boxes_is_measured_free_and_predicts_with_boxes(folder: Path, tmp_path: Path) -> None:
    run = train(
        folder / "s.zarr",
        folder / "ink.npy",
        out=tmp_path / "run",
        prompts="boxes",
        boxes=folder / "boxes.csv",
        steps=2,
        batch_size=1,
        val="0.25",
        logger="none",
    )
    assert (run.summary["prompt_source"], run.summary["prompts"]) == ("free", "boxes")
    found = predict(folder / "s.zarr", run.checkpoint, boxes=folder / "boxes.csv")
    assert found.prompts == "boxes"
    assert not found[2].any()
    with pytest.raises(ConfigError, match="needs boxes"):
        predict(folder / "s.zarr", run.checkpoint)
    figures = evaluate(folder / "s.zarr", folder / "ink.npy", checkpoint=run.checkpoint)
    assert (figures.prompts, figures.prompt_source, figures.counted) == ("boxes", "free", "stitched pixels")
    again = evaluate(
        folder / "s.zarr", folder / "ink.npy", checkpoint=run.checkpoint, boxes=folder / "boxes.csv"
    )
    assert again.figures == figures.figures
    with pytest.raises(ConfigError, match="--boxes"):
        evaluate(
            folder / "s.zarr",
            folder / "ink.npy",
            checkpoint=run.checkpoint,
            prompts="none",
            boxes=folder / "boxes.csv",
        )
