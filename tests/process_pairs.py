"""Two processes of one training for the tests; where they meet is there before them, so no port is guessed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist

PATIENCE = timedelta(minutes=2)


@contextmanager
def meeting_place() -> Iterator[dict[str, str]]:
    """What ``torchrun`` tells its processes, but for their rank; where they meet is held by this process."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=PATIENCE)
    yield {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }


def forked_pair(act: Callable[[int], int]) -> list[int]:
    """Let two forked processes act, each told its rank; their exit codes: what ``act`` gave, 70 for an error."""
    with meeting_place() as place:
        children = [_forked(act, rank, place) for rank in range(2)]
        return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def _forked(act: Callable[[int], int], rank: int, place: dict[str, str]) -> int:
    child = os.fork()
    if child == 0:
        os.environ.update(place, RANK=str(rank))
        code = 70
        try:
            code = act(rank)
        finally:
            os._exit(code)
    return child
