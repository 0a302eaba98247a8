"""Turns real trainings on a store of noise into the share of their steps that they waited for data.

Twice: with each embedding read anew each time, and with embeddings kept after their first read, as a training of
so few tiles does by itself. What was written a moment ago is in the system's page cache; a cold disk is slower.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from embedcache.bench.made_up_store import fill, make_store
from embedcache.geometry import EMBEDDING_SHAPE, IMAGE_SIZE
from embedcache.progress import Progress
from embedcache.sam.decoder import Decoder
from embedcache.store import EmbeddingStore
from embedcache.train.trainer import train

TILES = 12
STEPS = {"cpu": 20, "cuda": 200}


WHERE_FROM = {
    "disk": "read each time, from the page cache",
    "ram": "kept in main memory",
    "gpu": "kept on the GPU",
}
"""Where embeddings come from, by residence."""


def shares_of_waiting(
    device: torch.device, progress: Progress, *, steps: int | None = None
) -> dict[str, float]:
    """Train decoders on noise that lies in a store on disk, as ``train`` does.

    Parameters
    ----------
    device : torch.device
        Where.
    progress : Progress
        Where to report to.
    steps : int, optional
        How many of each training; by default enough for a steady state.

    Returns
    -------
    dict of str to float
        ``data_wait_fraction`` by residence: ``disk`` and, where memory has room, ``ram`` or ``gpu``.
    """
    count = steps or STEPS[device.type]
    with tempfile.TemporaryDirectory(prefix="embedcache-bench-") as folder:
        place = Path(folder)
        store = _store_of_noise(place)
        y, x = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE]
        disc = ((y - 512) ** 2 + (x - 512) ** 2 < 300**2).astype(np.uint8)
        np.save(place / "labels.npy", np.broadcast_to(disc, (TILES, *disc.shape)))
        progress.say(f"two trainings of {count} steps, to see how long they wait for their data …")
        found = dict(_one(store, place, resident, device, count) for resident in ("disk", "auto"))
    for where, share in found.items():
        progress.say(f"waiting for embeddings that are {WHERE_FROM[where]}: {share:.2%} of the steps' time.")
    return found


def _one(
    store: EmbeddingStore, place: Path, resident: str, device: torch.device, steps: int
) -> tuple[str, float]:
    """Where the embeddings of a training came from, and the share of its steps that it waited for them."""
    run = train(
        store,
        place / "labels.npy",
        out=place / resident,
        steps=steps,
        validate_every=steps,
        device=str(device),
        logger="none",
        resident=resident,
    )
    return str(run.summary["residence"]), float(run.summary["data_wait_fraction"])


def _store_of_noise(folder: Path) -> EmbeddingStore:
    state = Decoder.random(0).state_dict()
    store = make_store(folder / "store.zarr", TILES, side=IMAGE_SIZE, decoder=state)
    rng = np.random.default_rng(0)
    return fill(store, TILES, lambda _: torch.from_numpy(rng.standard_normal(EMBEDDING_SHAPE, np.float32)))
