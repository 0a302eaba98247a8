"""Rounds: the paper's eleven, three masks for one point, the best passed on, free queries asked once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedcache.geometry import Tile
from embedcache.sam.decoder import Decoder, DecoderOutput
from embedcache.sam.prompts import Prompts
from embedcache.train.asking.rounds import (
    PAPER_ROUNDS,
    Answer,
    first_prompts,
    next_prompts,
    plan_rounds,
    run_rounds,
)
from embedcache.train.questions.batch import Batch, TileKey, TileQuestion, collate_questions
from embedcache.train.questions.prompts import TilePrompts

TILE = Tile(0, 0, 0, 64, 64)


class Painter(torch.nn.Module):
    """Answers four masks a query from a few weights, and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.masks = torch.nn.Parameter(torch.randn(4, 256, 256, generator=generator))
        self.guess = torch.nn.Parameter(torch.tensor([0.1, 0.2, 0.9, 0.3]))
        self.asked: list[Prompts] = []
        self.images: list[int] = []

    def forward(
        self, embeddings: torch.Tensor, prompts: Prompts, *, multimask_output: bool | None = False
    ) -> DecoderOutput:
        self.asked.append(prompts)
        self.images.append(len(embeddings))
        masks = self.masks.expand(prompts.queries, -1, -1, -1)
        guess = self.guess.expand(prompts.queries, -1)
        some = slice(0, None) if multimask_output is None else slice(0, 1)
        return DecoderOutput(masks[:, some], guess[:, some])


def question(
    seed: int = 0, *, objects: int = 2, rounds: int = 4, box: bool = False, free: bool = False, **changes: Any
) -> TileQuestion:
    rng = np.random.default_rng(seed)
    targets = torch.from_numpy((rng.random((objects, 256, 256)) < 0.3).astype(np.uint8))
    points = np.float32(rng.uniform(0, 1023, (objects, 1, 2)))
    boxes = np.sort(np.float32(rng.uniform(0, 1023, (objects, 2, 2))), axis=1).reshape(objects, 4)
    values = {
        "key": TileKey(0, seed),
        "number": seed,
        "tile": TILE,
        "targets": targets,
        "whole": targets.amax(dim=0),
        "weight": torch.ones(256, 256, dtype=torch.uint8),
        "prompts": TilePrompts(points, np.ones((objects, 1), np.int32), boxes),
        "begins_with_box": box,
        "free": free,
        "draws": torch.from_numpy(rng.random((objects, rounds))),
        "speaks": (True,) * rounds,
    }
    return TileQuestion(**{**values, **changes})


def batch_of(*questions: TileQuestion) -> Batch:
    return collate_questions(questions, torch.zeros(len(questions), 256, 64, 64))


@given(st.integers(0, 1000), st.integers(1, 15))
@settings(max_examples=25, deadline=None)
def test_rounds_are_one_and_the_points_and_two_silent_ones_of_which_one_ends(seed: int, rounds: int) -> None:
    plan = plan_rounds(rounds, np.random.default_rng(seed))
    assert len(plan) == rounds
    assert plan[0]
    if rounds < 4:
        assert all(plan)
    else:
        assert sum(plan) == rounds - 2
        assert not plan[-1]


def test_the_papers_eleven_rounds_have_eight_points_and_the_silent_one_may_stand_anywhere_among_them() -> (
    None
):
    plans = {plan_rounds(PAPER_ROUNDS, np.random.default_rng(seed)) for seed in range(200)}
    assert {sum(plan) - 1 for plan in plans} == {8}
    assert {plan.index(False) for plan in plans} == set(range(1, 10))


def test_a_batch_is_asked_by_points_or_boxes_tile_by_tile_and_every_round_adds_a_point_and_the_mask() -> None:
    painter = Painter()
    batch = batch_of(question(1), question(2, box=True, objects=1))
    run_rounds(painter, batch, loss="sam", asks=batch.asks)
    first, *later = painter.asked
    assert first.point_counts is not None
    assert first.has_box is not None
    assert first.point_counts.tolist() == [1, 1, 0]
    assert first.has_box.tolist() == [False, False, True]
    assert first.mask_input is None
    assert len(later) == 3
    for turn, prompts in enumerate(later, start=1):
        assert prompts.point_counts is not None
        assert prompts.point_counts.tolist() == [1 + turn, 1 + turn, turn]
        assert prompts.has_box is first.has_box
        assert prompts.mask_input is not None
        assert not prompts.mask_input.requires_grad
    last = later[-1]
    assert last.point_coords is not None
    assert first.point_coords is not None
    assert torch.equal(last.point_coords[:2, 0], first.point_coords[:2, 0])


