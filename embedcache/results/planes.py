"""What is written: planes that are asked for one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


class Planes(Protocol):
    """What a writer needs to know of a prediction."""

    @property
    def planes(self) -> Sequence[int]:
        """Planes that are predicted, in order."""

    @property
    def sizes(self) -> Sequence[tuple[int, int]]:
        """Height and width of every plane of the volume, predicted or not."""

    @property
    def names(self) -> Sequence[str]:
        """Name of every plane: the image's file name, or ``z=12``."""

    @property
    def uniform(self) -> bool:
        """Whether the planes are those of one array."""

    def probabilities(self, plane: int) -> Floats:
        """Stitched probabilities of one plane, NaN where not predicted."""
