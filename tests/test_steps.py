"""One step: the same however it is cut into calls; a bad one changes nothing; what does not learn stays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from training_stores import blob_labels, make_store, save_labels

from embedcache.errors import ConfigError
from embedcache.sam.decoder import Decoder
from embedcache.store import EmbeddingStore
from embedcache.train.options import TrainOptions
from embedcache.train.questions.batch import StepData, collate_questions
from embedcache.train.questions.dataset import EmbeddingDataset
from embedcache.train.stepping.device import require_amp, tf32
from embedcache.train.stepping.ranks import Ranks
from embedcache.train.stepping.steps import Stepper

CPU = torch.device("cpu")
LABELS = blob_labels(4, 64, 64)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingDataset:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("steps")
    store: EmbeddingStore = make_store(folder / "s.zarr", LABELS)
    return EmbeddingDataset(
        store, save_labels(folder / "l.npy", LABELS), prompts="points", objects="components"
    )


def step_data(dataset: EmbeddingDataset, *, step: int = 0, calls: Sequence[int] = (4,)) -> StepData:
    """The four tiles of the store as one step of so many images a call."""
    questions = [dataset.question(number, step) for number in range(4)]
    batches, begin = [], 0
    for size in calls:
        embeddings = torch.stack([dataset.store[n] for n in range(begin, begin + size)])
        batches.append(collate_questions(questions[begin : begin + size], embeddings))
        begin += size
    asks = sum(batch.asks for batch in batches)
    keys = tuple(question.key for question in questions)
    return StepData(step, 0, len(questions), asks, keys, iter(batches))


def stepper(decoder: Decoder, **options: Any) -> Stepper:
    chosen = TrainOptions(lr=1e-3, warmup=0, **options)
    return Stepper(decoder, chosen, total_steps=100, ranks=Ranks(CPU))


def weights(decoder: Decoder) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in decoder.parameters()])


@pytest.fixture(scope="module")
def whole(dataset: EmbeddingDataset) -> tuple[dict[str, float], Tensor]:
    decoder = Decoder.random(0)
    result = stepper(decoder).step(step_data(dataset))
    gradient = torch.cat([p.grad.flatten() for p in decoder.parameters() if p.grad is not None])
    return result.read(), gradient


@pytest.mark.parametrize("calls", [(1, 1, 1, 1), (2, 2), (1, 3)])
def test_a_step_is_the_same_however_it_is_cut_into_calls(
    dataset: EmbeddingDataset, whole: tuple[dict[str, float], Tensor], calls: tuple[int, ...]
) -> None:
    decoder = Decoder.random(0)
    found = stepper(decoder).step(step_data(dataset, calls=calls)).read()
    gradient = torch.cat([p.grad.flatten() for p in decoder.parameters() if p.grad is not None])
    assert found == pytest.approx(whole[0], rel=1e-5)
    assert (gradient - whole[1]).norm() <= 1e-5 * whole[1].norm()


def test_the_numbers_of_a_step_are_means_over_its_asks(whole: tuple[dict[str, float], Tensor]) -> None:
    found = whole[0]
    assert list(found) == ["loss", "focal", "dice", "iou", "grad_norm"]
    assert found["loss"] == pytest.approx(found["focal"] + found["dice"] + found["iou"], rel=1e-5)


def test_a_step_that_is_not_finite_changes_neither_weights_nor_moments_nor_average(
    dataset: EmbeddingDataset,
) -> None:
    decoder = Decoder.random(0)
    runner = stepper(decoder, ema=0.9)
    runner.step(step_data(dataset))
    kept = weights(decoder)
    average = {name: tensor.clone() for name, tensor in runner.average.weights().items()}  # type: ignore[union-attr]
    moments = [slots["exp_avg"].clone() for slots in runner.optimizer.state.values()]
    counts = [slots["step"].clone() for slots in runner.optimizer.state.values()]
    data = step_data(dataset, step=1)
    broken = [*data.calls]
    broken[0].image_embeddings[2, 0, 0, 0] = float("nan")
    result = runner.step(StepData(1, 0, 4, data.asks, data.keys, iter(broken)))
    assert not np.isfinite(result.read()["loss"])
    assert torch.equal(weights(decoder), kept)
    slots = list(runner.optimizer.state.values())
    assert all(torch.equal(a, b["exp_avg"]) for a, b in zip(moments, slots, strict=True))
    assert all(torch.equal(a, b["step"]) for a, b in zip(counts, slots, strict=True))
    assert all(torch.equal(average[n], t) for n, t in runner.average.weights().items())  # type: ignore[union-attr]
    assert np.isfinite(runner.step(step_data(dataset, step=2)).read()["loss"])
    assert not torch.equal(weights(decoder), kept)


class AnotherRanOut(Ranks):
    """One of two processes, the other of which has no memory left for its share."""

    def total(self, number: int) -> int:
        return 2 * number

    def most(self, number: int) -> int:
        return 1


def test_when_memory_ends_in_one_process_all_of_them_repeat_the_step(dataset: EmbeddingDataset) -> None:
    decoder = Decoder.random(0)
    kept = weights(decoder)
    runner = Stepper(decoder, TrainOptions(), total_steps=10, ranks=AnotherRanOut(CPU, world=2))
    with pytest.raises(torch.OutOfMemoryError, match="another process"):
        runner.step(step_data(dataset))
    assert torch.equal(weights(decoder), kept)


def test_gradients_are_clipped_and_weights_decay_as_asked(
    dataset: EmbeddingDataset, whole: tuple[dict[str, float], Tensor]
) -> None:
    decoder = Decoder.random(0)
    runner = stepper(decoder, clip=0.01, weight_decay=0.0)
    found = runner.step(step_data(dataset)).read()
    norm = torch.stack([p.grad.norm() for p in decoder.parameters() if p.grad is not None]).norm()
    assert found["grad_norm"] == pytest.approx(whole[0]["grad_norm"], rel=1e-5)  # as it was before
    assert float(norm) == pytest.approx(0.01, rel=1e-3)
    assert runner.optimizer.param_groups[0]["weight_decay"] == 0.0


def test_arithmetic_that_a_device_does_not_have_is_refused_and_tf32_is_put_back() -> None:
    with pytest.raises(ConfigError, match="tf32 is arithmetic of GPUs"):
        require_amp("tf32", CPU)
    before = torch.backends.cuda.matmul.allow_tf32
    with tf32("tf32"):
        assert torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cuda.matmul.allow_tf32 == before


def test_a_step_in_bfloat16_is_near_the_exact_one_and_its_weights_stay_float32(
    dataset: EmbeddingDataset, whole: tuple[dict[str, float], Tensor]
) -> None:
    decoder = Decoder.random(0)
    found = stepper(decoder, amp="bf16").step(step_data(dataset)).read()
    assert found["loss"] == pytest.approx(whole[0]["loss"], rel=0.05)
    assert found["loss"] != whole[0]["loss"]
    assert {parameter.dtype for parameter in decoder.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in decoder.parameters() if p.grad is not None} == {torch.float32}