def test_every_new_point_lies_where_the_answer_is_wrong_with_the_truths_sign() -> None:
    painter = Painter()
    batch = batch_of(question(3, objects=3))
    run_rounds(painter, batch, loss="sam", asks=batch.asks)
    for prompts in painter.asked[1:]:
        assert prompts.point_coords is not None
        assert prompts.point_labels is not None
        assert prompts.mask_input is not None
        cells = ((prompts.point_coords[:, -1] - 1.5) / 4).long()
        for query, (x, y) in enumerate(cells.tolist()):
            truth = int(batch.targets[query, y, x])
            assert (prompts.mask_input[query, 0, y, x] > 0) != truth
            assert prompts.point_labels[query, -1] == truth


def test_silent_rounds_add_no_point_and_tiles_are_silent_on_their_own() -> None:
    painter = Painter()
    quiet = question(1, speaks=(True, False, True, False))
    other = question(2, speaks=(True, True, True, False), objects=1)
    run_rounds(painter, batch_of(quiet, other), loss="sam", asks=1)
    counts = [None if p.point_counts is None else p.point_counts.tolist() for p in painter.asked]
    assert counts == [None, [1, 1, 2], [2, 2, 3], [2, 2, 3]]
    alone = Painter()
    run_rounds(alone, batch_of(quiet), loss="sam", asks=1)
    for together, by_itself in zip(painter.asked, alone.asked, strict=True):
        assert together.point_coords is not None
        assert by_itself.point_coords is not None
        own = by_itself.point_coords.shape[1] if by_itself.point_counts is None else by_itself.point_counts[0]
        assert torch.equal(together.point_coords[:2, :own], by_itself.point_coords[:, :own])


def test_free_queries_want_everything_positive_and_leave_after_the_first_round() -> None:
    painter = Painter()
    free = question(1, free=True, objects=3)
    batch = batch_of(question(2), free, question(3, objects=1))
    assert batch.prompts.counts == (2, 1, 1)
    assert torch.equal(batch.targets[2], free.whole)
    assert batch.asks == 2 * 4 + 3 * 4 + 4
    run_rounds(painter, batch, loss="sam", asks=batch.asks)
    assert [prompts.counts for prompts in painter.asked] == [(2, 1, 1), (2, 1), (2, 1), (2, 1)]
    assert painter.images == [3, 2, 2, 2]
    assert painter.asked[0].point_counts is not None
    assert painter.asked[0].point_counts.tolist() == [1, 1, 0, 1]
    only = Painter()
    run_rounds(only, batch_of(free), loss="sam", asks=1)
    assert len(only.asked) == 1
    assert only.asked[0].point_coords is None


def test_a_tile_asked_without_prompts_weighs_as_much_as_it_would_with_them() -> None:
    prompted, free = question(1, objects=2), question(2, objects=3, free=True)
    batch = batch_of(prompted, free)
    both = run_rounds(Painter(), batch, loss="sam", asks=batch.asks)
    halves = [
        run_rounds(Painter(), one, loss="sam", asks=one.asks) for one in map(batch_of, (prompted, free))
    ]
    alone = Painter()
    once = run_rounds(alone, batch_of(replace(free, speaks=(True,))), loss="sam", asks=3)
    torch.testing.assert_close(halves[1].total, once.total)  # divided by all it stands for: its own mean
    torch.testing.assert_close(both.total, (2 * halves[0].total + 3 * halves[1].total) / 5)


def test_losses_and_gradients_of_a_batch_are_those_of_its_tiles_one_by_one() -> None:
    questions = [
        question(1),
        question(2, free=True),
        question(3, box=True, speaks=(True, False, True, False)),
    ]
    together, single = Painter(), Painter()
    batch = batch_of(*questions)
    found = run_rounds(together, batch, loss="sam", asks=batch.asks, backward=torch.Tensor.backward)
    sums = [
        run_rounds(single, batch_of(one), loss="sam", asks=batch.asks, backward=torch.Tensor.backward)
        for one in questions
    ]
    torch.testing.assert_close(found.total, torch.stack([one.total for one in sums]).sum())
    torch.testing.assert_close(found.total, torch.stack(list(found.parts.values())).sum())
    torch.testing.assert_close(together.masks.grad, single.masks.grad)
    torch.testing.assert_close(together.guess.grad, single.guess.grad)


