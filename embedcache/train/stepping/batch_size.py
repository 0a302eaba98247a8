"""Turns a training's tiles and a device's memory into the images of a batch, when nobody says."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from embedcache.train.asking.rounds import run_rounds
from embedcache.train.options import TrainOptions
from embedcache.train.questions.batch import Batch, TileQuestion, collate_questions
from embedcache.train.setup import Setup

ON_A_CPU = 4
MOST = 512

SHARE = 0.6
"""Of a GPU's free memory: what a step needs varies, and a validation and its optimiser come on top."""

LOOKED_AT = 16
"""Tiles with the most positives, of which the one that is asked most is tried."""


def choose_batch_size(
    setup: Setup, options: TrainOptions, device: torch.device, say: Callable[[str], None]
) -> int:
    """Images of a batch: 4 on a CPU; on a GPU what one image and then two of them show to fit."""
    tiles = sum(len(part.numbers) for part in setup.train)
    if device.type == "cpu":
        return min(ON_A_CPU, tiles)
    free = torch.cuda.mem_get_info(device)[0]
    try:
        one, two = _bytes_of_one_and_two(setup, options, device)
    except torch.OutOfMemoryError:
        return 1
    finally:
        torch.cuda.empty_cache()
    size = min(largest_batch(one, two, free), tiles)
    say(
        f"{(two - one) / 2**20:,.0f} MiB an image in a step, {free / 2**30:.1f} GiB free: {size} images a batch."
    )
    return size


def largest_batch(one: int, two: int, free: int) -> int:
    """The largest power of two that fits.

    Parameters
    ----------
    one, two : int
        Bytes that a step of one image needs, and of two.
    free : int
        Bytes that are free.
    """
    each = max(two - one, 1)
    fitting = int(SHARE * free - (one - each)) // each
    return 1 << (min(max(fitting, 1), MOST).bit_length() - 1)


def _bytes_of_one_and_two(setup: Setup, options: TrainOptions, device: torch.device) -> tuple[int, int]:
    part = setup.train[0]
    dataset = part.dataset
    counts = dataset.labels.positive(dataset.store, part.numbers)
    likely = [part.numbers[int(at)] for at in (-counts).argsort(kind="stable")[:LOOKED_AT]]
    question = max((dataset.question(number, 0) for number in likely), key=lambda q: len(q.targets))
    model = setup.stores[0].decoder().to(device)
    embedding = dataset.store[question.number].half()[None]

    def peak(images: int) -> int:
        batch = _repeated(question, embedding, images).to(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run_rounds(model, batch, loss=options.loss, asks=batch.asks, backward=Tensor.backward)
        model.zero_grad(set_to_none=True)
        return int(torch.cuda.max_memory_allocated(device)) - before

    return peak(1), peak(2)


def _repeated(question: TileQuestion, embedding: Tensor, images: int) -> Batch:
    return collate_questions([question] * images, embedding.expand(images, -1, -1, -1).contiguous())
