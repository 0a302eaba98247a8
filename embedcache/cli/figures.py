"""Turns an evaluation into what people read: figures beside the untrained ones, a row per store and threshold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from embedcache.cli.output import first_line, print_pairs, print_table, readable

COLUMNS = ("f05", "dice", "iou", "precision", "recall")

_TABLES = ("baseline", "thresholds", "stores", "origin")


def print_evaluation(result: Mapping[str, Any]) -> None:
    """Print the JSON object of ``evaluate`` as tables."""
    baseline = result["baseline"]
    rows: list[tuple[str, object]] = []
    for name, value in result.items():
        if name in _TABLES or (name == "tiles_missing" and not value):
            continue
        beside = f"   (untrained {baseline[name]:.4g})" if isinstance(baseline.get(name), float) else ""
        rows.append((name, f"{value:.4g}{beside}" if isinstance(value, float) else value))
    rows += [
        ("licence of the data", _beginning(one["licence"])) for one in result["origin"] if one["licence"]
    ]
    print_pairs("evaluate", worded(dict(rows)))
    if "stores" in result:
        print_table(
            "each store by itself; the figures above are of all their pixels together",
            ("store", "tiles", *COLUMNS),
            [(one["store"], one["tiles"], *_figures(one)) for one in result["stores"]],
        )
    if "thresholds" in result:
        sweep = result["thresholds"]
        print_table(
            f"thresholds (* best {sweep['metric']})",
            ("", "threshold", *COLUMNS),
            [
                ("*" if row == sweep["best"] else "", f"{row['threshold']:g}", *_figures(row))
                for row in sweep["rows"]
            ],
        )


def worded(figures: Mapping[str, object]) -> list[tuple[str, object]]:
    """Figures as people read them: beside "untrained" decoders it is said that this one is the encoder."""
    return [("encoder untrained" if name == "untrained" else name, value) for name, value in figures.items()]


def _figures(row: Mapping[str, Any]) -> list[str]:
    return [readable(float(row[name])) for name in COLUMNS]


def _beginning(text: str) -> str:
    return first_line(text) + (" …" if len(text.splitlines()) > 1 else "")
