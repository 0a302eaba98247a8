from __future__ import annotations

from pathlib import Path

import pytest

from embedcache.demo.infrared import write_fragments
from embedcache.demo.phantom import write_scroll
from pipelines import compare_heads, door, em_mitochondria, infrared_ink

SMALL = ["--model", "vit_tiny", "--checkpoint", "random:0", "--tile", "64", "--steps", "1", "--lr", "1e-3"]


def test_infrared_ink_goes_from_photographs_to_masks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_fragments(tmp_path, sizes=((64, 60), (60, 64)))
    out = tmp_path / "out"
    figures = infrared_ink.main([str(tmp_path), "--out", str(out), "--val", "fragment_2", *SMALL])
    assert (figures["prompt_source"], figures["split"]) == ("free", "val")
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
