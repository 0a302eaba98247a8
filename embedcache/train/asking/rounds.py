"""Turns a batch into losses and gradients by the rounds of the Segment Anything paper.

A query is asked by its first prompt, then by one more point from where its answer is wrong, with its answer as
mask prompt; eight such points, and two rounds without a new point in which it only sees its own answer again: one
at random among them, one at the end. Eleven rounds in all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from embedcache.sam.prompts import Prompts
from embedcache.train.asking.error_points import draw_error_points
from embedcache.train.asking.losses import LossParts, compute_loss
from embedcache.train.asking.multimask import best_of_three, is_ambiguous, likeliest, may_be_ambiguous
from embedcache.train.questions.batch import Batch

PAPER_ROUNDS = 11


@dataclass(frozen=True, eq=False)
class Answer:
    """What the decoder said in a round, detached.

    Parameters
    ----------
    low_res_logits : (Q, M, 256, 256)
        M is 4 where three masks were asked for (the single one comes first), else 1.
    iou_predictions : (Q, M)
    best : float32 (Q, 256, 256)
        What is passed on: of three masks the one with the highest predicted IoU, else the single one.
    """

    low_res_logits: Tensor
    iou_predictions: Tensor
    best: Tensor


@dataclass(frozen=True, eq=False)
class Sums:
    """Losses summed over the queries of all rounds and divided by the step's asks; 0-d, on the device."""

    total: Tensor
    parts: dict[str, Tensor]


def plan_rounds(rounds: int, rng: np.random.Generator) -> tuple[bool, ...]:
    """Before which rounds a new point comes; the first stands for the first prompt.

    From four rounds on the last is silent, and one other that is drawn; below that all speak.
    """
    if rounds < 4:
        return (True,) * rounds
    silent = {int(rng.integers(1, rounds - 1)), rounds - 1}
    return tuple(turn not in silent for turn in range(rounds))


def first_prompts(batch: Batch) -> Prompts:
    """The prompts of the first round."""
    return batch.prompts


def next_prompts(batch: Batch, before: Prompts, answer: Answer, turn: int) -> Prompts:
    """The prompts of round ``turn``: those before, the answer as mask, and where it speaks one more point.

    Parameters
    ----------
    batch : Batch
        Without queries that are asked only once.
    before : Prompts
        Of the round before.
    answer : Answer
        To them.
    turn : int
        Counted from 0; at least 1.
    """
    mask = answer.best[:, None]
    told = [row[turn] for row in batch.told]
    if not any(told):
        return before.replaced(mask_input=mask)
    weights = batch.per_query(batch.weights)
    coords, labels = draw_error_points(answer.best, batch.targets, weights, batch.draws[:, turn])
    speaking = None if all(told) else batch.per_query(batch.speaks[:, turn])
    return before.replaced(mask_input=mask, **_more_points(before, coords, labels, speaking))


def run_rounds(
    decoder: nn.Module,
    batch: Batch,
    *,
    loss: str,
    asks: int,
    backward: Callable[[Tensor], None] | None = None,
) -> Sums:
    """Ask a batch in all of its rounds; queries without prompts leave after the first.

    Parameters
    ----------
    decoder : nn.Module
        Called as :class:`~embedcache.sam.decoder.Decoder` is.
    batch : Batch
        On the decoder's device.
    loss : str
        A name of :mod:`embedcache.train.asking.losses`.
    asks : int
        What losses are divided by: the asks of the whole step, of which this may be a part.
    backward : callable, optional
        Called once a round with its loss, so that one round's activations live at a time.
    """
    prompts = first_prompts(batch)
    totals: list[Tensor] = []
    parts: dict[str, list[Tensor]] = {}
    for turn in range(batch.rounds):
        answer, found = _ask(decoder, batch, prompts, loss)
        mean = _summed(found.total, batch) / asks
        if backward is not None:
            backward(mean)
        totals.append(mean.detach())
        for name, part in found.parts.items():
            parts.setdefault(name, []).append(_summed(part.detach(), batch) / asks)
        del found, mean
        if turn == 0 and any(batch.free):
            if all(batch.free):
                break
            batch, prompts, answer = _prompted_only(batch, prompts, answer)
        if turn + 1 < batch.rounds:
            prompts = next_prompts(batch, prompts, answer, turn + 1)
    return Sums(
        torch.stack(totals).sum(), {name: torch.stack(values).sum() for name, values in parts.items()}
    )


