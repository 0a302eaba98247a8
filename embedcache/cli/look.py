"""The command ``status``: what a store holds, and which stores and runs there are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from embedcache.cli.app import app
from embedcache.cli.common import cache_dir_option, json_option, warn_untrained
from embedcache.cli.defaults import stores_in
from embedcache.cli.output import first_line, print_json, print_pairs, print_table
from embedcache.encode.sizes import readable_bytes
from embedcache.errors import EmbedcacheError
from embedcache.results.about import store_origin
from embedcache.store import EmbeddingStore
from embedcache.store.certificate import Certificate
from embedcache.train import Run


@app.command(
    short_help="What a store holds; which stores and runs there are.",
    epilog="Example: embedcache status embeddings/scroll1-vit_b-t1024-3fa9c1.zarr --json",
)
@click.argument("store", required=False, metavar="[S]")
@cache_dir_option
@click.option("--runs", default="runs", show_default=True, help="Where runs live.")
@json_option
def status(store: str | None, cache_dir: str, runs: str, as_json: bool) -> None:
    """Show what a store holds; without one, which stores and runs there are."""
    if store is None:
        _status_of_folders(Path(cache_dir), Path(runs), as_json)
        return
    opened = EmbeddingStore.open(store)
    origin, geometry = store_origin(opened), opened.provenance.get("geometry")
    told = {"certificate": opened.certificate, "origin": origin.to_dict(), "geometry": geometry}
    figures = opened.status().to_dict()
    if as_json:
        print_json(figures | told)
        return
    spec, certificate = figures.pop("spec"), opened.certificate
    rows: list[tuple[str, object]] = [(name.replace("_", " "), value) for name, value in figures.items()]
    rows = [
        (name, readable_bytes(int(str(value)))) if name == "bytes" else (name, value) for name, value in rows
    ]
    rows += [("model", spec.get("model_type")), ("precision", spec.get("precision"))]
    rows += [("source", opened.provenance.get("source")), ("weights", opened.provenance.get("weights"))]
    rows += [("certificate", None if certificate is None else Certificate.from_dict(certificate).sentence)]
    rows += _geometry_in_words(geometry)
    rows += [("licence of the data", first_line(origin.licence) or "unknown")]
    rows += [("citation", first_line(origin.citation))] if origin.citation else []
    rows += [("fetched from", origin.url)] if origin.url else []
    print_pairs("status", rows)
    for number, reason in list(opened.failed.items())[:10]:
        click.echo(f"failed: tile {number}: {reason}", err=True)
    if opened.provenance.get("untrained"):
        warn_untrained()


def _geometry_in_words(geometry: object) -> list[tuple[str, object]]:
    """The level that was encoded, in voxels of the base resolution; stores of earlier versions do not say."""
    if not isinstance(geometry, dict):
        return []
    rows: list[tuple[str, object]] = [("level", geometry.get("level"))]
    if geometry.get("voxel_size"):
        rows.append(("voxel size", " × ".join(f"{size:g}" for size in geometry["voxel_size"]) + " µm"))
    return rows


def _status_of_folders(cache_dir: Path, runs: Path, as_json: bool) -> None:
    stores = _readable(stores_in(cache_dir), lambda path: EmbeddingStore.open(path).status().to_dict())
    summaries = _readable(sorted(path.parent for path in runs.glob("*/config.json")), _run_summary)
    if as_json:
        print_json({"stores": stores, "runs": summaries})
        return
    print_table(
        f"stores in {cache_dir.absolute()}",
        ("store", "wanted", "committed", "missing", "bytes", "complete"),
        [
            (
                Path(row["store"]).name,
                row["tiles_wanted"],
                row["tiles_committed"],
                row["tiles_missing"],
                readable_bytes(row["bytes"]),
                row["complete"],
            )
            for row in stores
        ],
    )
    print_table(
        f"runs in {runs.absolute()}",
        ("run", "finished", "metric", "best", "prompt source", "steps"),
        [
            (
                row["run"],
                row["finished"],
                *(row.get(key) for key in ("metric", "best", "prompt_source", "steps")),
            )
            for row in summaries
        ],
    )


def _run_summary(folder: Path) -> dict[str, Any]:
    """A run's outcome; of one that was interrupted, how far it came."""
    run = Run(folder)
    if run.finished:
        return {"finished": True, **run.summary}
    steps = max((int(row.get("step", 0)) for row in run.metrics), default=0)
    return {"run": str(run.path), "finished": False, "steps": steps}


def _readable(paths: list[Path], read: Callable[[Path], dict[str, Any]]) -> list[dict[str, Any]]:
    """What can be read; a broken one is named and does not hide the others."""
    found = []
    for path in paths:
        try:
            found.append(read(path))
        except EmbedcacheError as error:
            click.echo(error.message, err=True)
    return found
