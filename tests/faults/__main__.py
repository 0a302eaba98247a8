"""Run the table of faults: ``python -m tests.faults [--rounds N] [--only NAME] [--seed S] [--json] [--write]``."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = (
    "1"  # before numpy and torch: a process with threads of its own cannot be forked
)

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from . import page
from .broken import BROKEN
from .harness import DEFAULT_ROUNDS, run_rows
from .table import named


def main() -> int:
    """Run rows and show them; 0 when all of them are good."""
    arguments = _arguments()
    rows = named(arguments.only)
    damage = BROKEN[arguments.broken][0] if arguments.broken else lambda: None
    runnable = [row for row in rows if row.needs is None or row.needs() is None]
    folder = Path(tempfile.mkdtemp(prefix="embedcache-faults-", dir=arguments.folder or _quick_folder()))
    place = page.file_system(folder)
    begin = time.monotonic()
    try:
        outcomes = run_rows(
            runnable, rounds=arguments.rounds, seed=arguments.seed, folder=folder, damage=damage
        )
    finally:
        if not arguments.keep:
            shutil.rmtree(folder, ignore_errors=True)
    seconds = time.monotonic() - begin
    report = page.report(
        rows, outcomes, rounds=arguments.rounds, seed=arguments.seed, seconds=seconds, place=place
    )
    if arguments.write:
        page.write(report)
    print(json.dumps(report, indent=1) if arguments.json else page.markdown(report))
    bad = [row.name for row in runnable if not outcomes[row.name].good]
    for name in bad:
        print(f"\n{name}:", *outcomes[name].problems, sep="\n  ", file=sys.stderr)
    return 1 if bad else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--rounds", type=float, default=DEFAULT_ROUNDS, help="100 is the default size")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="a row; may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--write", action="store_true", help="write docs/faults.json and docs/faults.md")
    parser.add_argument(
        "--folder", type=Path, help="where to work; by default in memory, where there is room"
    )
    parser.add_argument("--broken", choices=BROKEN, help="break embedcache first, to see that it is noticed")
    parser.add_argument("--keep", action="store_true", help="leave the work folder")
    return parser.parse_args()


def _quick_folder() -> Path | None:
    """A disk of memory: a kill loses as little there as elsewhere, and it is quicker."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() and shutil.disk_usage(memory).free > 4 << 30 else None


if __name__ == "__main__":
    sys.exit(main())