def test_backward_is_called_once_a_round_and_its_losses_sum_to_the_total() -> None:
    losses: list[torch.Tensor] = []
    batch = batch_of(question(1))
    sums = run_rounds(Painter(), batch, loss="sam", asks=batch.asks, backward=losses.append)
    assert len(losses) == batch.rounds
    torch.testing.assert_close(sums.total, torch.stack(losses).sum().detach())
    assert not sums.total.requires_grad


def test_the_mask_passed_on_is_the_likeliest_of_three_after_one_point_and_the_single_one_later() -> None:
    painter = Painter()
    run_rounds(painter, batch_of(question(1)), loss="sam", asks=1)
    passed = [prompts.mask_input for prompts in painter.asked[1:]]
    masks = painter.masks.detach()
    assert all(mask is not None for mask in passed)
    assert torch.equal(passed[0][:, 0], masks[2].expand(2, -1, -1))  # the highest guess, 0.9
    assert torch.equal(passed[1][:, 0], masks[0].expand(2, -1, -1))
    boxed = Painter()
    run_rounds(boxed, batch_of(question(1, box=True)), loss="sam", asks=1)
    assert boxed.asked[1].mask_input is not None
    assert torch.equal(boxed.asked[1].mask_input[:, 0], masks[0].expand(2, -1, -1))


def test_sams_decoder_answers_a_mixed_batch_as_it_answers_its_tiles_one_by_one() -> None:
    decoder = Decoder.random(0)
    embeddings = torch.randn(3, 256, 64, 64, generator=torch.Generator().manual_seed(0))
    questions = [
        question(1, objects=1, rounds=3, speaks=(True, False, True)),
        question(2, objects=2, rounds=3, free=True),
        question(3, objects=1, rounds=3, box=True),
    ]
    asks = sum(batch_of(one).asks for one in questions)
    gradients = []
    totals = []
    for parts in ([slice(0, 3)], [slice(0, 1), slice(1, 2), slice(2, 3)]):
        decoder.zero_grad()
        batches = [collate_questions(questions[part], embeddings[part]) for part in parts]
        sums = [
            run_rounds(decoder, batch, loss="sam", asks=asks, backward=torch.Tensor.backward)
            for batch in batches
        ]
        totals.append(torch.stack([one.total for one in sums]).sum())
        gradients.append({name: p.grad for name, p in decoder.named_parameters() if p.grad is not None})
    torch.testing.assert_close(*totals, rtol=1e-5, atol=0)
    together, single = gradients
    assert together.keys() == single.keys()
    largest = max(float(gradient.abs().max()) for gradient in together.values())
    for name, gradient in together.items():
        scale = max(float(gradient.abs().max()), 1e-5 * largest)  # some are zero but for rounding
        torch.testing.assert_close(gradient, single[name], rtol=0, atol=2e-4 * scale)


def test_a_query_without_any_weight_costs_nothing_in_any_round() -> None:
    nowhere = torch.zeros(256, 256, dtype=torch.uint8)
    painter = Painter()
    sums = run_rounds(
        painter, batch_of(question(1, weight=nowhere)), loss="sam", asks=8, backward=torch.Tensor.backward
    )
    assert sums.total == 0
    assert painter.masks.grad is not None
    assert not painter.masks.grad.any()


def test_no_round_waits_for_its_device() -> None:
    batch = batch_of(
        question(1), question(2, free=True), question(3, box=True, speaks=(True, False, True, False))
    )
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run_rounds(Painter(), batch, loss="sam", asks=batch.asks, backward=torch.Tensor.backward)
    called = {event.key for event in profile.key_averages()}
    assert "aten::searchsorted" in called
    assert not called & {"aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::is_nonzero"}


def test_a_round_can_be_prepared_by_hand() -> None:
    batch = batch_of(question(1))
    first = first_prompts(batch)
    logits = torch.randn(2, 1, 256, 256, generator=torch.Generator().manual_seed(0))
    answer = Answer(logits, torch.zeros(2, 1), logits[:, 0])
    second = next_prompts(batch, first, answer, 1)
    assert second.point_coords is not None
    assert second.point_coords.shape == (2, 2, 2)
    assert second.mask_input is not None
    assert torch.equal(second.mask_input, logits)
