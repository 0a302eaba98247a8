"""Validation: in batches, ahead and shared, it counts what one tile after the other counts."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from training_stores import make_store, save_labels

from embedcache.sam.decoder import Decoder, upscale_logits
from embedcache.store import EmbeddingStore
from embedcache.train.asking.metrics import ThresholdCounts
from embedcache.train.asking.multimask import answers
from embedcache.train.asking.validation import VALIDATION_EPOCH, Held, measure
from embedcache.train.questions.batch import collate_questions
from embedcache.train.questions.dataset import EmbeddingDataset
from embedcache.train.truth.labels import open_labels

CPU = torch.device("cpu")
IDS = np.zeros((2, 64, 112), np.uint16)
IDS[0, 5:30, 10:40], IDS[0, 40:60, 20:60], IDS[1, 10:50, 70:100], IDS[1, 2:12, 2:12] = 1, 2, 3, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("validation")


@pytest.fixture(scope="module")
def held(folder: Path) -> list[Held]:
    """Two parts of one store, of 64 px tiles that reach over the edge, asked in two ways."""
    store: EmbeddingStore = make_store(folder / "s.zarr", IDS)
    labels = save_labels(folder / "l.npy", IDS)
    parts = [
        EmbeddingDataset(store, labels, prompts="iterative", objects="ids", rounds=11),
        EmbeddingDataset(store, labels, prompts="none", task="semantic", store_index=1),
    ]
    return [Held(dataset, tuple(int(n) for n in dataset.tiles)) for dataset in parts]


@pytest.fixture(scope="module")
def model() -> Decoder:
    return Decoder.random(0)


def one_by_one(model: Decoder, held: list[Held]) -> ThresholdCounts:
    counts = ThresholdCounts()
    with torch.inference_mode():
        for part in held:
            for number in part.numbers:
                question, things, supervised = part.dataset.question_and_objects(number, VALIDATION_EPOCH)
                prompts = collate_questions([question], torch.empty(0)).prompts
                found = answers(model, part.dataset.store[question.number][None], prompts)
                for logits, thing in zip(found, things, strict=True):
                    counted = np.ones(thing.size, bool) if supervised is None else supervised
                    truth = torch.from_numpy(thing.mask())
                    counts.add(upscale_logits(logits, question.tile), truth, torch.from_numpy(counted))
    return counts


@pytest.mark.parametrize(("batch", "threads"), [(1, 1), (3, 2)])
def test_batches_count_what_one_tile_after_the_other_counts(
    model: Decoder, held: list[Held], batch: int, threads: int
) -> None:
    expected = one_by_one(model, held).tensor
    found = measure(model, held, CPU, batch=batch, threads=threads).tensor
    assert torch.equal(found.sum(), expected.sum())
    assert (
        found - expected
    ).abs().sum() <= 1e-4 * expected.sum()  # a logit on a threshold may fall either way
    assert model.training


@dataclass
class Sharing:
    """Processes that measure together, as threads."""

    rank: int
    world: int
    table: list[torch.Tensor] = field(default_factory=list)
    barrier: threading.Barrier | None = None

    def sum_(self, tensors: Iterable[torch.Tensor]) -> None:
        assert self.barrier is not None
        own = list(tensors)
        self.table.append(own[0].clone())
        self.barrier.wait()
        own[0].copy_(torch.stack(self.table).sum(dim=0))


def test_processes_share_the_tiles_and_all_get_the_sum(model: Decoder, held: list[Held]) -> None:
    expected = measure(model, held, CPU, batch=1).tensor
    table: list[torch.Tensor] = []
    barrier = threading.Barrier(2, timeout=60)
    found: dict[int, torch.Tensor] = {}

    def run(rank: int) -> None:
        sharing = Sharing(rank, 2, table, barrier)
        own = copy.deepcopy(model)  # as processes have it: measure() switches its mode
        found[rank] = measure(own, held, CPU, batch=1, ranks=sharing).tensor

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(found[0], expected)
    assert torch.equal(found[1], expected)
    assert all(part.sum() < expected.sum() for part in table)


def test_every_validation_asks_the_same_whatever_training_draws(model: Decoder, held: list[Held]) -> None:
    part = held[0]
    again = EmbeddingDataset(
        part.dataset.store, part.dataset.labels, prompts="iterative", objects="ids", rounds=3
    )
    again.set_epoch(7)
    one = measure(model, [part], CPU)
    two = measure(model, [Held(again, part.numbers)], CPU)
    assert torch.equal(one.tensor, two.tensor)


def test_ignored_pixels_are_in_no_figure(model: Decoder, folder: Path) -> None:
    marked = IDS.copy()
    marked[:, :, 32:48] = 99
    other = marked.copy()
    other[:, ::2, 32:48] = 7  # whatever lies there
    store = EmbeddingStore.open(folder / "s.zarr")
    mask = np.ones(IDS.shape, np.uint8)
    mask[:, :, 32:48] = 0
    figures = []
    ignoring = open_labels(save_labels(folder / "marked.npy", marked), store, ignore=99)
    masked = open_labels(
        save_labels(folder / "other.npy", other), store, supervision=save_labels(folder / "mask.npy", mask)
    )
    for labels in (ignoring, masked):
        dataset = EmbeddingDataset(store, labels, prompts="points", objects="ids")
        figures.append(measure(model, [Held(dataset, tuple(map(int, dataset.tiles)))], CPU).tensor)
    assert torch.equal(*figures)
    assert figures[0].sum() > 0


def test_a_failure_while_reading_ahead_is_raised_and_the_model_goes_back(
    model: Decoder, held: list[Held]
) -> None:
    missing = Held(held[0].dataset, (10**6,))
    with pytest.raises(Exception, match="1000000"):
        measure(model, [missing], CPU)
    assert model.training
