"""Turns runs into one self-contained HTML page: figures, curves, pictures before and after, settings, provenance.

The page needs nothing but itself: no script, no font, no address elsewhere. It follows the reader's light or dark
setting and fits a phone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from embedcache.errors import InputError
from embedcache.files import write_file
from embedcache.results.curves import loss_curve, metric_curve
from embedcache.results.evaluation import kept
from embedcache.results.pictures import TileRow
from embedcache.results.report_facts import (
    Sourced,
    duration,
    provenance_facts,
    sources_of,
    text_of,
    training_facts,
    words_of,
)
from embedcache.results.report_pictures import pictures_of
from embedcache.store import EmbeddingStore
from embedcache.train.asking.metrics import probability
from embedcache.train.run import Run, measured_prompts

__all__ = ["duration", "report"]

FIGURES = (
    ("dice", "Dice"),
    ("f05", "F0.5"),
    ("iou", "IoU"),
    ("precision", "Precision"),
    ("recall", "Recall"),
)


def report(
    runs: Run | str | Path | Sequence[Run | str | Path],
    output: str | Path | None = None,
    *,
    pictures: int = 4,
) -> Path:
    """Write one page about one or several runs.

    Parameters
    ----------
    runs : Run, path, or a list of them
        Run folders; unfinished ones are shown as far as they got.
    output : path, optional
        The page; by default ``report.html`` in the run, of several ``comparison.html`` in the first.
    pictures : int
        Held-out tiles that are shown of each run.

    Returns
    -------
    Path
        Where the page is.

    Raises
    ------
    InputError
        When a folder is no run, or none was given.
    StorageError
        When the disk refuses.
    """
    listed = [runs] if isinstance(runs, Run | str | Path) else list(runs)
    opened = [run if isinstance(run, Run) else Run(run) for run in listed]
    if not opened:
        raise InputError("report needs at least one run.")
    # a run's own page is not overwritten by a comparison
    name = "report.html" if len(opened) == 1 else "comparison.html"
    path = Path(output).absolute() if output else opened[0].path / name
    pages = [_page(run, number, pictures) for number, run in enumerate(opened)]
    environment = Environment(
        loader=PackageLoader("embedcache.results"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("report.html.j2").render(
        pages=pages, figures=FIGURES, version=version("embedcache")
    )
    write_file(path, text.encode("utf-8"))
    return path


@dataclass(frozen=True)
class _Page:
    """What the template shows of one run.

    Its headline is what ``evaluate`` found on stitched pixels, where that is kept in the run; else what training
    measured tile by tile. ``thresholds`` are probabilities, the untrained decoder's first.
    """

    name: str
    path: str
    finished: bool
    untrained_encoder: bool
    figures: dict[str, Any] | None
    baseline: dict[str, Any] | None
    stitched: bool
    thresholds: tuple[float, float] | None
    interactive: dict[str, Any] | None
    prompt_source: str
    measured_prompts: str
    prompts: str
    split: str
    val_tiles: int | None
    metric: str
    loss_svg: Markup
    metric_svg: Markup
    tiles: list[TileRow]
    tiles_note: str
    facts: list[tuple[str, str]]
    settings: list[tuple[str, str]]
    provenance: list[tuple[str, str]]
    sources: list[Sourced]


def _page(run: Run, number: int, pictures: int) -> _Page:
    summary = run.summary if run.finished else {}
    rows = run.metrics
    stores = _stores(run)
    tiles, note = pictures_of(run, stores, summary, pictures)
    metric = str(summary.get("metric", "dice"))
    baseline = summary.get("baseline") or _first_validation(rows)
    source = str(summary.get("prompt_source") or (baseline or {}).get("prompt_source", "free"))
    salt = f"run-{number}"
    level = None if baseline is None else float(baseline[metric])
    figures, headline, thresholds = summary.get("figures"), baseline, None
    evaluation = kept(run)
    if evaluation is not None:
        figures, headline = evaluation, evaluation["baseline"]
        thresholds = (float(headline["threshold"]), float(figures["threshold"]))
    elif figures and headline:
        thresholds = (probability(headline["threshold"]), probability(figures["threshold"]))
    return _Page(
        name=run.path.name,
        path=str(run.path),
        finished=run.finished,
        untrained_encoder=bool(
            summary.get("untrained_encoder", any(s.provenance.get("untrained") for s in stores if s))
        ),
        figures=figures,
        baseline=headline,
        stitched=evaluation is not None,
        thresholds=thresholds,
        interactive=summary.get("interactive"),
        prompt_source=source,
        measured_prompts=measured_prompts(summary) if summary else "",
        prompts=str(summary.get("prompts", "")),
        split=str(run.split["rule"]),
        val_tiles=evaluation["tiles"] if evaluation else summary.get("val_tiles"),
        metric=metric,
        loss_svg=Markup(loss_curve(rows, salt=salt)),
        metric_svg=Markup(metric_curve(rows, metric, level, salt=salt)),
        tiles=tiles,
        tiles_note=note,
        facts=training_facts(summary),
        settings=[(words_of(name), text_of(value)) for name, value in run.config["options"].items()],
        provenance=provenance_facts(run, stores),
        sources=sources_of(run, stores),
    )


def _first_validation(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The untrained decoder's row of an unfinished run."""
    found = [row for row in rows if row.get("split") == "val" and row.get("step") == 0]
    return found[0] if found else None


def _stores(run: Run) -> list[EmbeddingStore | None]:
    """The run's stores; None for one that is gone."""
    return [_store(path) for path in run.config["stores"]]


def _store(path: str) -> EmbeddingStore | None:
    try:
        return EmbeddingStore.open(path)
    except InputError:
        return None
