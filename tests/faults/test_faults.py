"""A small share of every fault (``make fault`` runs them all), and the harness: a broken embedcache is noticed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from . import page
from .broken import BROKEN
from .outcome import Outcome
from .table import ROWS

REPOSITORY = Path(__file__).resolve().parents[2]


def report(*words: str) -> Any:
    """What a module of this package prints as JSON, run in a process of its own."""
    command = [sys.executable, "-m", *words]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=one_thread, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stderr[-3000:]
    return json.loads(done.stdout)


LONG = {"train-killed", "train-refused", "train-beside-encode", "error-views"}
"""Rows that only ``make fault`` runs; tests/test_resume.py kills trainings too."""

QUICK = [row for row in ROWS if row.name not in LONG]


@pytest.fixture(scope="module")
def few() -> dict[str, dict[str, Any]]:
    """Nearly every row with one or a few trials."""
    only = [word for row in QUICK for word in ("--only", row.name)]
    return {row["row"]: row for row in report("tests.faults", "--json", "--rounds", "1", *only)["rows"]}


@pytest.fixture(scope="module")
def noticed() -> dict[str, dict[str, Any]]:
    """What rows say of an embedcache that is broken on purpose."""
    return report("tests.faults.broken")


@pytest.mark.parametrize("row", QUICK, ids=lambda row: row.name)
def test_nothing_is_silent_lost_or_otherwise_wrong(few: dict[str, dict[str, Any]], row: Any):
    found = few[row.name]
    if "not_run" in found:
        pytest.skip(found["not_run"])
    assert found["problems"] == []
    assert found["trials"] == found["detected"] + found["survived"] > 0


@pytest.mark.parametrize("broken", BROKEN)
def test_an_embedcache_that_is_deliberately_broken_is_noticed(
    noticed: dict[str, dict[str, Any]], broken: str
):
    found = noticed[broken]
    assert sum(found[kind] for kind in BROKEN[broken][2]) > 0, found


def test_the_page_is_that_of_the_figures():
    """``docs/faults.md`` is never written by hand."""
    figures = json.loads(page.JSON_FILE.read_text(encoding="utf-8"))
    assert page.PAGE.read_text(encoding="utf-8") == page.markdown(figures)


def test_the_page_shows_every_row_and_the_sum_of_what_went_wrong():
    bad = Outcome(trials=3, detected=1, silent=2, figures={"n found": 1.0, "seconds": 0.25})
    rows = ROWS[:2]
    figures = page.report(rows, {rows[0].name: bad}, rounds=1, seed=7, seconds=60.0, place="tmpfs")
    text = page.markdown(figures)
    assert "**3 faults: 2 silent, 0 lost, 0 failed**" in text
    assert f"| `{rows[0].name}` | {rows[0].fault} | {rows[0].promise} | 3 | 1 | 0 | 2 | 0 | 0 | 0.0 |" in text
    assert f"| `{rows[1].name}` |" in text
    assert "not run: not asked for" in text
    assert "| found | 1 |" in text


def test_outcomes_add_up():
    total = Outcome()
    total.add(Outcome(trials=2, survived=2, figures={"n reads": 3.0, "most": 1.0}))
    total.problem("lost", "a tile")
    total.add(Outcome(trials=1, detected=1, figures={"n reads": 4.0, "most": 5.0}))
    assert (total.trials, total.survived, total.detected, total.lost) == (4, 2, 1, 1)
    assert total.figures == {"n reads": 7.0, "most": 5.0}
    assert total.problems == ["lost: a tile"]
    assert not total.good
    assert not Outcome().good