def _ask(decoder: nn.Module, batch: Batch, prompts: Prompts, loss: str) -> tuple[Answer, LossParts]:
    """One round: its answer, detached, and its losses."""
    three = may_be_ambiguous(prompts)
    output = decoder(batch.image_embeddings, prompts, multimask_output=None if three else False)
    logits, iou = (_precise(tensor) for tensor in output)
    targets, weight = batch.low_res_masks, batch.weight
    if three:
        ambiguous = is_ambiguous(prompts)
        found = best_of_three(loss, logits, iou, targets, weight, ambiguous)
        best = likeliest(logits.detach(), iou.detach(), ambiguous)
    else:
        found = compute_loss(loss, logits[:, 0], iou[:, 0], targets, weight)
        best = logits.detach()[:, 0]
    return Answer(logits.detach(), iou.detach(), best.float()), found


def _summed(losses: Tensor, batch: Batch) -> Tensor:
    """Losses of all queries, each for the asks that it stands for."""
    return losses.sum() if batch.factors is None else (losses * batch.factors).sum()


def _precise(values: Tensor) -> Tensor:
    """At least float32: losses are not computed in half precision."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _more_points(
    before: Prompts, coords: Tensor, labels: Tensor, speaking: Tensor | None
) -> dict[str, Tensor]:
    """Points with one more for each query, or for those that speak; each stands behind its row's own."""
    old_coords, old_labels, counts = before.point_coords, before.point_labels, before.point_counts
    if old_coords is None or old_labels is None:
        old_coords, old_labels = coords[:, :0], labels[:, :0]
    wide_coords = torch.cat([old_coords, coords], dim=1)
    wide_labels = torch.cat([old_labels.to(torch.int32), labels], dim=1)
    if counts is None and speaking is None:
        return {"point_coords": wide_coords, "point_labels": wide_labels}
    if counts is None:
        counts = torch.full((len(coords),), old_coords.shape[1], device=coords.device)
    place = counts[:, None]
    more: int | Tensor = 1 if speaking is None else speaking.long()
    return {
        "point_coords": wide_coords.scatter(1, place[:, :, None].expand(-1, 1, 2), coords),
        "point_labels": wide_labels.scatter(1, place, labels),
        "point_counts": counts + more,
    }


def _prompted_only(batch: Batch, prompts: Prompts, answer: Answer) -> tuple[Batch, Prompts, Answer]:
    """What is left of a batch when the queries without prompts have been answered."""
    stays = [not free for free in batch.free]
    images = _Rows([1] * len(stays), stays)
    queries = _Rows(list(prompts.counts), stays)
    counts = tuple(images.of(prompts.counts))
    left = queries.of_prompts(prompts, counts)
    return (
        replace(
            batch,
            keys=tuple(images.of(batch.keys)),
            image_embeddings=images(batch.image_embeddings),
            targets=queries(batch.targets),
            weights=images(batch.weights),
            prompts=left,
            draws=queries(batch.draws),
            speaks=images(batch.speaks),
            numbers=tuple(images.of(batch.numbers)),
            free=(),
            worth=(),
            factors=None,
            told=tuple(images.of(batch.told)),
        ),
        left,
        Answer(queries(answer.low_res_logits), queries(answer.iou_predictions), queries(answer.best)),
    )


class _Rows:
    """Some images' rows of tensors that hold so many rows for each image; told on the host."""

    def __init__(self, counts: Sequence[int], stays: Sequence[bool]) -> None:
        ends = np.cumsum(counts).tolist()
        spans = zip([0, *ends], ends, strict=False)
        self._spans = [span for span, stay in zip(spans, stays, strict=True) if stay]

    def __call__(self, tensor: Tensor) -> Tensor:
        """The rows of a tensor."""
        return torch.cat([tensor[start:end] for start, end in self._spans])

    def of(self, values: Sequence[Any]) -> list[Any]:
        """The rows of something on the host."""
        return [value for start, end in self._spans for value in values[start:end]]

    def of_prompts(self, prompts: Prompts, counts: tuple[int, ...]) -> Prompts:
        """The rows of prompts."""
        tensors = {field.name: getattr(prompts, field.name) for field in fields(prompts)}
        chosen = {name: self(value) for name, value in tensors.items() if isinstance(value, Tensor)}
        changed = prompts.replaced(**chosen)
        object.__setattr__(changed, "counts", counts)
        return changed
