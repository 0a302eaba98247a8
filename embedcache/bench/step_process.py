"""Turns one way to train into seconds, losses and memory of its steps: what runs in each way's own process.

``python -m embedcache.bench.step_process SETTINGS`` builds the way, takes one step, and answers on its standard
output as :mod:`embedcache.bench.process` does: each line on its standard input asks for one more step. All ways
take the same steps: the same images, boxes, targets and first weights.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embedcache.bench.process import images, own_output, tell, wait
from embedcache.bench.stock_step import StockDecoder
from embedcache.bench.variants import build, chosen
from embedcache.geometry import EMBEDDING_SHAPE, IMAGE_SIZE, LOW_RES_SIZE
from embedcache.peak import forget_peak, peak_memory
from embedcache.sam.decoder import Decoder, Prompts
from embedcache.sam.weights import resolve_weights
from embedcache.train.options import TrainOptions
from embedcache.train.questions.batch import Batch, StepData, TileKey
from embedcache.train.stepping.ranks import Ranks
from embedcache.train.stepping.steps import Stepper

TOTAL_STEPS = 1000
"""Length of the learning rate's course; only its first steps are taken."""

ENCODERS = {"cached": None, "stock_cached": None, "stock": "stock_fp32", "ours": "ours_fp32"}
"""Of each way the encoder in its loop, as :mod:`embedcache.bench.variants` names it; None: cached embeddings."""


@dataclass(frozen=True)
class StepSettings:
    """What one process is to measure; given to it as JSON.

    Parameters
    ----------
    way : str
        A key of :data:`ENCODERS`.
    model, checkpoint, device : str
        Which weights, where.
    batch, prompts : int
        Images of a step; boxes on each.
    threads : int or None
        CPU threads; None: as many as torch takes.
    embeddings : str
        File of the images' embeddings as a store keeps them, float16 ``.npy``: ``stock`` writes it, and who needs
        it and finds none takes noise, with which a step takes as long.
    """

    way: str
    model: str
    checkpoint: str
    device: str
    batch: int
    prompts: int
    threads: int | None
    embeddings: str

    def to_json(self) -> str:
        """As one line."""
        return json.dumps(asdict(self))


class Steps:
    """Training steps of one way.

    Parameters
    ----------
    settings : StepSettings
    """

    def __init__(self, settings: StepSettings) -> None:
        self.settings = settings
        self.device = torch.device(settings.device)
        weights = resolve_weights(settings.model, settings.checkpoint)
        kind = StockDecoder if settings.way in ("stock_cached", "stock") else Decoder
        self.decoder = kind.from_state(weights.decoder_state()).to(self.device)
        options = TrainOptions(prompts="box", rounds=1, logger="none")
        self._stepper = Stepper(self.decoder, options, total_steps=TOTAL_STEPS, ranks=Ranks(self.device))
        encoder = ENCODERS[settings.way]
        self._embed: Callable[[slice], Tensor] = self._cached()
        if encoder is not None:
            (variant,) = chosen((encoder,))
            run = build(variant, weights, device=self.device, batch=1).run
            inputs = images(settings.batch)
            self._embed = lambda part: run(inputs[part].to(self.device))
            if settings.way == "stock":
                self._embed = self._written(self._embed)
        one_by_one = self.device.type == "cpu" or settings.way in ("stock_cached", "stock")
        self._together = 1 if one_by_one else settings.batch
        self._count = 0

    def take(self) -> float:
        """Take one step; its loss."""
        settings = self.settings
        keys = tuple(TileKey(0, image) for image in range(settings.batch))
        asks = settings.batch * settings.prompts
        data = StepData(self._count, 0, settings.batch, asks, keys, self._calls())
        self._count += 1
        return self._stepper.step(data).read()["loss"]

    def saved_bytes(self) -> int:
        """What forward passes of one step keep for the backward pass, weights and images apart."""
        found: dict[int, int] = {}
        held: list[Tensor] = []  # so that no address is given out twice

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
            return tensor

        own = {parameter.untyped_storage().data_ptr() for parameter in self.decoder.parameters()}
        most = 0
        for batch in self._calls():
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                self.decoder(batch.image_embeddings, batch.prompts)
            most = max(most, sum(size for address, size in found.items() if address not in own))
            found.clear()
            held.clear()
        return most

    def _cached(self) -> Callable[[slice], Tensor]:
        path = Path(self.settings.embeddings)
        if path.is_file():
            kept = torch.from_numpy(np.load(path))
        else:
            generator = torch.Generator().manual_seed(0)
            kept = torch.randn(self.settings.batch, *EMBEDDING_SHAPE, generator=generator).half()
        return lambda part: kept[part].to(self.device)

    def _written(self, embed: Callable[[slice], Tensor]) -> Callable[[slice], Tensor]:
        """What embeds image by image, and leaves the first step's embeddings for the other ways."""
        kept: list[Tensor] = []

        def embedded(part: slice) -> Tensor:
            found = embed(part)
            if len(kept) < self.settings.batch:
                kept.append(found[0].half().cpu())
                if len(kept) == self.settings.batch:
                    np.save(self.settings.embeddings, torch.stack(kept).numpy())
            return found

        return embedded

    def _calls(self) -> Iterator[Batch]:
        for first in range(0, self.settings.batch, self._together):
            part = slice(first, min(first + self._together, self.settings.batch))
            yield _batch(part, self.settings.prompts, self._embed(part)).to(self.device)


