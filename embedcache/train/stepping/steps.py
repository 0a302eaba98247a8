"""Turns a step's data into better weights: rounds, gradient, sum over processes, clipping, optimiser, average."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from embedcache.sam.decoder import Decoder
from embedcache.train.asking.rounds import run_rounds
from embedcache.train.options import TrainOptions
from embedcache.train.questions.batch import StepData, TileKey
from embedcache.train.stepping.averaging import Average
from embedcache.train.stepping.device import Bfloat16
from embedcache.train.stepping.guard import is_good
from embedcache.train.stepping.ranks import Ranks
from embedcache.train.stepping.schedule import default_warmup, rate


@dataclass(frozen=True, eq=False)
class StepResult:
    """What one step gave; its numbers are still on the device.

    Parameters
    ----------
    step, epoch : int
        Counted from 0.
    lr : float
    keys : tuple of TileKey
        This process's tiles.
    names : tuple of str
        Of the numbers: ``loss``, its parts, ``grad_norm``.
    values : float32 (n,)
        Loss and parts as means over all asks of all processes; the norm as it was before clipping.
    """

    step: int
    epoch: int
    lr: float
    keys: tuple[TileKey, ...]
    names: tuple[str, ...]
    values: Tensor

    def read(self) -> dict[str, float]:
        """The numbers on the host; waits for the device."""
        return dict(zip(self.names, self.values.tolist(), strict=True))


class Stepper:
    """Runs training steps on a model.

    Parameters
    ----------
    model : Decoder or AdaptedDecoder
        On its device.
    options : TrainOptions
    total_steps : int
        Length of the learning rate's course.
    ranks : Ranks
    """

    def __init__(self, model: Decoder, options: TrainOptions, *, total_steps: int, ranks: Ranks) -> None:
        self.model = model
        self.options = options
        self.total_steps = total_steps
        self._ranks = ranks
        self._called: nn.Module = Bfloat16(model) if options.amp == "bf16" else model
        _freeze(model, options.train)
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self._trained, lr=options.lr, weight_decay=options.weight_decay, fused=True
        )
        self.average = Average(model, options.ema) if options.ema else None
        self._warmup = default_warmup(total_steps) if options.warmup is None else options.warmup

    def lr(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        return rate(
            step,
            peak=self.options.lr,
            steps=self.total_steps,
            warmup=self._warmup,
            schedule=self.options.schedule,
        )

    def step(self, data: StepData) -> StepResult:
        """Do one step; where its loss or gradient is not finite, weights and average stay as they were.

        Nobody waits for the device here: the caller reads the result when it likes.

        Raises
        ------
        torch.OutOfMemoryError
            In all processes when it is raised in one: they repeat the step together. Nothing has changed then.
        """
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        lr = self.lr(data.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        sums = self._ranks_sums(self._backward_of_all(data))
        norm = torch.nn.utils.clip_grad_norm_(self._trained, self.options.clip)
        good = is_good(sums["loss"], norm)
        # Fused AdamW leaves weights, moments and its count alone where this is 1; set on the device, never read.
        self.optimizer.found_inf = (~good).to(torch.float32)  # type: ignore[attr-defined]
        self.optimizer.step()
        if self.average is not None:
            self.average.update(data.step, good)
        values = torch.stack([*(value.float() for value in sums.values()), norm.float()])
        return StepResult(data.step, data.epoch, lr, data.keys, (*sums, "grad_norm"), values)

    def _backward_of_all(self, data: StepData) -> dict[str, Tensor]:
        """As :meth:`_backward`, in all processes or in none: the others would wait for sums that never come."""
        asks = self._ranks.total(data.asks)
        sums: dict[str, Tensor] = {}
        error: torch.OutOfMemoryError | None = None
        try:
            sums = self._backward(data, asks)
        except torch.OutOfMemoryError as found:
            error = found.with_traceback(None)  # whose frames would hold on to the memory
        if self._ranks.most(int(error is not None)):
            raise error or torch.OutOfMemoryError("in another process")
        return sums

    def _backward(self, data: StepData, asks: int) -> dict[str, Tensor]:
        """Add the gradients of all calls; their losses, divided by the asks of all processes."""
        sums: dict[str, Tensor] = {}
        for batch in data.calls:
            found = run_rounds(
                self._called, batch, loss=self.options.loss, asks=asks, backward=torch.Tensor.backward
            )
            for name, value in {"loss": found.total, **found.parts}.items():
                sums[name] = sums[name] + value if name in sums else value
        return sums

    def _ranks_sums(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        beside = torch.stack([value.float() for value in sums.values()])
        return dict(zip(sums, self._ranks.sum_gradients(self._trained, beside).unbind(), strict=True))


def _freeze(model: nn.Module, learns: str) -> None:
    """Let the prompt encoder learn, or not."""
    for name, parameter in model.named_parameters():
        if "prompt_encoder." in name:
            parameter.requires_grad_(learns == "prompt+decoder")
