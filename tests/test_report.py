from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from result_samples import make_store

from embedcache.errors import InputError
from embedcache.results import evaluate, report
from embedcache.results.curves import loss_curve, metric_curve
from embedcache.results.report import duration
from embedcache.train import Run, train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of two steps on made-up photographs, one of which is held out."""
    folder = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    (folder / "photos").mkdir()
    (folder / "ink").mkdir()
    for number in range(2):
        truth = np.zeros((48, 64), np.uint8)
        truth[10:30, 5 + 9 * number : 40] = 255
        pixels = rng.integers(0, 90, (48, 64), dtype=np.uint8) + truth // 2
        Image.fromarray(pixels).save(folder / "photos" / f"image_{number}.png")
        Image.fromarray(truth).save(folder / "ink" / f"image_{number}.png")
    store = make_store(folder / "photos.zarr", [(48, 64)] * 2, uniform=False, source=str(folder / "photos"))
    return train(
        store, folder / "ink", out=folder / "runs" / "first & last", steps=2, batch_size=1, logger="none"
    )


class Outline(HTMLParser):
    """Collects what a page refers to, and its open tags."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in ("meta", "img", "br", "link", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_but_itself(run: Run) -> None:
    path = report(run)
    assert path == run.path / "report.html"
    text = path.read_text()
    outline = Outline()
    outline.feed(text)
    assert outline.open == []
    assert all(address.startswith(("data:", "#")) for address in outline.addresses)
    assert "<script" not in text
    assert not re.search(r"url\((?!#)", text)


def test_the_page_names_prompt_source_split_and_the_untrained_decoder(run: Run) -> None:
    text = report(run).read_text()
    for words in ("Prompt source: free", "1 of 2 images are held out whole", "The encoder is untrained"):
        assert words in text
    for facts in (run.summary["figures"], run.summary["baseline"]):
        assert f"{facts['dice']:.3f}" in text


def test_the_page_shows_what_evaluate_found_once_it_has(run: Run, tmp_path: Path) -> None:
    copy = Run(shutil.copytree(run.path, tmp_path / "copy"))
    assert "Tile by tile" in report(copy).read_text()
    store, labels = run.config["stores"][0], run.config["labels"][0]
    found = evaluate(store, labels, checkpoint=copy.path)
    page = report(copy).read_text()
    assert "Stitched pixels" in page
    assert "Tile by tile" not in page
    for figures in (found.figures, found.baseline):
        assert f"{figures.dice:.3f}" in page


def test_figures_of_another_question_are_not_kept_in_the_run(run: Run, tmp_path: Path) -> None:
    copy = Run(shutil.copytree(run.path, tmp_path / "copy"))
    store, labels = run.config["stores"][0], run.config["labels"][0]
    other = shutil.copytree(labels, tmp_path / "other")
    evaluate(store, labels, checkpoint=copy.checkpoint, split="train")
    evaluate(store, labels, checkpoint=copy.checkpoint, threshold=0.9)
    evaluate(store, labels, checkpoint=copy.checkpoint, prompts="box")
    evaluate(store, labels, checkpoint=copy.checkpoint, supervision=labels)
    evaluate(store, labels, checkpoint=copy.last)
    evaluate(store, other, checkpoint=copy.checkpoint)
    evaluate(store, labels)
    assert not (copy.path / "evaluation.json").exists()


def test_figures_of_an_earlier_checkpoint_are_not_shown(run: Run, tmp_path: Path) -> None:
    copy = Run(shutil.copytree(run.path, tmp_path / "copy"))
    evaluate(run.config["stores"][0], run.config["labels"][0], checkpoint=copy)
    kept = json.loads((copy.path / "evaluation.json").read_text())
    (copy.path / "evaluation.json").write_text(json.dumps(kept | {"step": kept["step"] + 1}))
    assert "Tile by tile" in report(copy).read_text()


def test_names_are_escaped(run: Run) -> None:
    text = report(run).read_text()
    assert "first &amp; last" in text
    assert "<h1>first & last" not in text


