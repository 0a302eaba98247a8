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

from embedcache.errors import ConfigError, InputError, LabelError, MismatchError
from embedcache.files import write_file
from embedcache.results.curves import loss_curve, metric_curve
from embedcache.results.evaluation import kept
from embedcache.results.pictures import TileRow, draw_tiles
from embedcache.store import EmbeddingStore
from embedcache.train.asking.metrics import probability
from embedcache.train.checkpoint import Checkpoint
from embedcache.train.questions.dataset import EmbeddingDataset
from embedcache.train.questions.mask_prompts import open_mask_prompts
from embedcache.train.run import Run, measured_prompts
from embedcache.train.truth.labels import open_labels
from embedcache.train.truth.split import Split

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


def _page(run: Run, number: int, pictures: int) -> _Page:
    summary = run.summary if run.finished else {}
    rows = run.metrics
    stores = _stores(run)
    tiles, note = _pictures(run, stores, summary, pictures)
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
        facts=_facts(summary),
        settings=[(_words(name), _text(value)) for name, value in run.config["options"].items()],
        provenance=_provenance(run, stores),
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


def _pictures(
    run: Run, stores: Sequence[EmbeddingStore | None], summary: dict[str, Any], count: int
) -> tuple[list[TileRow], str]:
    """Pictures of validation tiles, and a sentence on what is shown or why nothing is."""
    if not run.checkpoint.is_file():
        return [], "There is no checkpoint yet, so there are no pictures."
    checkpoint = Checkpoint.load(run.checkpoint)
    options = run.config["options"]
    split = Split.from_dict(run.split)
    index, numbers = next((part for part in split.val if part[1]), (0, ()))
    store = stores[index]
    if store is None or not numbers:
        return [], f"The store {run.config['stores'][index]} is not there, so there are no pictures."
    given = (options.get("supervision"), options.get("start"))
    mask, earlier = (value[index] if isinstance(value, list) else value for value in given)
    free = checkpoint.prompt_source == "free"
    try:
        labels = open_labels(
            run.config["labels"][index],
            store,
            supervision=mask,
            task=checkpoint.task,
            ignore=options.get("ignore"),
        )
        start = None if earlier is None else open_mask_prompts(earlier, store)
        dataset = EmbeddingDataset(
            store,
            labels,
            prompts=checkpoint.measured_prompts,
            objects="whole" if free else checkpoint.objects,
            tiles=numbers,
            seed=int(options.get("seed", 0)),
            start=start,
        )
    except (ConfigError, LabelError, MismatchError) as error:
        return [], f"There are no pictures: {error.message}"
    before = float((summary.get("baseline") or {}).get("threshold", 0.0))
    rows, from_volume = draw_tiles(
        dataset,
        [int(n) for n in dataset.tiles],
        (store.decoder(), before),
        (checkpoint.model(), checkpoint.threshold),
        count=count,
    )
    learnt = split.kind == "overfit"
    whose = "Tiles that were learnt by heart" if learnt else "Tiles that were held out of training"
    shown = "" if from_volume else " The volume is not there: colours are main components of the embedding."
    return (
        rows,
        f"{whose}, asked with {checkpoint.prompt_source} prompts.{shown}",
    )


def _facts(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """The line below the headline: what the training cost."""
    if not summary:
        return []
    facts = [
        ("steps", f"{summary['steps']:,}"),
        ("epochs", f"{summary['epochs']:.1f}"),
        ("time", duration(float(summary["seconds"]))),
        ("tiles per second", f"{summary['samples_per_second']:.2f}"),
        ("waiting for data", f"{100 * summary['data_wait_fraction']:.1f} %"),
    ]
    if summary.get("peak_memory_bytes"):
        facts.append(("peak memory", f"{summary['peak_memory_bytes'] / 2**30:.1f} GiB"))
    return facts


def duration(seconds: float) -> str:
    """Seconds for people: ``42 s``, ``3 min 5 s``, ``2 h 10 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _provenance(run: Run, stores: Sequence[EmbeddingStore | None]) -> list[tuple[str, str]]:
    config = run.config
    facts: list[tuple[str, str]] = []
    for path, label, store in zip(config["stores"], config["labels"], stores, strict=True):
        facts += [("store", str(path)), ("labels", str(label))]
        if store is not None:
            facts += _of_store(store)
    facts += [("labels read as", str(sentence)) for sentence in config.get("alignment", [])]
    facts += [("embedding space", str(config["embedding_space"])), ("checkpoint", str(run.checkpoint))]
    facts += [(f"{name} in training", str(number)) for name, number in config.get("versions", {}).items()]
    return facts


def _of_store(store: EmbeddingStore) -> list[tuple[str, str]]:
    known = store.provenance
    recipe = known.get("recipe", {})
    facts = [("volume", str(known.get("source", "unknown")))]
    facts += [(_words(name), _text(value)) for name, value in recipe.items()]
    facts += [("encoder digest", store.spec.encoder_digest), ("fingerprint", store.fingerprint)]
    versions = ", ".join(f"{name} {number}" for name, number in known.get("versions", {}).items())
    facts += [("encoded with", versions)] if versions else []
    facts += [("licence of the data", str(known["licence"]))] if known.get("licence") else []
    return facts


def _words(name: str) -> str:
    return name.replace("_", " ")


def _text(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
