"""Encoders for worker processes, which load this file with ``dask worker --preload``; and for the tests.

``patches`` of :mod:`faults.encoder`; ``slow``: the same, a fifth of a second an image; ``deadly``: the same, but
an image that is white at one corner kills the process.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from faults import encoder
from torch import Tensor

from embedcache.sam import register_encoder


class Slow(encoder.Patches):
    def forward(self, x: Tensor) -> Tensor:
        time.sleep(0.2 * len(x))
        return super().forward(x)


class Deadly(encoder.Patches):
    def forward(self, x: Tensor) -> Tensor:
        if any(float(image[0, 0, 0]) > 2.2 for image in x):  # 255 after SAM's normalisation; 250 is below
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


encoder.register()
register_encoder("slow", Slow)
register_encoder("deadly", Deadly)
