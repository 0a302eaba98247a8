"""A ladder of thresholds in one pass: the figures of each are those that an evaluation at it alone would give."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from result_samples import make_checkpoint, make_store

from embedcache.cli.app import run
from embedcache.cli.figures import print_evaluation
from embedcache.errors import ConfigError
from embedcache.results import evaluate, predict
from embedcache.results.thresholds import LADDER, ProbabilityCounts, joined, read_thresholds, sweep_of
from embedcache.train.asking.metrics import figures

SIZES = [(64, 64)]
"""One tile: each evaluation costs a decoder's call or two."""


def by_hand(plane: np.ndarray, truth: np.ndarray, counted: np.ndarray, threshold: float) -> tuple[int, ...]:
    found = (plane > threshold) & counted  # NaN is above nothing
    wanted = truth & counted
    return int((found & wanted).sum()), int((found & ~wanted).sum()), int((wanted & ~found).sum())


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_every_threshold_counts_as_comparing_pixel_by_pixel_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ladder = read_thresholds(LADDER)
    # many pixels lie on a threshold exactly, and some are not predicted
    values = np.array([*np.float32(ladder), 0, 1, np.nan, 0.33], np.float32)
    counts, by_hands = ProbabilityCounts((0.5, *ladder)), np.zeros((len(ladder), 3), int)
    for _ in range(2):
        plane = rng.choice(values, (7, 9))
        truth, counted = rng.random((7, 9)) < 0.4, rng.random((7, 9)) < 0.8
        counts.add(plane, truth, counted)
        by_hands += [by_hand(plane, truth, counted, threshold) for threshold in ladder]
    for threshold, (tp, fp, fn) in zip(ladder, by_hands, strict=True):
        assert counts.at(threshold) == figures(tp, fp, fn, threshold)


def test_blocks_of_rows_count_what_the_whole_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    plane, truth = rng.random((50, 9), np.float32), rng.random((50, 9)) < 0.5
    whole, blocks = ProbabilityCounts((0.2, 0.7)), ProbabilityCounts((0.2, 0.7))
    whole.add(plane, truth, np.ones_like(truth))
    monkeypatch.setattr("embedcache.results.thresholds._ROWS_PIXELS", 30)
    blocks.add(plane, truth, np.ones_like(truth))
    np.testing.assert_array_equal(whole.counted, blocks.counted)


def test_the_best_has_the_best_figure_and_among_equals_the_plainest_threshold() -> None:
    counts = ProbabilityCounts(read_thresholds(LADDER))
    counts.add(np.array([[0.9, 0.1]], np.float32), np.array([[True, False]]), np.ones((1, 2), bool))
    sweep = sweep_of(counts, read_thresholds(LADDER))
    assert sweep.best.f05 == max(row.f05 for row in sweep.rows) == 1.0
    assert sweep.best.threshold == 0.5
    assert [row.threshold for row in sweep.rows] == list(read_thresholds(LADDER))


def test_f05_is_the_contests() -> None:
    def contest(tp: int, fp: int, fn: int, beta: float = 0.5) -> float:
        precision, recall = tp / (tp + fp), tp / (tp + fn)
        return (1 + beta**2) * precision * recall / (beta**2 * precision + recall)

    for tp, fp, fn in ((6, 2, 4), (1, 0, 99), (50, 50, 0), (3, 7, 1)):
        assert figures(tp, fp, fn).f05 == pytest.approx(contest(tp, fp, fn))
    assert figures(6, 2, 4).f05 == pytest.approx(0.714286, abs=1e-6)
    assert [figures(*counts).f05 for counts in ((0, 3, 0), (0, 0, 3), (0, 0, 0))] == [0.0, 0.0, 0.0]


def test_precision_weighs_twice_as_much_as_recall() -> None:
    assert figures(50, 10, 50).f05 > figures(50, 50, 10).f05


@pytest.mark.parametrize(
    ("given", "numbers"),
    [
        ("0.1:0.3:0.1", (0.1, 0.2, 0.3)),
        ("0.5:0.5:0.1", (0.5,)),
        ("0:1:0.5", (0.0, 0.5, 1.0)),
        ([0.7, 0.2, 0.2], (0.2, 0.7)),
    ],
)
def test_a_ladder_has_both_its_ends(given: object, numbers: tuple[float, ...]) -> None:
    assert read_thresholds(given) == numbers  # type: ignore[arg-type]
    assert len(read_thresholds(LADDER)) == 19
    assert read_thresholds(LADDER)[-1] == 0.95


@pytest.mark.parametrize(
    "text", ["", "0.1", "0.1:0.9", "a:b:c", "0.9:0.1:0.1", "0.1:0.9:0", "0:1:1e-9", "-1:1:0.5", "nan:1:0.1"]
)
def test_what_is_no_ladder_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--thresholds"):
        read_thresholds(text)


@pytest.mark.parametrize("prompts", ["none", "box"])
def test_a_sweep_equals_an_evaluation_at_each_of_its_thresholds(tmp_path: Path, prompts: str) -> None:
    store = make_store(tmp_path / "s.zarr", SIZES)
    truth = np.zeros((1, 64, 64), np.uint8)
    truth[:, 10:40, 20:50] = 255
    np.save(tmp_path / "ink.npy", truth)
    checkpoint = make_checkpoint(tmp_path / "c.safetensors", store, threshold=-0.5)
    options = {"checkpoint": checkpoint, "split": "all", "prompts": prompts}
    swept = evaluate(store, tmp_path / "ink.npy", thresholds="0.45:0.55:0.1", **options)
    assert swept.thresholds is not None
    assert len(swept.thresholds.rows) == 2
    for row in swept.thresholds.rows:
        alone = evaluate(store, tmp_path / "ink.npy", threshold=row.threshold, **options)
        assert row == alone.figures


