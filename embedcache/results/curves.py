"""Turns rows of ``metrics.jsonl`` into SVG curves that take their colours from the page they stand on."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]

_INK, _FAINT = "#010203", "#040506"
_LINES = ("#070809", "#0a0b0c", "#0d0e0f", "#101112")
_PAGE_COLOURS = {
    _INK: "var(--ink)",
    _FAINT: "var(--line)",
    **{colour: f"var(--series-{number})" for number, colour in enumerate(_LINES, start=1)},
}
"""Colours that matplotlib draws with, and what of the page's style sheet takes their place."""


@dataclass(frozen=True)
class Line:
    """One named curve; ``baseline`` is a level that it is compared with."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]
    baseline: float | None = None


def loss_curve(rows: Sequence[Row], *, salt: str) -> str:
    """SVG of the training loss over steps; empty without rows."""
    train = [row for row in rows if row.get("split") == "train" and "loss" in row]
    lines = [Line("loss", [row["step"] for row in train], [row["loss"] for row in train])]
    return _draw(lines, "Training loss", salt=f"{salt}-loss", unit_range=False) if train else ""


def metric_curve(rows: Sequence[Row], metric: str, baseline: float | None, *, salt: str) -> str:
    """SVG of a metric on validation over steps, one line per prompt source; empty without rows."""
    found = [row for row in rows if row.get("split") == "val" and metric in row]
    lines: list[Line] = []
    for source in sorted({str(row["prompt_source"]) for row in found}):
        own = [row for row in found if row["prompt_source"] == source]
        level = baseline if not lines else None
        steps, values = [row["step"] for row in own], [row[metric] for row in own]
        lines.append(Line(f"{metric}, {source} prompts", steps, values, level))
    return _draw(lines, f"{metric.capitalize()} on validation", salt=f"{salt}-metric") if found else ""


def _draw(lines: Sequence[Line], title: str, *, salt: str, unit_range: bool = True) -> str:
    # Slow to import, and wanted by pages only
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "font.family": "sans-serif",
        "font.size": 10,
        "text.color": _INK,
        "axes.edgecolor": _FAINT,
        "axes.labelcolor": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
    }
    with rc_context(style):
        figure = Figure(figsize=(5.2, 2.9), layout="constrained")
        FigureCanvasSVG(figure)
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.set_facecolor("none")
        for line, colour in zip(lines, _LINES, strict=False):
            marker = "o" if len(line.steps) < 40 else None
            axes.plot(line.steps, line.values, color=colour, lw=2, marker=marker, ms=3.5, label=line.name)
            if line.baseline is not None:
                axes.axhline(line.baseline, color=_INK, lw=1.2, ls=(0, (4, 3)), label="untrained decoder")
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_xlabel("step")
        axes.grid(axis="y", color=_FAINT, lw=0.8)
        axes.set_axisbelow(True)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.tick_params(length=0)
        if unit_range:
            axes.set_ylim(0, 1)
            axes.legend(frameon=False, fontsize=9, loc="best")
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return _for_page(stream.getvalue(), title)


def _for_page(svg: str, title: str) -> str:
    """The ``<svg>`` element alone, as wide as its place, in the page's colours and font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', rf'\1 role="img" aria-label="{title}"', svg, count=1)
    svg = re.sub(r"font: ([^;\"]*?)\s*'sans-serif'|font-family: 'sans-serif'", _page_font, svg)
    for drawn, taken in _PAGE_COLOURS.items():
        svg = svg.replace(drawn, taken)
    return svg


def _page_font(match: re.Match[str]) -> str:
    return f"font: {match[1]} inherit" if match[1] else "font-family: inherit"
