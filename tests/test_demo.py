from __future__ import annotations

import json
from pathlib import Path

import pytest
import tifffile

from embedcache.demo import run_demo
from embedcache.demo.demo import Scale
from embedcache.demo.phantom import write_scroll
from embedcache.errors import InputError
from embedcache.results import evaluate, predict

TINY = Scale(planes=5, side=64, sizes=((64, 60), (60, 64)), tile=64, steps=1)


def test_the_demo_goes_the_whole_path_and_a_second_one_reuses_the_embeddings(tmp_path: Path) -> None:
    first = run_demo(tmp_path / "demo", scale=TINY)
    assert json.loads((tmp_path / "demo" / "summary.json").read_text()) == first
    assert 0 <= first["baseline"] <= 1
    assert 0 <= first["dice"] <= 1
    assert (first["prompt_source"], first["split"], first["untrained"]) == ("free", "val", True)
    assert set(first["seconds"]) >= {"phantom", "encode", "train", "evaluate", "predict", "report", "total"}
    for name in ("volume", "labels", "store", "run", "checkpoint", "output", "report"):
        assert Path(first[name]).exists()
        assert Path(first[name]).is_relative_to(tmp_path / "demo")
    assert "untrained" in first["closing"]
    assert "vit_b" in first["closing"]
    page = Path(first["report"]).read_text()
    assert "Stitched pixels" in page
    assert f"<b>{first['dice']:.3f}</b>" in page
    assert (first["tiles_encoded"], first["tiles_reused"]) == (5, 0)
    second = run_demo(tmp_path / "demo", scale=TINY)
    assert (second["tiles_encoded"], second["tiles_reused"]) == (0, 5)
    assert second["dice"] == pytest.approx(first["dice"], abs=1e-3)


def test_a_decoder_of_the_demo_predicts_a_scroll_it_never_saw(tmp_path: Path) -> None:
    summary = run_demo(tmp_path / "demo", scale=TINY)
    other = write_scroll(tmp_path / "other", planes=2, side=64, seed=9)
    checkpoint, cache = summary["checkpoint"], tmp_path / "cache"
    prediction = predict(other["volume"], checkpoint, tmp_path / "other.tif", cache_dir=cache)
    assert (prediction.planes, prediction[1].shape) == ([0, 1], (64, 64))
    assert tifffile.imread(tmp_path / "other.tif").shape == (2, 64, 64)
    again = predict(other["volume"], checkpoint, cache_dir=cache)
    assert again.store.path == prediction.store.path
    assert evaluate(again.store, other["ink"], checkpoint=checkpoint).split == "all"


def test_the_infrared_demo_holds_whole_photographs_out(tmp_path: Path) -> None:
    summary = run_demo(tmp_path / "demo", infrared=True, scale=TINY)
    assert "images are held out whole" in summary["split_rule"]
    assert sorted(path.name for path in Path(summary["output"]).glob("*.png")) == [
        "fragment_1.png",
        "fragment_2.png",
    ]


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"thesis\.tex"):
        run_demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
