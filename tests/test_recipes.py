"""The recipes' page: its commands parse, its table names every pipeline, and its figures follow from its rules."""

from __future__ import annotations

import importlib
import math
import re
import shlex
from pathlib import Path

import click
import pytest

from embedcache.cli.app import app, register
from embedcache.volume import TileGrid

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "recipes.md").read_text()
COMMANDS = [
    line[2:]
    for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("$ ")
]
PIPELINES = {
    path.stem
    for path in (ROOT / "pipelines").glob("*.py")
    if "\ndef parse(" in path.read_text() and '__name__ == "__main__"' in path.read_text()
}


def rows() -> list[list[str]]:
    table = PAGE[PAGE.index("| recipe |") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def number(cell: str) -> float:
    return float(cell.replace(",", ""))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_page_parses(command: str) -> None:
    words = shlex.split(command)
    if words[:2] == ["python", "-m"]:
        importlib.import_module(words[2]).parse(words[3:])
        return
    register()
    assert words[0] == "embedcache"
    chosen = app.get_command(click.Context(app), words[1])
    assert chosen is not None
    chosen.make_context(words[1], words[2:])


def test_every_pipeline_has_a_row_a_section_and_a_command() -> None:
    linked = dict(re.findall(r"\[(\w+)\]\(#([\w-]+)\)", PAGE))
    assert set(linked) == PIPELINES
    headings = {
        re.sub(r"[^\w -]", "", line[3:].lower()).replace(" ", "-")
        for line in PAGE.splitlines()
        if line.startswith("## ")
    }
    for row in rows():
        anchor = re.findall(r"\(#([\w-]+)\)", row[0])
        assert anchor, row[0]
        assert anchor[0] in headings
    for name in PIPELINES:
        assert any(command.startswith(f"python -m pipelines.{name} ") for command in COMMANDS)


def test_sizes_and_minutes_follow_from_the_stated_rules() -> None:
    assert "10 tiles a\nsecond through vit_b" in PAGE
    assert "50 images a second" in PAGE
    assert "2,000 steps of 16 images" in PAGE
    assert "eight with 4 images a step" in PAGE
    images = {"xray_ink": 3 * 16, "compare_heads": 8 * 4}
    for row in rows():
        name = re.findall(r"\[([^]]+)\]", row[0])[0]
        tiles = number(row[2])
        assert number(row[3]) == pytest.approx(tiles / 512, abs=0.006), name
        assert number(row[4]) == pytest.approx(tiles / 10 / 60, abs=0.06), name
        minutes = 2000 * images.get(name, 16) / 50 / 60
        assert number(row[5]) == pytest.approx(minutes, abs=0.5), name


def test_tile_counts_are_those_of_the_grid() -> None:
    wanted = {
        "xray_ink": [(8181, 6330, 512, 1), (14830, 9506, 512, 1), (7606, 5249, 512, 1)],
        "stamp_boxes": [(3508, 2480, 1024, 100)],
        "em_mitochondria": [(1024, 1024, 1024, 20)],
        "one scroll, by its address": [(7888 // 4, 8096 // 4, 1024, math.ceil(3594 / 16))],
    }
    for row in rows():
        name = re.findall(r"\[([^]]+)\]", row[0])[0]
        if name in wanted:
            count = sum(
                len(TileGrid(tile, 0).table([(height, width)], uniform=False)) * pages
                for height, width, tile, pages in wanted[name]
            )
            assert number(row[2]) == count, name


def test_a_pipelines_docstring_begins_with_a_command_that_parses() -> None:
    for name in sorted(PIPELINES):
        module = importlib.import_module(f"pipelines.{name}")
        text = (module.__doc__ or "").replace("\\\n", " ")
        commands = re.findall(rf"^    python -m pipelines\.{name} (.*)$", text, re.MULTILINE)
        assert len(commands) >= 2, name
        for command in commands:
            module.parse(shlex.split(command))
        assert any("vit_tiny" in command for command in commands), name
