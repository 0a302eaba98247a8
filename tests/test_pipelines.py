from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import embedcache as ec
from embedcache.demo.fragments import write_fragment
from embedcache.demo.infrared import write_fragments
from embedcache.demo.phantom import write_scroll
from embedcache.demo.stamps import write_stamps
from pipelines import compare_heads, door, em_mitochondria, infrared_ink, stamp_boxes, xray_ink
from pipelines.otsu import otsu_figures, otsu_threshold

SMALL = ["--model", "vit_tiny", "--checkpoint", "random:0", "--tile", "64", "--steps", "1", "--lr", "1e-3"]


def test_infrared_ink_goes_from_photographs_to_masks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_fragments(tmp_path, sizes=((64, 60), (60, 64)))
    out = tmp_path / "out"
    figures = infrared_ink.main([str(tmp_path), "--out", str(out), "--val", "fragment_2", *SMALL])
    assert (figures["prompt_source"], figures["split"]) == ("free", "val")
    assert figures["dice_above_otsu"] == pytest.approx(figures["dice"] - figures["otsu"]["dice"])
    assert sorted(path.name for path in (out / "run_masks").glob("*.png")) == [
        "fragment_1.png",
        "fragment_2.png",
    ]
    page = (out / "run" / "report.html").read_text()
    assert f"<b>{figures['dice']:.3f}</b>" in page
    assert "Stitched pixels" in page
    assert "report.html" in capsys.readouterr().err
    again = infrared_ink.main([str(tmp_path), "--out", str(out), "--val", "fragment_2", *SMALL])
    assert again == figures
    assert "is finished; nothing is left to do" in capsys.readouterr().err


def test_a_pipeline_ends_in_a_message_and_an_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = [str(tmp_path / "nowhere"), "--out", str(tmp_path / "out"), *SMALL]
    assert door.run(lambda: infrared_ink.main(wrong)) == 2
    message = capsys.readouterr().err
    assert "nowhere" in message
    assert "Traceback" not in message


def test_em_mitochondria_holds_the_last_sections_out(tmp_path: Path) -> None:
    paths = write_scroll(tmp_path, planes=4, side=64)
    out = tmp_path / "out"
    figures = em_mitochondria.main(
        [str(paths["volume"]), str(paths["sheet"]), "--hold-out", "1", "--out", str(out), *SMALL]
    )
    assert figures["tiles"] == 1
    assert "plane 3 is held out" in str(figures["split_rule"])
    assert "gap" in str(figures["split_rule"])
    assert (out / "run_masks.tif").is_file()


def test_compare_heads_prints_one_table_of_free_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_fragments(tmp_path, sizes=((64, 60), (60, 64)))
    words = [str(tmp_path / "images"), str(tmp_path / "ink_masks"), "--out", str(tmp_path / "out")]
    words += ["--val", "fragment_2", "--views", "flips", "--seeds", "1", "--batch-size", "1", *SMALL]
    rows = compare_heads.main(words)
    assert [row["head"] for row in rows] == ["decoder", "prompt+decoder", "+ adapter", "+ views", "whole SAM"]
    assert {row["prompt_source"] for row in rows} == {"free"}
    assert len({row["tiles"] for row in rows}) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("trained")
    assert [line.split("  ")[0] for line in lines[1:6]] == [row["head"] for row in rows]
    assert lines[6].startswith("untrained decoder: Dice")
    assert compare_heads.main(words) == rows  # nothing is trained again


def test_stamp_boxes_says_what_training_with_boxes_brings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = write_stamps(tmp_path, sizes=((64, 64), (64, 60)))
    out = tmp_path / "out"
    words = [str(made["pages"]), str(made["csv"]), str(made["masks"]), "--out", str(out), "--val", "page_2"]
    figures = stamp_boxes.main([*words, *SMALL])
    assert (figures["prompts"], figures["prompt_source"], figures["split"]) == ("boxes", "free", "val")
    said = capsys.readouterr()
    assert json.loads(said.out) == figures
    before, after = (
        line.split()[1] for line in said.err.splitlines() if line.startswith(("before", "after"))
    )
    assert before == f"{figures['baseline']['dice']:.3f}"
    assert after == f"{figures['dice']:.3f}"
    assert [path.name for path in (out / "run_pictures").iterdir()] == ["page_2.png"]
    with Image.open(out / "run_pictures" / "page_2.png") as picture:
        assert picture.size == (3 * 60, 64)
    assert stamp_boxes.main([*words, *SMALL]) == figures
    assert json.loads((out / "run_figures.json").read_text()) == figures
    assert "is finished; nothing is left to do" in capsys.readouterr().err


