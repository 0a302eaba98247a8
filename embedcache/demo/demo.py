"""Turns nothing into a trained decoder: a made-up scroll, encoded, trained on, evaluated, predicted, reported.

The encoder is ``vit_tiny`` with random weights: small and untrained. What the demo shows is that the path works
and that the decoder learns; with SAM's own weights the same commands do the real thing.
"""

from __future__ import annotations

import json
import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from embedcache.demo.infrared import SIZES, write_fragments
from embedcache.demo.phantom import write_scroll
from embedcache.encode import EncodeResult, run_encode
from embedcache.encode.options import options_from
from embedcache.errors import InputError
from embedcache.files import make_folder, write_file
from embedcache.progress import Progress, Silent
from embedcache.results import evaluate, predict, report
from embedcache.train import Run, train

PLANES, SIDE, TILE = 32, 256, 256

TRAINING: dict[str, Any] = {"steps": 70, "batch_size": 2, "lr": 1e-3, "seed": 0, "logger": "none"}
"""Short, with a rate that suits a decoder that starts from random weights."""


@dataclass(frozen=True)
class Scale:
    """How large the demo is; tests make it smaller.

    Parameters
    ----------
    planes, side : int
        Of the scroll.
    sizes : tuple of (int, int)
        Of the photographs.
    tile : int
        Side of a tile in px.
    steps : int
        Of the training.
    """

    planes: int = PLANES
    side: int = SIDE
    sizes: tuple[tuple[int, int], ...] = SIZES
    tile: int = TILE
    steps: int = TRAINING["steps"]


@dataclass
class _Clock:
    """Seconds by step."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measure(self, step: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.seconds[step] = round(time.perf_counter() - begin, 2)


def run_demo(
    folder: str | Path = "embedcache-demo",
    *,
    infrared: bool = False,
    progress: Progress | None = None,
    scale: Scale | None = None,
) -> dict[str, Any]:
    """Go the whole path on a made-up volume; a second time the embeddings are reused.

    Parameters
    ----------
    folder : path
        Everything goes here; made when missing.
    infrared : bool
        Photographs of fragments instead of an X-ray volume.
    progress : Progress, optional
        Where to report to.
    scale : Scale, optional
        Another size than the usual one.

    Returns
    -------
    dict
        What ``summary.json`` holds: ``dice``, ``baseline`` (the untrained decoder's Dice), ``prompt_source``,
        ``split``, ``seconds`` by step, paths, and ``closing``: what to read and what to run next.

    Raises
    ------
    InputError
        When the folder holds something else.
    StorageError
        When the disk refuses.
    """
    progress, size, clock = progress or Silent(), scale or Scale(), _Clock()
    root = Path(folder).absolute()
    _claim(root)
    begin = time.perf_counter()
    name = "infrared" if infrared else "scroll"
    with clock.measure("phantom"):
        if infrared:
            data = write_fragments(root / "data" / "infrared", sizes=size.sizes)
        else:
            data = write_scroll(root / "data", planes=size.planes, side=size.side)
    progress.say(f"made {data['volume']}")
    progress.say(
        "vit_tiny is a small encoder with random weights: it is untrained, and figures only show the path."
    )
    with clock.measure("encode"):
        encoded = _encode(data["volume"], root / "embeddings" / f"{name}.zarr", size.tile, progress)
    progress.say(f"encoded {encoded.encoded} tiles, reused {encoded.reused}.")
    with clock.measure("train"):
        run = _train(encoded, data, root / "runs" / name, size.steps, progress)
    with clock.measure("evaluate"):
        found = evaluate(encoded.store, data["ink"], checkpoint=run.checkpoint, progress=progress).to_dict()
    with clock.measure("predict"):
        output = root / ("ink_infrared" if infrared else "ink_predicted.zarr")
        prediction = predict(encoded.store, run.checkpoint, output, progress=progress)
    with clock.measure("report"):
        page = report(run, root / "report.html")
    clock.seconds["total"] = round(time.perf_counter() - begin, 2)
    summary = {
        "demo": name,
        "dice": found["dice"],
        "baseline": found["baseline"]["dice"],
        "prompt_source": found["prompt_source"],
        "split": found["split"],
        "split_rule": found["split_rule"],
        "f05": found["f05"],
        "iou": found["iou"],
        "tiles": found["tiles"],
        "untrained": True,
        "tiles_encoded": encoded.encoded,
        "tiles_reused": encoded.reused,
        "seconds": clock.seconds,
        "volume": str(data["volume"]),
        "labels": str(data["ink"]),
        "store": str(encoded.store.path),
        "run": str(run.path),
        "checkpoint": str(run.checkpoint),
        "output": str(prediction.output),
        "report": str(page),
    }
    summary["closing"] = closing_words(summary)
    write_file(root / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())
    return summary


def _claim(root: Path) -> None:
    """Refuse a folder that holds something else than an earlier demo."""
    if root.is_file():
        raise InputError(f"{root} is a file; the demo needs a folder.", hint="Give another --folder.")
    known = {
        "data",
        "embeddings",
        "runs",
        "summary.json",
        "report.html",
        "ink_infrared",
        "ink_predicted.zarr",
    }
    strangers = sorted({path.name for path in root.iterdir()} - known) if root.is_dir() else []
    if strangers:
        raise InputError(
            f"{root} holds {strangers[0]}, which no demo made; nothing was written.",
            hint="Give another --folder, or an empty one.",
        )
    make_folder(root)


def _encode(volume: Path, store: Path, tile: int, progress: Progress) -> EncodeResult:
    wishes = {
        "store": store,
        "model": "vit_tiny",
        "checkpoint": "random:0",
        "tile": tile,
        "precision": "fp32",
    }
    return run_encode(options_from(volume, wishes), progress)


def _train(encoded: EncodeResult, data: dict[str, Path], folder: Path, steps: int, progress: Progress) -> Run:
    """Train anew: the run of an earlier demo, which lies in the demo's own folder, makes room."""
    shutil.rmtree(folder, ignore_errors=True)
    supervision = {"supervision": str(data["parchment"])} if "parchment" in data else {}
    return train(
        encoded.store,
        data["ink"],
        out=folder,
        progress=progress,
        **{**TRAINING, "steps": steps, **supervision},
    )


def closing_words(summary: dict[str, Any]) -> str:
    """Where things are, and what to run next."""
    seconds = summary["seconds"]
    parts = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items() if name != "total")
    volume, labels = shlex.quote(summary["volume"]), shlex.quote(summary["labels"])
    return "\n".join(
        [
            f"Dice {summary['dice']:.3f} on tiles that training never saw; the untrained decoder has "
            f"{summary['baseline']:.3f} (prompt source: {summary['prompt_source']}).",
            f"It took {seconds['total']:.0f} s: {parts}. A second demo reuses the embeddings.",
            "",
            f"The report:      {summary['report']}",
            f"Predicted ink:   {summary['output']}",
            f"The embeddings:  {summary['store']}",
            f"The run:         {summary['run']}",
            "",
            "The encoder was untrained (vit_tiny, random:0), so the figures only show that the path works.",
            "The same with SAM's real weights (downloaded once, 375 MB):",
            "",
            f"  embedcache encode --volume {volume} --model vit_b --tile 256",
            f"  embedcache train --labels {labels}",
            "",
            "And with your own volume and labels: embedcache encode --volume YOURS, then embedcache train.",
        ]
    )
