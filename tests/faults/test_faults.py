"""A small share of every fault (``make fault`` runs them all), and the harness: a broken embedcache is noticed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from . import page
from .outcome import Outcome
from .table import ROWS

REPOSITORY = Path(__file__).resolve().parents[2]
NOTICED = {
    "reader without checksums": ("flip-shards", "silent"),
    "reader without records": ("swapped-shards", "silent"),
    "commits acknowledged early": ("kill-encode", "lost"),
    "no fsync": ("power-encode", "lost or failed"),
    "no fsync of folders": ("power-encode", "lost or failed"),
    "no comparison of specs": ("mixed-resume", "silent"),
}
"""What ``--broken`` breaks in embedcache, a row that has to notice it, and how it says so."""


def table(*arguments: str) -> dict[str, dict[str, Any]]:
    """Run rows in a process of their own; what became of each."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--json", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr[-3000:]
    return {row["row"]: row for row in json.loads(done.stdout)["rows"]}


@pytest.fixture(scope="module")
def few() -> dict[str, dict[str, Any]]:
    """Every row with one or two trials."""
    return table("--rounds", "1")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_nothing_is_silent_lost_or_otherwise_wrong(few: dict[str, dict[str, Any]], row: Any):
    found = few[row.name]
    if "not_run" in found:
        pytest.skip(found["not_run"])
    assert found["problems"] == []
    assert found["trials"] == found["detected"] + found["survived"] > 0


@pytest.mark.parametrize("broken", NOTICED)
def test_a_store_that_is_deliberately_broken_is_noticed(broken: str):
    name, how = NOTICED[broken]
    found = table("--broken", broken, "--only", name, "--rounds", "10")[name]
    assert sum(found[kind] for kind in how.split(" or ")) > 0, found


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