def test_the_page_shows_licence_and_citation_as_they_are_and_escapes_them(run: Run, tmp_path: Path) -> None:
    origin = {
        "url": "https://example.org/a?b&c",
        "licence": "<script>alert(1)</script>",
        "note": "as they say",
    }
    geometry = {"level": 1, "scale": [2, 2, 2], "voxel_size": [7.91, 7.91, 7.91]}
    told = {"origin": origin | {"citation": "Parsons et al. 2023"}, "geometry": geometry}
    store = make_store(tmp_path / "told.zarr", [(48, 64)] * 2, uniform=False, told=told)
    copy = Run(shutil.copytree(run.path, tmp_path / "copy"))
    config = json.loads((copy.path / "config.json").read_text())
    (copy.path / "config.json").write_text(json.dumps(config | {"stores": [str(store.path)]}))
    page = report(copy, pictures=1).read_text()
    section = page[page.index("<h2>Data and licence</h2>") : page.index("<h2>Where it comes from</h2>")]
    for words in (
        "https://example.org/a?b&amp;c",
        "&lt;script&gt;alert(1)&lt;/script&gt;",
        "Parsons et al. 2023",
        "as they say",
        "level 1, 2 × 2 × 2 voxels of the full resolution (z, y, x), 15.82 × 15.82 × 15.82 µm per pixel",
    ):
        assert words in section
    assert "<script" not in page


def test_a_licence_that_nobody_told_is_said_to_be_unknown(run: Run) -> None:
    assert "unknown: nothing was told" in report(run, pictures=1).read_text()


def test_of_a_store_that_is_gone_it_is_said(run: Run, tmp_path: Path) -> None:
    copy = Run(shutil.copytree(run.path, tmp_path / "copy"))
    config = json.loads((copy.path / "config.json").read_text())
    (copy.path / "config.json").write_text(json.dumps(config | {"stores": [str(tmp_path / "gone.zarr")]}))
    page = report(copy).read_text()
    assert "the store is not there" in page
    assert "not known any more" in page


def test_the_volumes_own_pixels_are_shown_while_it_is_there(run: Run) -> None:
    assert "components of the embedding" not in report(run).read_text()
    photos = Path(run.config["labels"][0]).parent / "photos"
    hidden = photos.rename(photos.with_name("elsewhere"))
    try:
        assert "components of the embedding" in report(run).read_text()
    finally:
        hidden.rename(photos)


def test_several_runs_share_a_page(run: Run, tmp_path: Path) -> None:
    page = report([run, run.path], tmp_path / "both.html").read_text()
    assert "2 runs" in page
    assert page.count('<article id="run-') == 2


def test_a_comparison_leaves_each_runs_own_page_as_it_was(run: Run) -> None:
    own = report(run)
    before = own.read_bytes()
    both = report([run, run.path])
    assert both.name == "comparison.html"
    assert own.read_bytes() == before
    both.unlink()


def test_an_unfinished_run_is_shown_as_far_as_it_got(run: Run, tmp_path: Path) -> None:
    for name in ("config.json", "split.json"):
        (tmp_path / name).write_bytes((run.path / name).read_bytes())
    (tmp_path / "metrics.jsonl").write_text(json.dumps(run.metrics[0]) + "\n")
    text = report(tmp_path).read_text()
    assert "A training that is not finished" in text
    assert "There is no checkpoint yet" in text


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run"):
        report(tmp_path)
    with pytest.raises(InputError, match="at least one"):
        report([])


def test_curves_take_their_colours_from_the_page() -> None:
    rows = [{"step": i, "split": "train", "loss": 1 / (i + 1)} for i in range(5)]
    rows += [{"step": i, "split": "val", "prompt_source": "free", "dice": 0.1 * i} for i in range(5)]
    for svg in (loss_curve(rows, salt="a"), metric_curve(rows, "dice", 0.1, salt="a")):
        assert svg.startswith("<svg")
        assert "var(--ink)" in svg
        assert "var(--series-1)" in svg
        assert "#010203" not in svg
    assert loss_curve([], salt="a") == metric_curve([], "dice", None, salt="a") == ""


@pytest.mark.parametrize(("seconds", "words"), [(41.6, "42 s"), (185, "3 min 5 s"), (7800, "2 h 10 min")])
def test_durations_are_for_people(seconds: float, words: str) -> None:
    assert duration(seconds) == words
