"""Fixtures that several test files share: where the real data is, small volumes on disk, one encoded store."""

from __future__ import annotations

import os

# Before torch: tests fork, and a fork takes none of OpenMP's threads along (the child would wait for them).
os.environ["OMP_NUM_THREADS"] = "1"

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
import torch

import embedcache.sam.decoder as sam_decoder
import embedcache.sam.weights as sam_weights

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images; the test is skipped where it is absent."""
    folder = Path(os.environ.get("EMBEDCACHE_TEST_DATA") or REPOSITORY.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"real data not found: {folder} (set $EMBEDCACHE_TEST_DATA)")
    return folder


@pytest.fixture(scope="session", autouse=True)
def caches_of_the_home_folder_are_elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests neither find nor leave anything in ``~/.cache/embedcache``."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("STATISTICS", "CHUNKS"):
            patch.setenv(f"EMBEDCACHE_{name}", str(tmp_path_factory.mktemp(name.lower())))
        yield


@pytest.fixture(scope="session", autouse=True)
def random_weights_are_drawn_once() -> Iterator[None]:
    """Drawing them takes a second, and most tests want those of seed 0; each gets tensors of its own."""
    weights, decoder = sam_weights.random_weights, sam_decoder.random_decoder_state
    drawn, drawn_decoder = lru_cache(weights), lru_cache(decoder)

    def own_weights(model_type: str, seed: int) -> sam_weights.Weights:
        found = drawn(model_type, seed)
        return replace(found, state=_own(found.state))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sam_weights, "random_weights", own_weights)
        patch.setattr(sam_decoder, "random_decoder_state", lambda seed: _own(drawn_decoder(seed)))
        yield


def _own(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}
