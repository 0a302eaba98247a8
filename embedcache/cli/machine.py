"""The commands about this machine and a first start: demo, init, doctor."""

from __future__ import annotations

import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click
import torch

from embedcache.cli.app import app
from embedcache.cli.common import json_option
from embedcache.cli.config import CONFIG_NAME, first_config
from embedcache.cli.output import print_json, print_pairs, print_table
from embedcache.cli.signals import stop_at_once
from embedcache.encode.sizes import readable_bytes
from embedcache.errors import ConfigError
from embedcache.files import create_file
from embedcache.progress import Terminal
from embedcache.sam.encoder import resolve_device, resolve_precision
from embedcache.sam.registry import MODELS, ModelEntry
from embedcache.sam.search import candidates

PACKAGES = ("torch", "segment-anything", "zarr", "numcodecs", "dask", "numpy", "click", "rich")
EXTRAS = {"hdf5": "h5py", "nifti": "nibabel", "nrrd": "pynrrd", "remote": "botocore"}


@app.command(short_help="The whole path on a made-up scroll.", epilog="Example: embedcache demo --infrared")
@click.option("--infrared", is_flag=True, help="Photographs of fragments instead of an X-ray volume.")
@click.option("--folder", default="embedcache-demo", show_default=True, help="Where everything goes.")
@json_option
def demo(infrared: bool, folder: str, as_json: bool) -> None:
    """Show the whole path on a made-up scroll: encode, train, evaluate, predict, report; under three minutes."""
    from embedcache.demo import run_demo

    with stop_at_once():
        summary = run_demo(folder, infrared=infrared, progress=Terminal())
    if as_json:
        print_json(summary)
        return
    closing = summary.get("closing", "")
    shown = {
        name: value
        for name, value in summary.items()
        if not isinstance(value, dict | list) and name != "closing"
    }
    print_pairs("demo", list(shown.items()))
    click.echo(closing)


@app.command(
    short_help="Write a first embedcache.toml.",
    epilog="Example: embedcache init --volume scroll1.zarr --labels inklabels.zarr",
)
@click.option("--volume", metavar="V", help="The volume to fill in.")
@click.option("--labels", metavar="L", help="The labels to fill in.")
@click.option("--model", default="vit_b", show_default=True, help="The model to fill in.")
@json_option
def init(volume: str | None, labels: str | None, model: str, as_json: bool) -> None:
    """Write a first embedcache.toml into the current folder; an existing one is never touched."""
    path = Path.cwd() / CONFIG_NAME
    try:
        create_file(path, first_config(volume, labels, model).encode("utf-8"))
    except FileExistsError:
        raise ConfigError(f"{path} exists already; it was not touched.") from None
    if as_json:
        print_json({"output": str(path)})
    else:
        click.echo(f"{path}\nEdit it, then run `embedcache encode` and `embedcache train`.")


@app.command(
    short_help="What is installed, fast, found and missing here.", epilog="Example: embedcache doctor --json"
)
@json_option
def doctor(as_json: bool) -> None:
    """Check this machine: what is installed, what is fast here, which weights are found, and what is missing."""
    figures = _examine()
    if as_json:
        print_json(figures)
        return
    print_pairs("machine", list(figures["machine"].items()))
    print_pairs("packages", list(figures["packages"].items()))
    rows = [(name, found or "not found (would be downloaded)") for name, found in figures["weights"].items()]
    print_table("weights", ("model", "file"), rows)
    for line in figures["advice"]:
        click.echo(f"• {line}")


def _examine() -> dict[str, Any]:
    device = resolve_device("auto")
    precision = resolve_precision("auto", device)
    weights = {name: _found(entry) for name, entry in MODELS.items()}
    packages = {name: _version(name) for name in PACKAGES}
    extras = {f"[{extra}] {package}": _version(package) for extra, package in EXTRAS.items()}
    advice = []
    if device.type == "cpu":
        advice.append(
            "No GPU: encoding takes seconds per tile. Encode on a GPU machine and copy the store here."
        )
    if precision == "fp32":
        advice.append("This device has no fast bf16; encoding runs in fp32.")
    if not any(weights.values()):
        advice.append(
            "No SAM weights were found; the first `encode` downloads them, or set $EMBEDCACHE_MODELS."
        )
    advice += [
        f"Not installed: {name.split()[1]} (pip install 'embedcache{name.split()[0]}')"
        for name, v in extras.items()
        if not v
    ]
    return {
        "machine": {
            "python": platform.python_version(),
            "system": platform.platform(),
            "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
            "precision of auto": precision,
            "threads": torch.get_num_threads(),
            "disk free here": readable_bytes(shutil.disk_usage(Path.cwd()).free),
        },
        "packages": packages | extras,
        "weights": {name: str(path) if path else None for name, path in weights.items()},
        "advice": advice,
    }


def _found(entry: ModelEntry) -> Path | None:
    return next((path for path in candidates(entry) if path.is_file()), None)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
