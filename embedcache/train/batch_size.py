"""Turns a training's tiles and a device's memory into the images of a batch, when nobody says."""

from __future__ import annotations

from collections.abc import Callable

import torch

from embedcache.train.device import automatic_batch_size
from embedcache.train.options import TrainOptions
from embedcache.train.setup import Setup


def choose_batch_size(
    setup: Setup, options: TrainOptions, device: torch.device, say: Callable[[str], None]
) -> int:
    """Images of a batch: 4 on a CPU; on a GPU what its memory holds."""
    tiles = sum(len(part.numbers) for part in setup.train)
    queries = options.max_objects if setup.objects != "whole" else 1
    return automatic_batch_size(device, tiles, queries)
