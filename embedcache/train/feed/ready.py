"""Turns batches that were copied to a device into what a step takes, once the copies are done."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from embedcache.train.questions.batch import Batch, StepData


@dataclass(frozen=True, eq=False)
class Ready:
    """A step's data.

    Parameters
    ----------
    calls : list of Batch
        One for each call of the decoder, on the device.
    copied : torch.cuda.Event or None
        After it the copies to a GPU are done.
    """

    calls: list[Batch]
    copied: torch.cuda.Event | None

    def hand_over(self, device: torch.device) -> None:
        """Let what the device does next wait for the copies, and keep their memory until it is done with them."""
        if self.copied is None:
            return
        stream = torch.cuda.current_stream(device)
        stream.wait_event(self.copied)
        for call in self.calls:
            for tensor in _tensors(call):
                tensor.record_stream(stream)

    def step_data(self, step: int, epoch: int) -> StepData:
        """As a step takes it."""
        return StepData(
            step=step,
            epoch=epoch,
            images=sum(len(call.keys) for call in self.calls),
            asks=sum(call.asks for call in self.calls),
            keys=tuple(key for call in self.calls for key in call.keys),
            calls=iter(self.calls),
        )


def _tensors(batch: Batch) -> Iterator[Tensor]:
    for part in (batch, batch.prompts):
        for field in fields(part):
            value = getattr(part, field.name)
            if isinstance(value, Tensor):
                yield value
