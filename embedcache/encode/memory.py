"""Turns main memory that embeddings no longer need into memory for the next ones.

A shard's embeddings are a hundred megabytes that come and go with each commit. Asked of the system anew, their
first touch costs more than everything else that is done with them; pinned memory for a GPU costs more again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class Lent:
    """Memory that goes back to where it came from when the last array over it is gone."""

    def __init__(self, home: list[Tensor], memory: Tensor) -> None:
        self._home, self._memory = home, memory
        self.__array_interface__: dict[str, Any] = memory.numpy().__array_interface__

    def __del__(self) -> None:
        self._home.append(self._memory)


class HostMemory:
    """Blocks of main memory, each of one shape and type.

    Parameters
    ----------
    pinned : bool
        Whether a GPU is to copy into them.
    """

    def __init__(self, *, pinned: bool) -> None:
        self._pinned = pinned
        self._free: dict[tuple[tuple[int, ...], torch.dtype], list[Tensor]] = {}

    def filled_from(self, source: Tensor, dtype: torch.dtype) -> npt.NDArray[Any]:
        """A copy of a tensor, cast to a type; out of a GPU it is only enqueued, on the current stream."""
        home = self._free.setdefault((tuple(source.shape), dtype), [])
        memory = home.pop() if home else torch.empty(source.shape, dtype=dtype, pin_memory=self._pinned)
        memory.copy_(source, non_blocking=self._pinned)
        return np.asarray(Lent(home, memory))