def test_wrong_names_are_told_before_anything_is_encoded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_fragments(tmp_path / "ir", sizes=((64, 60), (60, 64)))
    made = write_stamps(tmp_path / "stamps", sizes=((64, 64), (64, 60)))
    out = tmp_path / "out"
    words = [str(tmp_path / "ir"), "--out", str(out), "--val", "fragment_1,fragmnet_2", *SMALL]
    assert door.run(lambda: infrared_ink.main(words)) == 2
    said = capsys.readouterr().err
    assert "there are: fragment_1.png, fragment_2.png." in said
    assert "Did you mean fragment_2?" in said
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("image,x0,y0,x1,y1\npage_1,1,1,9,9\npage_7,1,1,9,9\n")
    words = [str(made["pages"]), str(boxes), str(made["masks"]), "--out", str(out), *SMALL]
    assert door.run(lambda: stamp_boxes.main(words)) == 2
    assert "page_7 (line 3)" in capsys.readouterr().err
    assert not out.exists()


def made_fragments(folder: Path) -> list[str]:
    """Two fragments of nine layers, called by numbers that are not their places."""
    return [str(write_fragment(folder / f"{n}", planes=9, side=64, seed=n)) for n in (2, 1)]


def test_xray_ink_holds_each_fragment_out_once_and_submits_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fragments = made_fragments(tmp_path)
    out = tmp_path / "out"
    words = [*fragments, "--out", str(out), "--channels", "depth:2-3,4-4,5-6", *SMALL]
    figures = xray_ink.main(words)
    assert [row["fragment"] for row in figures["fragments"]] == ["2", "1"]
    assert {row["prompt_source"] for row in figures["fragments"]} == {"free"}
    spaces = {ec.open_store(out / f"{name}.zarr").embedding_space for name in ("1", "2")}
    assert len(spaces) == 1
    lines = (out / "run_submission.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["Id", "2", "1"]
    capsys.readouterr()
    assert xray_ink.main(words) == figures
    assert capsys.readouterr().err.count("is finished; nothing is left to do") == 2


def test_xray_ink_needs_layers_that_are_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fragments = made_fragments(tmp_path)
    assert door.run(lambda: xray_ink.main([*fragments, "--out", str(tmp_path / "out"), *SMALL])) == 2
    assert "depth:26-28" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        xray_ink.main([fragments[0], "--out", str(tmp_path / "out"), *SMALL])
    assert "two folders or more" in capsys.readouterr().err


@given(st.lists(st.integers(0, 255), min_size=2, max_size=60))
def test_otsus_threshold_parts_with_the_greatest_variance_between(values: list[int]) -> None:
    grey = np.array(values, np.uint8)
    cut = otsu_threshold(grey)

    def between(at: float) -> float:
        dark, bright = grey[grey <= at].astype(float), grey[grey > at].astype(float)
        if len(dark) == 0 or len(bright) == 0:
            return 0.0
        return len(dark) * len(bright) / len(grey) ** 2 * (dark.mean() - bright.mean()) ** 2

    assert between(cut) == pytest.approx(max(between(at) for at in range(256)))


def test_otsu_is_counted_on_the_pixels_that_the_run_is_measured_on(tmp_path: Path) -> None:
    made = write_fragments(tmp_path, sizes=((64, 60), (60, 64)))
    store = ec.encode(
        made["volume"], store=tmp_path / "s.zarr", model="vit_tiny", checkpoint="random:0", tile=64
    )
    numbers = [n for n in np.flatnonzero(store.committed).tolist() if store.tile(n).plane == 1]
    found = otsu_figures(store, made["volume"], made["ink"], made["parchment"], numbers)
    grey, ink, parchment = (
        np.asarray(Image.open(made[name] / "fragment_2.png").convert("L"))
        for name in ("volume", "ink", "parchment")
    )
    inside = parchment > 0
    cut = otsu_threshold(grey[inside])
    dark, truth = (grey <= cut) & inside, (ink > 0) & inside
    assert found["thresholds"] == {"fragment_2.png": cut}
    assert found["dice"] == pytest.approx(2 * (dark & truth).sum() / (dark.sum() + truth.sum()))
    best = found["best_single_grey"]
    assert best["dice"] == pytest.approx(
        max(
            2 * ((grey <= at) & truth).sum() / (((grey <= at) & inside).sum() + truth.sum())
            for at in range(256)
        )
    )
    assert best["dice"] >= found["dice"]
