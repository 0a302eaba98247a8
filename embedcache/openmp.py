"""Lets OpenMP's threads sleep while they wait for each other, not spin; has to be imported before torch.

A thread that spins takes its core from those that read and write beside the encoder, and from other programs.
With one other program at work on two cores, an image took two to six times as long, on the clock and of the
processor. Who sets OMP_WAIT_POLICY decides otherwise.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
