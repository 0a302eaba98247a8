"""Turns a batch on the encoder's device into embeddings in the form that a store keeps, in main memory.

On a GPU the work is enqueued and its results are fetched later, so that the next batch is enqueued before this one
has ended; on a CPU it is done at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from embedcache.encode.memory import HostMemory
from embedcache.encode.stages import Stages
from embedcache.sam.encoder import Encoder
from embedcache.store.shards.quantise import Quantised, quantise
from embedcache.store.shards.shard import Stored

Result = Callable[[], list[Stored]]
"""Waits for the embeddings of a batch and gives them; called once."""


class Computer:
    """The encoder and what follows it until embeddings lie in main memory.

    Parameters
    ----------
    encoder : Encoder
        At work in one thread.
    store_dtype : str
        Element type of the stored embeddings.
    stages : Stages
        Where time is noted.
    """

    def __init__(self, encoder: Encoder, store_dtype: str, stages: Stages) -> None:
        self._encoder, self._store_dtype, self._stages = encoder, store_dtype, stages
        self._on_gpu = encoder.device.type == "cuda"
        self._memory = HostMemory(pinned=self._on_gpu)

    @property
    def ahead(self) -> int:
        """Batches that are begun before the first one's result is asked for."""
        return 2 if self._on_gpu else 1

    def begin(self, inputs: Tensor) -> Result:
        """Encode a batch, (B, 3, 1024, 1024) float32 on the encoder's device."""
        if self._on_gpu:
            with torch.cuda.device(self._encoder.device):  # whose stream the events are recorded on
                return self._enqueue(inputs)
        with self._stages.measure("encode"):
            embeddings = self._encoder.on_device(inputs)
        with self._stages.measure("quantise"):
            stored = self._fetch(embeddings)
        return lambda: _split(*stored)

    def _fetch(self, embeddings: Tensor) -> list[npt.NDArray[Any]]:
        """What is stored, made on the device, so that few bytes cross to main memory."""
        if self._store_dtype == "float16" and not self._on_gpu:
            return [self._memory.filled_from(embeddings, torch.float16)]
        stored = quantised(embeddings, self._store_dtype)
        return [self._memory.filled_from(tensor, tensor.dtype) for tensor in stored]

    def _enqueue(self, inputs: Tensor) -> Result:
        begun, encoded, ended = (
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(3)
        )
        begun.record()
        embeddings = self._encoder.on_device(inputs)
        encoded.record()
        stored = self._fetch(embeddings)
        ended.record()

        def result() -> list[Stored]:
            ended.synchronize()
            self._stages.add("encode", begun.elapsed_time(encoded) / 1000)
            self._stages.add("quantise", encoded.elapsed_time(ended) / 1000)
            return _split(*stored)

        return result


def as_stored(embeddings: Tensor, store_dtype: str) -> list[Stored]:
    """Embeddings in the form that a store keeps: made on their device, so that few bytes cross to the host."""
    return _split(*(tensor.cpu().numpy() for tensor in quantised(embeddings, store_dtype)))


def quantised(embeddings: Tensor, store_dtype: str) -> tuple[Tensor, ...]:
    """What is stored, on the device: float16 values, or int8 values and their scales."""
    return quantise(embeddings) if store_dtype == "int8" else (embeddings.to(torch.float16),)


def _split(values: npt.NDArray[Any], scales: npt.NDArray[Any] | None = None) -> list[Stored]:
    if scales is None:
        return list(values)
    return [Quantised(value, scale) for value, scale in zip(values, scales, strict=True)]