def _batch(part: slice, prompts: int, embeddings: Tensor) -> Batch:
    """Some images with as many boxes each, whose targets are ellipses in them: one round, one mask."""
    numbers = range(part.start, part.stop)
    boxes = torch.cat([_boxes(number, prompts) for number in numbers])
    place = torch.arange(LOW_RES_SIZE) * (IMAGE_SIZE / LOW_RES_SIZE)
    centre, reach = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    x, y = ((place - centre[:, k, None]) / reach[:, k, None] for k in (0, 1))
    inside = x[:, None, :] ** 2 + y[:, :, None] ** 2 < 1
    return Batch(
        keys=tuple(TileKey(0, number) for number in numbers),
        image_embeddings=embeddings,
        targets=inside.to(torch.uint8),
        weights=torch.ones(len(numbers), LOW_RES_SIZE, LOW_RES_SIZE, dtype=torch.uint8),
        prompts=Prompts((prompts,) * len(numbers), boxes=boxes),
        draws=torch.zeros(len(boxes), 1, dtype=torch.float64),
        speaks=torch.ones(len(numbers), 1, dtype=torch.bool),
        numbers=tuple(numbers),
    )


def _boxes(number: int, prompts: int) -> Tensor:
    """Boxes of one image, ``(prompts, 4)``, of 64 to 512 pixels."""
    drawn = torch.rand(prompts, 4, generator=torch.Generator().manual_seed(number))
    size = 64 + drawn[:, 2:] * 448
    corner = drawn[:, :2] * (IMAGE_SIZE - size)
    return torch.cat([corner, corner + size], dim=1)


def main() -> None:
    """Measure one way as the settings on the command line say."""
    settings = StepSettings(**json.loads(sys.argv[1]))
    answers = own_output()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    begin = time.perf_counter()
    try:
        steps = Steps(settings)
        losses = [steps.take()]
    except Exception as error:  # of memory, weights, devices: whatever it is, the others go on
        text = str(error).strip() or type(error).__name__
        return tell(answers, not_run=text.splitlines()[0][:300])
    forget_peak(steps.device)
    tell(answers, start_seconds=time.perf_counter() - begin, threads=torch.get_num_threads())
    for _line in sys.stdin:
        wall, worked = time.perf_counter(), time.process_time()
        losses.append(steps.take())
        wait(steps.device)
        tell(answers, seconds=time.perf_counter() - wall, cpu_seconds=time.process_time() - worked)
    peak = peak_memory(steps.device)
    found: dict[str, Any] = {"losses": losses, "saved_bytes": steps.saved_bytes()}
    tell(answers, peak_memory_bytes=peak, **found)


if __name__ == "__main__":
    main()
