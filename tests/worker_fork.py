"""Lets dask's nannies fork workers from a process that has loaded :mod:`worker_encoders`: ``--preload-nanny``.

A worker that is killed is replaced within a second then, instead of loading torch again.
"""

from __future__ import annotations

import multiprocessing

from distributed.utils import get_mp_context

get_mp_context()  # sets dask's own choice, once
multiprocessing.get_context("forkserver").set_forkserver_preload(["worker_encoders", "distributed"])
