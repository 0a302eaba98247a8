"""One of two processes of a training: exchanges what `test_ranks` asks for and prints what it got."""

from __future__ import annotations

import json
import os

import torch
from torch import nn

from embedcache.train.stepping.ranks import Ranks, joined


def main() -> None:
    """Exchange, then the second dies while the first asks it for more."""
    with joined("cpu") as ranks:
        print(json.dumps(exchange(ranks)), flush=True)
        if not ranks.main:
            os._exit(9)
        ranks.total(1)


def exchange(ranks: Ranks) -> dict[str, object]:
    whole = torch.tensor([1, 2 + ranks.rank])
    ranks.sum_([whole])
    weights = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(1))]
    weights[0].grad = torch.full((2,), 1.0 + ranks.rank)
    if ranks.main:
        weights[1].grad = torch.ones(3)
    beside = ranks.sum_gradients(weights, torch.tensor([0.5, 1.0]))
    return {
        "who": [ranks.rank, ranks.world, ranks.main],
        "sum": whole.tolist(),
        "total": ranks.total(10 + ranks.rank),
        "most": ranks.most(ranks.rank),
        "agreed": ranks.agree({"folder": f"of {ranks.rank}"}),
        "gathered": ranks.gather([(ranks.rank, n) for n in range(1 + ranks.rank)], 2),
        "gradients": [None if w.grad is None else w.grad.tolist() for w in weights],
        "beside": beside.tolist(),
    }


if __name__ == "__main__":
    main()
