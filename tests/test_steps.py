"""One step: the same however it is cut into calls; a bad one changes nothing; what does not learn stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from training_stores import blob_labels, crowd_labels, labelled_folder, make_store, save_labels

from embedcache.errors import ConfigError
from embedcache.sam.decoder import Decoder
from embedcache.store import EmbeddingStore
from embedcache.train.asking.losses import LossParts, compute_loss
from embedcache.train.asking.rounds import Answer, next_prompts
from embedcache.train.options import TrainOptions
from embedcache.train.questions.batch import StepData, TileQuestion, collate_questions
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
    return result.read(), gradient_of(decoder)


@pytest.mark.parametrize("calls", [(1, 1, 1, 1), (2, 2), (1, 3)])
def test_a_step_is_the_same_however_it_is_cut_into_calls(
    dataset: EmbeddingDataset, whole: tuple[dict[str, float], Tensor], calls: tuple[int, ...]
) -> None:
    decoder = Decoder.random(0)
    found = stepper(decoder).step(step_data(dataset, calls=calls)).read()
    assert found == pytest.approx(whole[0], rel=1e-5)
    assert (gradient_of(decoder) - whole[1]).norm() <= 1e-5 * whole[1].norm()


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingDataset:
    """Tiles of 2, 3 and 4 objects, asked three times each."""
    folder = labelled_folder(tmp_path_factory.mktemp("crowd"), crowd_labels())
    store = EmbeddingStore.open(folder / "s.zarr")
    return EmbeddingDataset(store, folder / "l.npy", prompts="iterative", rounds=3, tiles=[2, 3, 4])


def losses_by_hand(decoder: Decoder, question: TileQuestion, embedding: Tensor) -> list[LossParts]:
    """The losses of a tile's objects, round by round; each is asked by its box, so that there is one answer."""
    batch = collate_questions([question], embedding[None])
    prompts, found = batch.prompts, []
    for turn in range(1, 2 if question.free else 4):
        logits, iou = decoder(batch.image_embeddings, prompts, multimask_output=False)
        found.append(compute_loss("sam", logits[:, 0], iou[:, 0], batch.low_res_masks, batch.weight))
        if turn < batch.rounds and not question.free:
            answer = Answer(logits.detach(), iou.detach(), logits.detach()[:, 0])
            prompts = next_prompts(batch, prompts, answer, turn)
    return found


def step_by_hand(
    decoder: Decoder, questions: Sequence[TileQuestion], embeddings: Sequence[Tensor]
) -> dict[str, float]:
    """Means over all asks, whose gradients the decoder keeps."""
    sums = dict.fromkeys(("loss", "focal", "dice", "iou"), torch.zeros(()))
    for question, embedding in zip(questions, embeddings, strict=True):
        stands_for = 3 * len(question.targets) if question.free else 1
        for found in losses_by_hand(decoder, question, embedding):
            for name, value in {"loss": found.total, **found.parts}.items():
                sums[name] = sums[name] + stands_for * value.sum()
    asks = 3 * sum(len(question.targets) for question in questions)
    (sums["loss"] / asks).backward()  # type: ignore[no-untyped-call]
    return {name: float(value.detach()) / asks for name, value in sums.items()}


def gradient_of(decoder: Decoder) -> Tensor:
    return torch.cat([p.grad.flatten() for p in decoder.parameters() if p.grad is not None])


def test_losses_and_gradient_of_a_step_are_means_over_its_asks(crowd: EmbeddingDataset) -> None:
    """Not over images, objects or rounds; a tile without prompts, asked once, stands for all it would be asked."""
    drawn = [crowd.question(number, 0) for number in (2, 3, 4)]
    questions = [replace(question, begins_with_box=True, free=at == 2) for at, question in enumerate(drawn)]
    embeddings = [crowd.store[question.number] for question in questions]
    by_hand, decoder = Decoder.random(0), Decoder.random(0)
    expected = step_by_hand(by_hand, questions, embeddings)
    calls = [collate_questions(questions[:2], torch.stack(embeddings[:2]))]
    calls.append(collate_questions(questions[2:], embeddings[2][None]))
    keys = tuple(question.key for question in questions)
    data = StepData(0, 0, 3, sum(call.asks for call in calls), keys, iter(calls))
    found = stepper(decoder, clip=1e9).step(data).read()
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    difference = gradient_of(decoder) - gradient_of(by_hand)
    assert difference.norm() <= 1e-4 * gradient_of(by_hand).norm()


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
