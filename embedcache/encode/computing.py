"""Turns a batch on the encoder's device into embeddings in the form that a store keeps, in main memory.

On a GPU the work is enqueued and its results are fetched later, so that the next batch is enqueued before this one
has ended; on a CPU it is done at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from embedcache.encode.stages import Stages
from embedcache.sam.encoder import Encoder
from embedcache.store.shards.quantise import Quantised, quantise
from embedcache.store.shards.shard import Stored


@dataclass(frozen=True)
class Computing:
    """A batch at work; ``result`` waits for its embeddings and gives them once."""

    result: Callable[[], list[Stored]]


def compute(encoder: Encoder, inputs: Tensor, store_dtype: str, stages: Stages) -> Computing:
    """Encode a batch, (B, 3, 1024, 1024) float32 on the encoder's device, into B embeddings."""
    if encoder.device.type == "cuda":
        return _enqueue(encoder, inputs, store_dtype, stages)
    with stages.measure("encode"):
        embeddings = encoder.on_device(inputs)
    with stages.measure("quantise"):
        stored = as_stored(embeddings, store_dtype)
    return Computing(lambda: stored)


def as_stored(embeddings: Tensor, store_dtype: str) -> list[Stored]:
    """Embeddings in the form that a store keeps: made on their device, so that few bytes cross to the host."""
    return _split(*(tensor.cpu() for tensor in _quantised(embeddings, store_dtype)))


def _quantised(embeddings: Tensor, store_dtype: str) -> tuple[Tensor, ...]:
    """What is stored, on the device: float16 values, or int8 values and their scales."""
    return quantise(embeddings) if store_dtype == "int8" else (embeddings.to(torch.float16),)


def _split(values: Tensor, scales: Tensor | None = None) -> list[Stored]:
    if scales is None:
        return list(values.numpy())
    return [Quantised(value, scale) for value, scale in zip(values.numpy(), scales.numpy(), strict=True)]


def _enqueue(encoder: Encoder, inputs: Tensor, store_dtype: str, stages: Stages) -> Computing:
    begun, encoded, ended = (torch.cuda.Event(enable_timing=True) for _ in range(3))  # type: ignore[no-untyped-call]
    begun.record()
    embeddings = encoder.on_device(inputs)
    encoded.record()
    there = _quantised(embeddings, store_dtype)
    here = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in there]
    for pinned, tensor in zip(here, there, strict=True):
        pinned.copy_(tensor, non_blocking=True)
    ended.record()

    def result() -> list[Stored]:
        ended.synchronize()
        stages.add("encode", begun.elapsed_time(encoded) / 1000)
        stages.add("quantise", encoded.elapsed_time(ended) / 1000)
        return _split(*here)

    return Computing(result)