def test_a_threshold_chosen_on_other_than_validation_is_said_to_be_no_result(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.zarr", SIZES)
    np.save(tmp_path / "ink.npy", (np.random.default_rng(3).random((1, 64, 64)) < 0.3).astype(np.uint8))
    checkpoint = make_checkpoint(tmp_path / "c.safetensors", store)
    for split, words in ((None, "on data that nothing was chosen on"), ("all", "must not be reported")):
        found = evaluate(
            store, tmp_path / "ink.npy", checkpoint=checkpoint, split=split, thresholds=True
        ).to_dict()
        assert words in found["thresholds"]["note"]
        assert len(found["thresholds"]["rows"]) == 19
        assert found["thresholds"]["metric"] == "f05"


def test_counts_at_other_thresholds_cannot_be_added() -> None:
    with pytest.raises(ValueError, match="thresholds"):
        joined([ProbabilityCounts((0.5,)), ProbabilityCounts((0.6,))])


def test_pixels_of_several_stores_are_counted_together_and_each_by_itself(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    pairs = []
    for name, sizes, share in (("f1", SIZES, 0.3), ("f2", [(40, 64)], 0.7)):
        shape = [len(sizes), *sizes[0]]
        store = make_store(tmp_path / f"{name}.zarr", sizes, volume={"kind": "npy", "shape": shape})
        np.save(tmp_path / f"{name}.npy", (rng.random(shape) < share).astype(np.uint8))
        pairs.append((store, tmp_path / f"{name}.npy"))
    stores, labels = zip(*pairs, strict=True)
    checkpoint = make_checkpoint(tmp_path / "c.safetensors", stores[0])
    options = {"checkpoint": checkpoint, "split": "all", "thresholds": [0.4, 0.5]}
    both = evaluate(stores, labels, **options)
    alone = [evaluate(store, label, **options) for store, label in pairs]
    assert [found for _, found in both.stores] == alone
    assert both.tiles == sum(found.tiles for found in alone)
    assert both.thresholds is not None
    masks, truths = [], []
    for store, label in pairs:
        masks += [mask.ravel() for mask in predict(store, checkpoint, threshold=0.5)]
        truths.append(np.load(label).ravel() > 0)
    found, truth = np.concatenate(masks), np.concatenate(truths)
    tp, fp, fn = (found & truth).sum(), (found & ~truth).sum(), (truth & ~found).sum()
    assert both.figures == figures(int(tp), int(fp), int(fn), 0.5)
    assert both.thresholds.rows[1] == both.figures
    rows = both.to_dict()["stores"]
    assert [row["store"] for row in rows] == [str(store.path) for store in stores]
    with pytest.raises(ConfigError, match="in pairs"):
        evaluate(stores, labels[0], checkpoint=checkpoint)
    with pytest.raises(ConfigError, match=r"f1\.zarr was given twice"):
        evaluate([*stores, stores[0].path], [*labels, labels[0]], checkpoint=checkpoint)


def test_the_command_scores_pairs_within_the_masks_beside_their_labels_unless_told_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = []
    for name, planes in (("a", 1), ("b", 2)):
        shape = [planes, 64, 64]
        make_store(tmp_path / f"{name}.zarr", SIZES * planes, volume={"kind": "npy", "shape": shape})
        ink, mask = np.zeros((64, 64), np.uint8), np.zeros((64, 64), np.uint8)
        ink[10:20], mask[:32] = 255, 255
        Image.fromarray(ink).save(tmp_path / f"{name}_inklabels.png")
        Image.fromarray(mask).save(tmp_path / f"{name}_supervision_mask.png")
        words += ["--store", str(tmp_path / f"{name}.zarr")]
        words += ["--labels", str(tmp_path / f"{name}_inklabels.png")]
    assert run(["evaluate", *words, "--threshold", "0", "--thresholds", "0:1:1", "--json"]) == 0
    found = capsys.readouterr()
    result = json.loads(found.out)
    assert found.err.count("(found beside the labels") == 2
    assert result["precision"] == pytest.approx(10 / 32)  # above 0 is every pixel within the masks
    assert [one["tiles"] for one in result["stores"]] == [1, 2]
    assert [row["recall"] for row in result["thresholds"]["rows"]] == [1.0, 0.0]
    print_evaluation(result)
    shown = capsys.readouterr().out
    assert "each store by itself" in shown
    assert "thresholds (* best f05)" in shown
    assert run(["evaluate", *words[:4], "--supervision", "none", "--threshold", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["precision"] == pytest.approx(10 / 64)
    assert run(["evaluate", *words[:4], *["--supervision", "none"] * 2]) == 2


def test_labelled_tiles_that_are_not_encoded_are_counted_and_said(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.zarr", [(64, 96)], only=[0])
    np.save(tmp_path / "ink.npy", np.ones((1, 64, 96), np.uint8))
    found = evaluate(store, tmp_path / "ink.npy")
    assert (found.tiles, found.tiles_missing) == (1, 1)
