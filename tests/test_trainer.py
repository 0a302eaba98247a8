"""The trainer: learns, is repeatable, resumes, and refuses before it writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from disk_faults import InterruptedDisk, refuse
from training_stores import blob_labels, labelled_folder, make_store, save_labels

from embedcache.errors import (
    ConfigError,
    InputError,
    Interrupted,
    LabelError,
    LockedError,
    MismatchError,
    MissingTilesError,
    StorageError,
)
from embedcache.files import disk, exclusive_lock
from embedcache.progress import Silent
from embedcache.results import report
from embedcache.store import EmbeddingStore
from embedcache.train import Checkpoint, Run, open_labels, train
from embedcache.train.truth.overlay import OUTLINE, draw_overlay

LABELS = blob_labels(8, 64, 64)
QUICK = {"logger": "none", "batch_size": 1, "lr": 1e-3, "device": "cpu"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labelled_folder(tmp_path_factory.mktemp("train"), LABELS)


@pytest.fixture(scope="module")
def store(folder: Path) -> EmbeddingStore:
    return EmbeddingStore.open(folder / "s.zarr")


@pytest.fixture(scope="module")
def run(folder: Path, store: EmbeddingStore) -> Run:
    """Six steps on planes 0 to 4; 6 and 7 are held out."""
    return train(
        store,
        folder / "l.npy",
        out=folder / "run",
        steps=6,
        validate_every=3,
        **(QUICK | {"logger": "tensorboard"}),
    )


def test_six_steps_beat_the_untrained_decoder_on_planes_never_seen(run: Run) -> None:
    baseline = run.summary["baseline"]
    assert run.best > baseline["dice"] + 0.2
    assert run.summary["prompt_source"] == baseline["prompt_source"] == "free"
    assert "planes 6 to 7" in run.summary["split_rule"]
    assert "untrained decoder" in run.outcome()


def test_a_run_folder_holds_what_is_promised(run: Run) -> None:
    names = {path.name for path in run.path.iterdir()}
    promised = ["config.json", "split.json", "metrics.jsonl", "summary.json", "overlay.png", "tensorboard"]
    assert set(promised) <= names
    keys = {
        "run",
        "store",
        "metric",
        "best",
        "epochs",
        "steps",
        "seconds",
        "samples_per_second",
        "checkpoint",
    }
    assert keys | {"data_wait_fraction", "peak_memory_bytes"} <= set(run.summary)
    assert run.summary["steps"] == 6
    rows = [row for row in run.metrics if row["split"] == "val"]
    assert [row["step"] for row in rows] == [0, 3, 6]
    assert rows[0]["dice"] == run.summary["baseline"]["dice"]
    losses = [row for row in run.metrics if row["split"] == "train"]
    always = {"step", "images", "split", "epoch", "lr", "loss", "grad_norm", "seconds", "data_wait"}
    assert set(losses[0]) == always | {"focal", "dice", "iou"}


def test_the_checkpoint_carries_its_split_threshold_and_space(run: Run, store: EmbeddingStore) -> None:
    best, last = Checkpoint.load(run.checkpoint), Checkpoint.load(run.last)
    assert best.embedding_space == store.embedding_space
    assert best.split == run.split
    assert best.untrained
    assert best.threshold == run.summary["threshold"]
    assert best.value == run.best
    assert last.step == 6
    assert best.recipe == store.provenance["recipe"]


class PressesCtrlC(Silent):
    """A progress that interrupts after some steps, as a person would."""

    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def test_an_interrupted_run_ends_with_the_same_weights_as_an_uninterrupted_one(
    folder: Path, store: EmbeddingStore
) -> None:
    options = {**QUICK, "val": "6:8", "steps": 4, "validate_every": 2}
    whole = train(store, folder / "l.npy", out=folder / "whole", **options)
    with pytest.raises(Interrupted, match="was interrupted") as stop:
        train(store, folder / "l.npy", out=folder / "cut", progress=PressesCtrlC(3), **options)
    assert stop.value.exit_code == 130
    assert not Run(folder / "cut").finished
    with pytest.raises(MismatchError, match="seed"):
        train(store, folder / "l.npy", out=folder / "cut", resume=True, seed=5, **options)
    with pytest.raises(MismatchError, match="batch_size"):
        train(store, folder / "l.npy", out=folder / "cut", resume=True, **(options | {"batch_size": 2}))
    split = folder / "cut" / "split.json"
    kept = json.loads(split.read_text())
    split.write_text(json.dumps(kept | {"val": kept["train"]}))
    with pytest.raises(MismatchError, match="changed since"):
        train(store, folder / "l.npy", out=folder / "cut", resume=True, **options)
    split.write_text(json.dumps(kept | {"rule": "the same tiles in other words"}))
    of_a_kill = folder / "cut" / "pictures" / "step-000002-z=6.png.4711.partial"
    of_a_kill.parent.mkdir(exist_ok=True)
    of_a_kill.write_bytes(b"half a picture")
    again = train(store, folder / "l.npy", out=folder / "cut", resume=True, **options)
    a, b = (Checkpoint.load(item.last).state for item in (whole, again))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not of_a_kill.exists()
    assert [row["step"] for row in again.metrics] == [row["step"] for row in whole.metrics]
    summary = (again.path / "summary.json").read_bytes()
    train(store, folder / "l.npy", out=folder / "cut", resume=True, **options)  # finished: nothing to do
    assert (again.path / "summary.json").read_bytes() == summary


def test_instances_are_asked_by_points_or_boxes_and_corrected(folder: Path, tmp_path: Path) -> None:
    ids = np.zeros((4, 64, 64), np.uint16)
    for plane in range(4):
        ids[plane, 4:24, 4 + plane : 24], ids[plane, 36:60, 30:60] = 2 * plane + 1, 2 * plane + 2
    store = make_store(tmp_path / "s.zarr", ids)
    run = train(store, save_labels(tmp_path / "l.npy", ids), out=tmp_path / "run", steps=1, rounds=1, **QUICK)
    assert run.summary["task"] == "instances"
    assert run.summary["prompts"] == "iterative"
    assert run.summary["prompt_source"] == "oracle"
    assert np.isfinite(run.best)


def test_a_semantic_run_with_oracle_prompts_is_chosen_by_free_figures_and_reports_the_others_apart(
    folder: Path, store: EmbeddingStore
) -> None:
    run = train(store, folder / "l.npy", out=folder / "grid", steps=1, prompts="grid", **QUICK)
    assert run.summary["prompt_source"] == "free"
    assert run.summary["interactive"]["prompt_source"] == "oracle"
    assert (run.summary["measured_prompts"], run.summary["interactive"]["prompts"]) == ("none", "grid")
    assert "(prompts none, free)" in run.outcome()
    assert (
        f"interactive dice {run.summary['interactive']['dice']:.3f} (prompts grid, oracle)" in run.outcome()
    )
    assert "(prompts grid, oracle)" in report([run.path]).read_text()
    sources = [row["prompt_source"] for row in run.metrics if row["split"] == "val"]
    assert sources == ["free", "oracle"] * 2


def test_only_the_decoder_learns_when_asked(folder: Path, store: EmbeddingStore) -> None:
    options = {"prompts": "points", "train": "decoder", "loss": "bce+iou", "steps": 1}
    run = train(store, folder / "l.npy", out=folder / "frozen", **options, **QUICK)
    before, after = store.decoder_state(), Checkpoint.load(run.last).state
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"mask_decoder"}


def test_two_stores_train_together_and_the_last_is_held_out(
    folder: Path, store: EmbeddingStore, tmp_path: Path
) -> None:
    labels = blob_labels(2, 64, 64, seed=9)
    other = make_store(tmp_path / "other.zarr", labels)
    path = save_labels(tmp_path / "l.npy", labels)
    run = train([store, other], [folder / "l.npy", path], out=tmp_path / "run", steps=1, loss="mse", **QUICK)
    assert run.split["kind"] == "stores"
    assert [index for index, _ in run.split["val"]] == [1]
    foreign = make_store(tmp_path / "foreign.zarr", labels, encoder="sha256:" + "1" * 64)
    with pytest.raises(MismatchError, match="encoder_digest"):
        train([store, foreign], [folder / "l.npy", path], out=tmp_path / "no", **QUICK)
    assert not (tmp_path / "no").exists()


def test_open_labels_are_taken_as_they_are_or_refused(folder: Path, store: EmbeddingStore) -> None:
    labels = open_labels(folder / "l.npy", store)
    for wish in ({"task": "instances"}, {"ignore": 7}, {"supervision": "mask.png"}):
        with pytest.raises(ConfigError, match="were opened with"):
            train(store, labels, out=folder / "no", **QUICK, **wish)
    assert not (folder / "no").exists()


def test_a_second_run_never_writes_into_the_first(folder: Path, run: Run, store: EmbeddingStore) -> None:
    before = (run.path / "metrics.jsonl").read_bytes()
    with pytest.raises(InputError, match="holds a run already"):
        train(store, folder / "never read.npy", out=run.path, **QUICK)
    assert (run.path / "metrics.jsonl").read_bytes() == before


def test_bad_input_is_refused_before_anything_is_written(
    folder: Path, store: EmbeddingStore, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    labels = folder / "l.npy"
    with pytest.raises(ConfigError, match="no option stepz"):
        train(store, labels, out=out, stepz=3)
    with pytest.raises(ConfigError, match="Both --steps"):
        train(store, labels, out=out, steps=3, epochs=1)
    with pytest.raises(ConfigError, match="--device"):
        train(store, labels, out=out, device="abacus")
    with pytest.raises(ConfigError, match="come in pairs"):
        train([store, store], labels, out=out)
    with pytest.raises(LabelError, match="nothing positive"):
        train(store, save_labels(tmp_path / "z.npy", np.zeros_like(LABELS)), out=out)
    with pytest.raises(ConfigError, match="random:x"):
        train(store, labels, out=out, init="random:x")
    assert not out.exists()


def test_tiles_that_the_labels_touch_must_be_encoded(tmp_path: Path) -> None:
    labels = np.full((4, 64, 64), 255, np.uint8)
    partial = make_store(tmp_path / "s.zarr", labels, wanted=[0, 1, 2])
    path = save_labels(tmp_path / "l.npy", labels)
    with pytest.raises(MissingTilesError, match="--z-range 3:4"):
        train(partial, path, out=tmp_path / "run", **QUICK)
    assert not (tmp_path / "run").exists()
    run = train(partial, path, out=tmp_path / "run", allow_partial=True, val="2:3", steps=1, **QUICK)
    assert run.split["train"] == [[0, [0, 1]]]


def test_training_may_start_from_another_runs_checkpoint(
    folder: Path, run: Run, store: EmbeddingStore
) -> None:
    again = train(store, folder / "l.npy", out=folder / "more", init=run.checkpoint, steps=1, **QUICK)
    assert again.best > run.best - 0.2
    assert again.summary["baseline"]["dice"] == run.summary["baseline"]["dice"]  # still the untrained one


def test_the_overlay_shows_the_labels_outline_where_it_is(store: EmbeddingStore) -> None:
    picture = np.asarray(draw_overlay(store[0], LABELS[0] > 0, store.tile(0)))
    assert picture.shape == (768, 768, 3)
    drawn = (picture == OUTLINE).all(axis=2)
    inside = (LABELS[0] > 0).repeat(12, axis=0).repeat(12, axis=1)
    y, x = np.nonzero(drawn)
    near = [inside[np.clip(y + dy, 0, 767), np.clip(x + dx, 0, 767)] for dy in (-6, 6) for dx in (-6, 6)]
    assert len(y) > 100
    assert (np.any(near, axis=0) & ~np.all(near, axis=0)).mean() > 0.8  # on the border, not in or out


def test_a_torn_last_row_is_left_out(run: Run) -> None:
    rows = run.metrics
    with (run.path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 99, "spl')
    assert run.metrics == rows
    assert json.loads((run.path / "summary.json").read_text())["steps"] == 6


def test_what_is_refused_late_leaves_no_folder_behind(folder: Path, store: EmbeddingStore) -> None:
    with pytest.raises(ConfigError, match="gpu"):
        train(store, folder / "l.npy", out=folder / "none", resident="gpu", steps=1, **QUICK)
    assert not (folder / "none").exists()


def test_two_trainings_never_share_a_folder(folder: Path, store: EmbeddingStore) -> None:
    with exclusive_lock(folder / "taken" / ".lock"), pytest.raises(LockedError) as refusal:
        train(store, folder / "l.npy", out=folder / "taken", steps=1, **QUICK)
    assert refusal.value.exit_code == 5
    assert not (folder / "taken" / "config.json").exists()


def test_a_start_from_a_decoder_that_saw_the_held_out_tiles_is_refused(
    run: Run, folder: Path, store: EmbeddingStore
) -> None:
    with pytest.raises(ConfigError, match=r"trained on .* held"):
        train(store, folder / "l.npy", out=folder / "leak", init=run.checkpoint, val="0:2", steps=1, **QUICK)
    assert not (folder / "leak").exists()
    same = train(store, folder / "l.npy", out=folder / "same", init=run.checkpoint, steps=1, **QUICK)
    assert same.best > run.best - 0.2


def test_a_folder_that_cannot_be_made_is_a_storage_error(folder: Path, store: EmbeddingStore) -> None:
    (folder / "file").write_text("mine")
    with pytest.raises(StorageError) as refusal:
        train(store, folder / "l.npy", out=folder / "file" / "run", steps=1, **QUICK)
    assert refusal.value.exit_code == 6


def test_a_store_given_twice_is_refused(folder: Path, store: EmbeddingStore) -> None:
    with pytest.raises(ConfigError, match="given twice"):
        train([store, store.path], [folder / "l.npy"] * 2, out=folder / "twice", steps=1, **QUICK)


def test_a_disk_that_fills_up_says_how_to_go_on(folder: Path, store: EmbeddingStore) -> None:
    kept = disk.disk
    disk.set_disk(InterruptedDisk(12, refuse))
    try:
        with pytest.raises(StorageError) as refusal:
            train(store, folder / "l.npy", out=folder / "full", steps=2, **QUICK)
    finally:
        disk.set_disk(kept)
    assert f"--resume --out {folder / 'full'}" in str(refusal.value.hint)
    assert train(
        store, folder / "l.npy", out=folder / "full", steps=2, resume=True, **QUICK
    ).checkpoint.exists()
