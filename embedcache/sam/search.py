"""Turns the name of a published model into a checked file on this machine: searched for, else downloaded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pooch
import torch

from embedcache.errors import WeightsError
from embedcache.progress import Progress, Silent
from embedcache.sam.download import Downloader, wrong_digest
from embedcache.sam.registry import ModelEntry


def download_folder() -> Path:
    """Where downloads go: ``$EMBEDCACHE_MODELS``, else ``models`` in this user's cache folder of embedcache."""
    chosen = os.environ.get("EMBEDCACHE_MODELS")
    return Path(chosen).expanduser().absolute() if chosen else Path(pooch.os_cache("embedcache")) / "models"


def micro_sam_folder() -> Path:
    """Where micro-sam keeps its models."""
    return Path(os.environ.get("MICROSAM_CACHEDIR") or pooch.os_cache("micro_sam")).expanduser() / "models"


def candidates(entry: ModelEntry) -> Iterator[Path]:
    """Places where a model's file may already lie, in the order in which they are looked at."""
    yield download_folder() / entry.file_name
    yield Path.cwd() / entry.file_name
    yield Path(torch.hub.get_dir()) / "checkpoints" / entry.file_name
    yield micro_sam_folder() / entry.name  # micro-sam's files have no ending


def find_or_download(
    entry: ModelEntry, *, progress: Progress | None = None, downloader: Downloader | None = None
) -> Path:
    """The file of a published model, its digest checked.

    Parameters
    ----------
    entry : ModelEntry
        Which model.
    progress : Progress, optional
        Told what is found or downloaded.
    downloader : Downloader, optional
        How to download; by default with four attempts.

    Raises
    ------
    WeightsError
        When a file of that name has another digest, or when there is none and it cannot be downloaded.
    """
    progress = progress or Silent()
    for path in candidates(entry):
        if _is_there(path):
            _check(path, entry)
            progress.say(f"Weights of {entry.name}: {path}")
            return path
    target = download_folder() / entry.file_name
    progress.say(f"Downloading {entry.name} from {entry.url} to {target}")
    try:
        (downloader or Downloader(progress)).fetch(entry.url, target, entry.digests)
    except WeightsError as error:
        digest = " and ".join(f"{algorithm} {value}" for algorithm, value in entry.digests.items())
        raise WeightsError(
            f"The weights of {entry.name} are not on this machine. {error.message}",
            hint=f"To do it by hand, fetch\n  {entry.url}\nto\n  {target}\nIts digest must be {digest}.\n"
            "Or give --checkpoint FILE; or --model vit_tiny, which is untrained and needs no file.",
        ) from error
    return target


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a folder that this user may not look into
        return False


def _check(path: Path, entry: ModelEntry) -> None:
    size = path.stat().st_size
    wrong = (
        f"{size} bytes were found, {entry.size} are expected"
        if entry.size not in (None, size)
        else wrong_digest(path, entry.digests)
    )
    if wrong is not None:
        raise WeightsError(
            f"{path} has the name of {entry.name} but is another file: {wrong}.",
            hint=f"Remove or rename it when it is damaged; give --checkpoint {path} when you mean this one.",
        )
