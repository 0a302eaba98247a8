"""Turns the summary of a training into what ``embedcache train`` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from embedcache.cli.output import print_json, print_pairs
from embedcache.encode.sizes import readable_bytes


def print_training(summary: Mapping[str, Any], as_json: bool) -> None:
    """Print what a training came to, and what may be done with it."""
    if as_json:
        print_json(summary)
        return
    print_pairs(
        "train",
        [
            ("run", summary["run"]),
            *_figures(summary),
            ("split", summary["split_rule"]),
            ("steps", summary["steps"]),
            ("time", f"{summary['seconds']:.1f} s"),
            ("samples per second", summary["samples_per_second"]),
            ("waiting for data", f"{100 * summary['data_wait_fraction']:.1f} %"),
            ("peak memory", readable_bytes(summary["peak_memory_bytes"])),
            ("checkpoint", summary["checkpoint"]),
        ],
    )
    click.echo(f"Next: embedcache report {summary['run']}", err=True)
    click.echo(
        f"or:   embedcache predict --checkpoint {summary['checkpoint']} --volume V --output O", err=True
    )


def _figures(summary: Mapping[str, Any]) -> list[tuple[str, object]]:
    """The figures with how they were asked; those of prompts that know the truth apart."""
    from embedcache.train.run import measured_prompts

    metric, interactive = str(summary["metric"]), summary.get("interactive")
    asked = f"(prompts {measured_prompts(dict(summary))}, {summary['prompt_source']})"
    rows: list[tuple[str, object]] = [
        ("best " + metric, f"{summary['best']:.4g} {asked}"),
        ("untrained", f"{summary['baseline'][metric]:.4g} {asked}"),
    ]
    if interactive:
        rows.append(
            ("interactive " + metric, f"{interactive[metric]:.4g} (prompts {summary['prompts']}, oracle)")
        )
    return [*rows, ("trained with", f"prompts {summary['prompts']}")]
