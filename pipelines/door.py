"""What every pipeline begins and ends with: its options, its figures, and errors as messages and exit codes."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import embedcache as ec


def options(parser: argparse.ArgumentParser, *, out: str, tile: int, lr: float = 1e-4) -> None:
    """Add what all pipelines take: where everything goes, which encoder, and how long to train."""
    parser.add_argument("--out", type=Path, default=Path(out), help="where everything goes")
    parser.add_argument("--name", default="run", help="name of this training; choose another for another one")
    parser.add_argument("--model", default="vit_b")
    parser.add_argument("--checkpoint", default="auto", help="auto, a file, or random:SEED")
    parser.add_argument("--tile", type=int, default=tile)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, help="images of a step  [default: by the machine]")
    parser.add_argument("--lr", type=float, default=lr)


def encoder(wish: argparse.Namespace) -> dict[str, Any]:
    """What of these options ``ec.encode`` takes."""
    return {"model": wish.model, "checkpoint": wish.checkpoint, "tile": wish.tile}


def training(wish: argparse.Namespace, name: str | None = None) -> dict[str, Any]:
    """What of them ``ec.train`` takes; a run of that name is gone on with, or found finished."""
    out = wish.out / (name or wish.name)
    lengths = {"steps": wish.steps, "batch_size": wish.batch_size, "lr": wish.lr}
    return {"out": out, "resume": out.exists(), **lengths}


def show(figures: Mapping[str, object], page: Path, wish: argparse.Namespace) -> None:
    """Print the figures as JSON, keep them beside what else the training made, and say where the report lies."""
    text = json.dumps(figures, indent=2)
    (wish.out / f"{wish.name}_figures.json").write_text(text + "\n")
    print(text)
    print(f"report: {page}", file=sys.stderr)


def run(main: Callable[[], object]) -> int:
    """Call a pipeline's ``main`` and return the exit code: our errors become their message, not a traceback."""
    try:
        main()
    except ec.EmbedcacheError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on.", file=sys.stderr)
        return 130
    return 0
