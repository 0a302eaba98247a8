"""Turns three answers to an ambiguous point into one: the truth chooses in training, the decoder in use.

A single point may mean a part or the whole. SAM then gives three masks, of which only the one that is nearest to
the truth is corrected; once a box, a mask or a second point says more, there is one mask.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from embedcache.sam.prompts import PAD_LABEL, Prompts
from embedcache.train.asking.losses import LossParts, compute_loss, mask_losses


def may_be_ambiguous(prompts: Prompts) -> bool:
    """Whether any query may be ambiguous, told from shapes alone, so that no device is waited for."""
    if prompts.point_coords is None or prompts.mask_input is not None:
        return False
    if prompts.boxes is not None and prompts.has_box is None:
        return False
    return prompts.point_coords.shape[1] == 1 or prompts.point_counts is not None


def is_ambiguous(prompts: Prompts) -> Tensor:
    """Which queries have exactly one point, no box and no mask: bool (Q,)."""
    labels = prompts.point_labels
    if labels is None or not may_be_ambiguous(prompts):
        return torch.zeros(prompts.queries, dtype=torch.bool)
    points = labels != PAD_LABEL
    if prompts.point_counts is not None:
        places = torch.arange(labels.shape[1], device=labels.device)
        points = points & (places < prompts.point_counts[:, None])
    one = points.sum(dim=1) == 1
    return one if prompts.has_box is None else one & ~prompts.has_box


def best_of_three(
    name: str, logits: Tensor, iou: Tensor, targets: Tensor, weight: Tensor, ambiguous: Tensor
) -> LossParts:
    """The loss of each query: of the best of its three masks where it is ambiguous, else of the single mask.

    Parameters
    ----------
    name : str
        A loss.
    logits : (Q, 4, 256, 256)
        The single mask, then the three.
    iou : (Q, 4)
        What the decoder believes their IoU to be; that of the chosen mask is compared with its actual one.
    targets, weight : (Q, 256, 256)
    ambiguous : bool (Q,)

    Returns
    -------
    LossParts
        The chosen mask is the one with the smallest mask loss; no gradient reaches the others.
    """
    with torch.no_grad():
        costs = [
            torch.stack(list(mask_losses(name, logits[:, index], targets, weight).values())).sum(dim=0)
            for index in (1, 2, 3)
        ]
        chosen = torch.where(ambiguous, 1 + torch.stack(costs, dim=1).argmin(dim=1), 0)
    return compute_loss(name, _taken(logits, chosen), iou.gather(1, chosen[:, None])[:, 0], targets, weight)


def likeliest(logits: Tensor, iou: Tensor, ambiguous: Tensor) -> Tensor:
    """The mask of each query to go on with: ``(Q, 4, 256, 256)`` to ``(Q, 256, 256)``.

    Of the three the one with the highest predicted IoU where the query is ambiguous, else the single mask.
    """
    return _taken(logits, torch.where(ambiguous, 1 + iou[:, 1:].argmax(dim=1), 0))


def answers(model: nn.Module, image_embeddings: Tensor, prompts: Prompts) -> Tensor:
    """One mask of logits for each query, (Q, 256, 256), as figures and pictures take it.

    Parameters
    ----------
    model : nn.Module
        Called as a decoder.
    image_embeddings : (B, 256, 64, 64)
    prompts : Prompts
        On the same device.
    """
    three = may_be_ambiguous(prompts)
    output = model(image_embeddings, prompts, multimask_output=None if three else False)
    logits, iou = output.low_res_logits, output.iou_predictions
    return likeliest(logits, iou, is_ambiguous(prompts)) if three else logits[:, 0]


def _taken(logits: Tensor, chosen: Tensor) -> Tensor:
    """One mask of each query, by index (Q,)."""
    place = chosen[:, None, None, None].expand(-1, 1, *logits.shape[2:])
    return logits.gather(1, place)[:, 0]
