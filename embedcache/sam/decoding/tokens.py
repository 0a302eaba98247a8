"""Turns points and boxes of Q prompts, some with fewer than others, into tokens and which of them take part."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from embedcache.sam.prompts import PAD_LABEL, Prompts


def prompt_tokens(prompt_encoder: Any, prompts: Prompts) -> tuple[Tensor, Tensor | None]:
    """Embed points and boxes as segment-anything does row by row.

    A row has its points, then its box's two corners, or without a box one "no point". A row without points and
    box has nothing. Nothing is indexed by a mask, so that the host never waits for a GPU.

    Parameters
    ----------
    prompt_encoder : PromptEncoder
        segment-anything's own.
    prompts : Prompts
        Q of them.

    Returns
    -------
    tokens : Tensor
        ``(Q, N, 256)``.
    takes_part : Tensor of bool or None
        ``(Q, N)``; None when all do.
    """
    found: list[Tensor] = []
    parts: list[Tensor] = []
    no_point = prompt_encoder.not_a_point_embed.weight
    if prompts.point_coords is not None:
        found.append(_points(prompt_encoder, prompts))
        parts.append(_points_that_count(prompts, prompts.point_coords))
    if prompts.boxes is not None:
        corners = _corners(prompt_encoder, prompts.boxes)
        have = _rows_with_box(prompts, prompts.boxes)
        if (
            prompts.has_box is not None and prompts.point_coords is not None
        ):  # rows without a box end as points do
            first = torch.where(have[:, None, None], corners[:, :1], no_point)
            corners = torch.cat([first, corners[:, 1:]], dim=1)
            parts.append((have | _rows_with_points(prompts, prompts.point_coords))[:, None])
        else:
            parts.append(have[:, None])
        found.append(corners)
        parts.append(have[:, None])
    elif prompts.point_coords is not None:
        found.append(no_point.expand(prompts.queries, 1, -1))
        parts.append(_rows_with_points(prompts, prompts.point_coords)[:, None])
    if not found:
        return no_point.new_empty(prompts.queries, 0, no_point.shape[1]), None
    mixed = prompts.point_counts is not None or prompts.has_box is not None
    return torch.cat(found, dim=1), torch.cat(parts, dim=1) if mixed else None


def token_count(prompts: Prompts) -> int:
    """How many tokens a row of these prompts has, those that take no part included."""
    points = 0 if prompts.point_coords is None else prompts.point_coords.shape[1]
    if prompts.boxes is not None:
        return points + 2
    return points + (prompts.point_coords is not None)


def _points(prompt_encoder: Any, prompts: Prompts) -> Tensor:
    coords, labels = prompts.point_coords, prompts.point_labels
    assert coords is not None
    assert labels is not None
    places, labels = _positions(prompt_encoder, coords), labels[..., None]
    outside, inside = (prompt_encoder.point_embeddings[k].weight for k in (0, 1))
    embedded = places + torch.where(labels == 1, inside, outside)
    return torch.where(labels == PAD_LABEL, prompt_encoder.not_a_point_embed.weight, embedded)


def _corners(prompt_encoder: Any, boxes: Tensor) -> Tensor:
    kinds = torch.stack([prompt_encoder.point_embeddings[k].weight[0] for k in (2, 3)])
    return _positions(prompt_encoder, boxes.reshape(-1, 2, 2)) + kinds


def _positions(prompt_encoder: Any, coords: Tensor) -> Tensor:
    """Position embeddings of pixels' centres; never rounded to bf16, in which neighbours are one place."""
    with torch.autocast(coords.device.type, enabled=False):
        places: Tensor = prompt_encoder.pe_layer.forward_with_coords(
            coords + 0.5, prompt_encoder.input_image_size
        )
    return places.to(prompt_encoder.not_a_point_embed.weight.dtype)


def _points_that_count(prompts: Prompts, coords: Tensor) -> Tensor:
    queries, most = coords.shape[:2]
    if prompts.point_counts is None:
        return coords.new_ones(queries, most, dtype=torch.bool)
    return torch.arange(most, device=coords.device) < prompts.point_counts[:, None]


def _rows_with_points(prompts: Prompts, coords: Tensor) -> Tensor:
    if prompts.point_counts is None:
        return coords.new_ones(len(coords), dtype=torch.bool)
    return prompts.point_counts > 0


def _rows_with_box(prompts: Prompts, boxes: Tensor) -> Tensor:
    return boxes.new_ones(len(boxes), dtype=torch.bool) if prompts.has_box is None else prompts.has_box
