"""Turns batches into better weights: one training step, its learning rate, and its guard against divergence."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from embedcache.errors import ConfigError
from embedcache.sam.decoder import Decoder, Prompts
from embedcache.train.dataset import Batch, TrainingItem, collate
from embedcache.train.losses import compute_loss
from embedcache.train.options import TrainOptions
from embedcache.train.prompts import correct, first_round

WEIGHT_DECAY = 0.01
CLIP_NORM = 1.0
LAST_LR_SHARE = 0.01
FREE_SHARE = 0.5
"""Share of steps in which a semantic training with oracle prompts is asked without any, as validation asks."""


@dataclass(frozen=True)
class StepResult:
    """One step's mean losses over its queries, and its learning rate."""

    loss: float
    parts: dict[str, float]
    lr: float
    images: int


class Stepper:
    """Runs training steps on a decoder.

    Parameters
    ----------
    decoder : Decoder
        On its device.
    options : TrainOptions
    prompts : str
        The resolved kind.
    total_steps : int
        Length of the learning rate's course.
    images_per_call : int
        Images in one call of the decoder; a step's gradient is summed over calls. On a CPU one image a call
        is fastest, as its activations stay in the cache; a GPU takes the whole batch.
    mixes_free : bool
        Whether half of the steps drop oracle prompts.
    """

    def __init__(
        self,
        decoder: Decoder,
        options: TrainOptions,
        prompts: str,
        *,
        total_steps: int,
        images_per_call: int,
        mixes_free: bool,
    ) -> None:
        self.decoder = decoder
        self.options = options
        self.total_steps = total_steps
        self._prompts = prompts
        self._images_per_call = images_per_call
        self._mixes_free = mixes_free
        decoder.prompt_encoder.requires_grad_(options.train == "prompt+decoder")
        self._trained = [parameter for parameter in decoder.parameters() if parameter.requires_grad]
        self._device = self._trained[0].device
        self.optimizer = torch.optim.AdamW(
            self._trained, lr=options.lr, weight_decay=WEIGHT_DECAY, fused=True
        )

    def lr(self, step: int) -> float:
        """Linear warm-up over a tenth of the steps (at most 100), then a cosine down to 1 %."""
        warm_up = max(1, min(100, self.total_steps // 10))
        if step < warm_up:
            return self.options.lr * (step + 1) / warm_up
        course = (step - warm_up) / max(1, self.total_steps - warm_up)
        share = LAST_LR_SHARE + (1 - LAST_LR_SHARE) * 0.5 * (1 + math.cos(math.pi * min(1.0, course)))
        return self.options.lr * share

    def step(self, step: int, items: Sequence[TrainingItem]) -> StepResult:
        """Do one step.

        Raises
        ------
        ConfigError
            When the loss or its gradient is not finite; the weights are left as they were before the step.
        """
        self.decoder.train()
        self.optimizer.zero_grad(set_to_none=True)
        lr = self.lr(step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        rng = np.random.default_rng([self.options.seed, step, 0, 1])
        free = self._mixes_free and rng.random() < FREE_SHARE
        queries = len(items) if free else sum(len(item.low_res_masks) for item in items)
        total: dict[str, float] = {}
        for batch in self._calls(items, free):
            for name, value in self._backward(batch, queries, rng, step).items():
                total[name] = total.get(name, 0.0) + value
        norm = torch.nn.utils.clip_grad_norm_(self._trained, CLIP_NORM)
        if not bool(torch.isfinite(norm)):
            raise self._diverged("gradient", step, [item.number for item in items])
        self.optimizer.step()
        return StepResult(total.pop("loss"), total, lr, len(items))

    def _calls(self, items: Sequence[TrainingItem], free: bool) -> Iterator[Batch]:
        for start in range(0, len(items), self._images_per_call):
            batch = collate(items[start : start + self._images_per_call])
            yield (batch.unprompted() if free else batch).to(self._device)

    def _backward(self, batch: Batch, queries: int, rng: np.random.Generator, step: int) -> dict[str, float]:
        """Add the gradient of one call, all its rounds; return sums over queries, divided by all queries."""
        rounds = 1 + (self.options.rounds if self._prompts == "iterative" and batch.prompted else 0)
        prompts: Prompts = first_round(batch.prompts, rng)
        sums: dict[str, float] = {}
        for turn in range(rounds):
            output = self.decoder(batch.image_embeddings, prompts)
            logits: Tensor = output.low_res_logits[:, 0]
            loss = compute_loss(
                self.options.loss, logits, output.iou_predictions[:, 0], batch.low_res_masks, batch.weight
            )
            mean = loss.total.sum() / (queries * rounds)
            if not math.isfinite(mean.item()):
                raise self._diverged("loss", step, batch.numbers)
            mean.backward()  # type: ignore[no-untyped-call]
            sums["loss"] = sums.get("loss", 0.0) + mean.item()
            for name, part in loss.parts.items():
                sums[name] = sums.get(name, 0.0) + float(part.detach().sum()) / (queries * rounds)
            if turn + 1 < rounds:
                prompts = correct(prompts, output.low_res_logits, batch.low_res_masks, batch.weight, rng)
        return sums

    def _diverged(self, what: str, step: int, numbers: Sequence[int]) -> ConfigError:
        return ConfigError(
            f"The {what} is not finite at step {step + 1} (tiles {', '.join(map(str, numbers))}), "
            f"at a learning rate of {self.lr(step):.2g}. The last checkpoint before it is kept.",
            hint=f"Train with a smaller --lr, for example {self.options.lr / 10:g}.",
        )
