"""A batch shows targets and weights as losses take them, one for each query."""

from __future__ import annotations

import torch

from embedcache.sam.prompts import Prompts
from embedcache.train.questions.batch import Batch, TileKey


def test_each_query_has_its_target_and_the_weight_of_its_image() -> None:
    draw = torch.Generator().manual_seed(0)
    targets = torch.randint(0, 2, (4, 256, 256), generator=draw, dtype=torch.uint8)
    weights = torch.randint(0, 2, (2, 256, 256), generator=draw, dtype=torch.uint8)
    batch = Batch(
        keys=(TileKey(0, 5), TileKey(1, 5)),
        image_embeddings=torch.zeros(2, 256, 64, 64, dtype=torch.float16),
        targets=targets,
        weights=weights,
        prompts=Prompts((1, 3)),
        draws=torch.zeros(4, 1, dtype=torch.float64),
        speaks=torch.ones(2, 1, dtype=torch.bool),
        numbers=(5, 5),
    ).to("cpu")
    assert batch.low_res_masks.dtype == batch.weight.dtype == torch.float32
    assert torch.equal(batch.low_res_masks, targets.float())
    assert torch.equal(batch.weight, weights[[0, 1, 1, 1]].float())
    assert batch.prompts.counts == (1, 3)
