"""The feed: the same data whoever reads it, on the device before it is asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import store_samples
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from result_samples import add_views
from store_samples import commit, spec
from torch import Tensor
from training_stores import blob_labels, make_store, save_labels

from embedcache.errors import ConfigError, CorruptionError
from embedcache.store import EmbeddingReader, EmbeddingStore
from embedcache.store.layout import shard_path
from embedcache.store.reading.gather import Gather
from embedcache.store.reading.order import Order
from embedcache.store.reading.resident import Residence, decide_residence
from embedcache.store.reading.tier import Tier, shared_tiers, tier_for
from embedcache.train.asking.validation import Held
from embedcache.train.feed.feeding import Feed, FeedOptions
from embedcache.train.questions.batch import Batch, StepData
from embedcache.train.questions.dataset import EmbeddingDataset

LABELS = blob_labels(6, 64, 96)
LABELS[4:] = 0
CPU = torch.device("cpu")

Fields = list[tuple[str, Any]]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    """6 planes of two 64 px tiles; the last two planes are empty."""
    return make_store(tmp_path_factory.mktemp("feed") / "s.zarr", LABELS)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_labels(tmp_path_factory.mktemp("labels") / "l.npy", LABELS)


@pytest.fixture(scope="module")
def part(store: EmbeddingStore, path: Path) -> Held:
    return held(store, path)


def held(store: EmbeddingStore, path: Path, **options: Any) -> Held:
    values: dict[str, Any] = {"prompts": "iterative", "objects": "whole", "rounds": 3, "free_share": 0.3}
    dataset = EmbeddingDataset(store, path, **(values | options))
    return Held(dataset, tuple(int(number) for number in dataset.tiles))


def feed(*parts: Held, batch_size: int = 4, **options: Any) -> Feed:
    return Feed(parts, FeedOptions(batch_size=batch_size, seed=1, **options), CPU, say=lambda words: None)


def content(batch: Batch) -> Fields:
    """All of a batch, tensors as bytes that can be compared."""
    found: Fields = []
    for piece in (batch, batch.prompts):
        for field in fields(piece):
            value = getattr(piece, field.name)
            found.append((field.name, value.numpy().tobytes() if isinstance(value, Tensor) else value))
    return [(name, value) for name, value in found if name != "prompts"]


def taken(steps: Iterator[StepData]) -> list[tuple[tuple[int, int, int, int], list[Fields]]]:
    return [
        ((data.step, data.epoch, data.images, data.asks), [content(batch) for batch in data.calls])
        for data in steps
    ]


def test_a_step_is_the_embeddings_and_questions_of_its_tiles(store: EmbeddingStore, part: Held) -> None:
    with feed(part) as fed:
        assert fed.epoch_length == 12
        for data in fed.steps(0, 4, first_step=0):
            batches = list(data.calls)
            assert [batch.image_embeddings.shape[0] for batch in batches] == [1] * 4
            assert data.epoch == data.step * 4 // 12
            assert data.images == 4
            for key, batch in zip(data.keys, batches, strict=True):
                question = part.dataset.question(key.number, data.epoch)
                assert torch.equal(batch.image_embeddings[0].float(), store[question.number])
                wanted = question.whole[None] if question.free else question.targets
                assert torch.equal(batch.targets, wanted)
                assert batch.free == (question.free,)
            assert data.asks == sum(batch.asks for batch in batches) > 0


WAYS: tuple[dict[str, Any], ...] = (
    {"threads": 1, "ahead": 0, "resident": "disk"},
    {"threads": 4, "ahead": 3, "resident": "disk", "check": "once"},
    {"threads": 2, "resident": "ram", "check": "never"},
)


@pytest.mark.parametrize("way", WAYS)
def test_threads_checks_residence_and_prefetch_change_no_bit(part: Held, way: dict[str, Any]) -> None:
    order = Order(1, 2)
    with feed(part, order=order) as one, feed(part, order=order, **way) as other:
        assert taken(one.steps(0, 7, first_step=0)) == taken(other.steps(0, 7, first_step=0))


@given(batch_size=st.integers(1, 6), world=st.integers(1, 4), first=st.integers(0, 20))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_parts_of_all_processes_are_the_batch_of_one(
    part: Held, batch_size: int, world: int, first: int
) -> None:
    world = min(world, batch_size)
    with feed(part, batch_size=batch_size) as alone:
        whole = [
            (data.keys, [content(call) for call in data.calls])
            for data in alone.steps(first, 2, first_step=0)
        ]
    parts: list[list[tuple[Any, list[Fields]]]] = [[] for _ in whole]
    for rank in range(world):
        with feed(part, batch_size=batch_size, rank=rank, world=world, processes_here=world) as shared:
            for data in shared.steps(first, 2, first_step=0):
                parts[data.step].append((data.keys, [content(call) for call in data.calls]))
    for step, found in zip(whole, parts, strict=True):
        keys = tuple(key for keys, _ in found for key in keys)
        assert step == (keys, [call for _, calls in found for call in calls])


def test_more_processes_than_images_are_refused(part: Held) -> None:
    with pytest.raises(ConfigError, match="5 processes cannot share a batch of 4"):
        feed(part, world=5)


def test_going_on_from_its_state_gives_what_the_whole_gives(part: Held) -> None:
    with feed(part, order=Order(1, 3)) as whole:
        steps = taken(whole.steps(0, 8, first_step=0))
    with feed(part, order=Order(1, 3)) as before:
        assert before.state() == {"images": 0, "order": {"seed": 1, "window": 3}}
        assert taken(before.steps(0, 3, first_step=0)) == steps[:3]
        state = before.state()
    assert state["images"] == 12
    with feed(part, order=Order.from_dict(state["order"])) as after:
        assert taken(after.steps(state["images"], 8, first_step=3)) == steps[3:]


def test_smaller_calls_hold_the_same_images(part: Held) -> None:
    with feed(part, images_per_call=4) as fed:
        (large,) = next(fed.steps(4, 2, first_step=1)).calls
        assert len(large.keys) == 4
        embeddings = large.image_embeddings.clone()
        fed.images_per_call = 2
        small = list(next(fed.steps(4, 2, first_step=1)).calls)
    assert [len(call.keys) for call in small] == [2, 2]
    assert torch.equal(torch.cat([call.image_embeddings for call in small]), embeddings)
    assert small[0].keys + small[1].keys == large.keys


def test_several_stores_are_one_sequence_and_tiles_are_named_by_store_and_place(
    tmp_path: Path, part: Held
) -> None:
    labels = blob_labels(2, 64, 64, seed=3)
    other = held(
        make_store(tmp_path / "other.zarr", labels), save_labels(tmp_path / "l.npy", labels), store_index=3
    )
    with feed(part, other) as fed:
        keys = [key for data in fed.steps(0, fed.epoch_length // 4 + 1, first_step=0) for key in data.keys]
        assert {key.store for key in keys} == {0, 3}
        name = fed.name_of(next(key for key in keys if key.store == 3))
    assert name.startswith("other.zarr tile ")
    assert "z=" in name


@pytest.mark.parametrize("resident", ["ram", "disk"])
def test_of_a_tile_with_views_the_drawn_one_is_read(tmp_path: Path, path: Path, resident: str) -> None:
    made = make_store(tmp_path / "s.zarr", LABELS)
    add_views(made, (4,))
    part = held(made, path, views=True)
    assert set(part.numbers) <= set(np.flatnonzero(made.base).tolist())
    seen: set[int] = set()
    with feed(part, resident=resident, order=Order(1, 1)) as fed, feed(part, order=Order(1, 1)) as other:
        if resident == "ram":
            assert fed.residence.bytes_needed == 24 * 2 << 20
        steps = zip(fed.steps(0, 6, first_step=0), other.steps(0, 6, first_step=0), strict=True)
        for data, same in steps:
            for call, again in zip(data.calls, same.calls, strict=True):
                assert content(call) == content(again)
                number, key = call.numbers[0], call.keys[0]
                assert int(made.base_of([number])[0]) == key.number
                assert torch.equal(call.image_embeddings[0].float(), made[number])
                seen.add(int(made.view_of[number]))
    assert seen == {0, 4}


def kept(where: str) -> Residence:
    """A decision that only a machine with a GPU would make."""
    return replace(decide_residence(0, 1, 1), where=where)


def test_a_tier_on_the_device_gives_the_stores_bits_and_reads_each_embedding_once(
    tmp_path: Path, store: EmbeddingStore
) -> None:
    numbers = np.arange(6)
    gather = Gather([store], Tier.make([store], [numbers], kept("gpu"), CPU), CPU)
    slot = gather.slot(3)
    for _ in range(3):
        for first in (0, 3):
            for at in range(3):
                gather.fill(slot, at, 0, int(numbers[first + at]))
            found = gather.embeddings(slot, 0, 3)
            wanted = torch.stack([store[int(number)] for number in numbers[first : first + 3]])
            assert torch.equal(found.float(), wanted)
        slot.values.zero_()  # what is kept is not read again
    gather.close()


def test_quantised_and_mixed_stores_become_the_floats_that_the_reader_gives(tmp_path: Path) -> None:
    stores = [
        store_samples.make_store(tmp_path / form, spec=spec(store_dtype=form)) for form in ("int8", "float16")
    ]
    for made in stores:
        commit(made, 0, 1)
    for chosen in (stores[:1], stores):
        for where in ("disk", "ram", "gpu"):
            tier = Tier.make(chosen, [np.arange(2)] * len(chosen), kept(where), CPU)
            gather = Gather(chosen, tier, CPU)
            slot = gather.slot(len(chosen))
            for number in (0, 1, 0):
                for at in range(len(chosen)):
                    gather.fill(slot, at, at, number)
                found = gather.embeddings(slot, 0, len(chosen))
                assert found.dtype == torch.float32
                assert torch.equal(found, torch.stack([made[number] for made in chosen]))


def test_trainings_on_the_same_tiles_may_share_what_is_kept(
    part: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, reads, first = EmbeddingReader.read_stored, [], 0

    def counted(self: EmbeddingReader, indices: Any, out: Any) -> Any:
        reads.extend(indices)
        return read(self, indices, out)

    monkeypatch.setattr(EmbeddingReader, "read_stored", counted)
    found = []
    with shared_tiers():
        for resident in ("ram", "auto", "ram"):
            with feed(part, resident=resident) as fed:
                found.append(taken(fed.steps(0, 6, first_step=0)))
            first = len(reads) if len(found) == 1 else first
        assert len(set(reads)) == 12
        assert len(reads) == first  # two threads may have read a tile of two epochs at once; later runs none
        with feed(part, resident="disk") as fed:
            assert taken(fed.steps(0, 6, first_step=0)) == found[0] == found[1] == found[2]
    with feed(part, resident="ram") as fed:
        next(fed.steps(0, 1, first_step=0))
    assert len(reads) >= 12 + 24 + 4


def slow_down(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Every embedding takes so long to read."""
    read = EmbeddingReader.read_stored

    def slowly(self: EmbeddingReader, *arguments: Any) -> Any:
        time.sleep(seconds)
        return read(self, *arguments)

    monkeypatch.setattr(EmbeddingReader, "read_stored", slowly)


def test_stores_of_two_forms_are_counted_as_the_floats_that_are_kept(tmp_path: Path) -> None:
    stores = [
        store_samples.make_store(tmp_path / form, spec=spec(store_dtype=form)) for form in ("int8", "float16")
    ]
    tiles = [np.arange(3), np.arange(2)]
    for chosen, wanted in (
        (stores, 5 * 4 << 20),
        (stores[1:], 2 * 2 << 20),
        (stores[:1], 3 * ((1 << 20) + 1024)),
    ):
        tier = tier_for(chosen, tiles[-len(chosen) :] if chosen != stores[:1] else tiles[:1], CPU, wish="ram")
        assert tier.residence.bytes_needed == wanted
        kept_bytes = tier.values.nbytes + (0 if tier.scales is None else tier.scales.nbytes)
        assert kept_bytes == wanted


def wait_until(true: Callable[[], bool]) -> bool:
    end = time.monotonic() + 60
    while not true() and time.monotonic() < end:
        time.sleep(0.005)
    return true()


def test_making_an_order_is_counted_as_waiting_and_that_of_the_next_epoch_is_made_ahead(
    part: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, made = Order.of_epoch, set()

    def slowly(self: Order, epoch: int, shards: Any) -> Any:
        time.sleep(0.3)
        found = make(self, epoch, shards)
        made.add(epoch)
        return found

    monkeypatch.setattr(Order, "of_epoch", slowly)
    with feed(part, ahead=2) as fed:
        for data in fed.steps(0, 9, first_step=0):
            assert fed.waited > 0.3
            begun = min(data.step + 2, 8)
            after = begun * 4 // fed.epoch_length + 1  # the epoch after the one that is read ahead
            assert wait_until(lambda after=after: after in made)


def test_a_batch_is_there_before_the_step_asks_for_it(part: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    read, reads = EmbeddingReader.read_stored, []

    def counted(self: EmbeddingReader, indices: Any, out: Any) -> Any:
        found = read(self, indices, out)
        reads.extend(indices)
        return found

    monkeypatch.setattr(EmbeddingReader, "read_stored", counted)
    with feed(part, threads=1, resident="disk", ahead=2) as fed:
        for at, _ in enumerate(fed.steps(0, 6, first_step=0)):
            asked = min(at + 1 + 2, 6)
            assert wait_until(lambda asked=asked: len(reads) >= 4 * asked)
            assert len(reads) == 4 * asked  # and no more than what there is memory for


def test_a_slow_disk_is_counted_as_waiting(part: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_down(monkeypatch, 0.05)
    with feed(part, threads=1, resident="disk") as fed:
        list(fed.steps(0, 3, first_step=0))
    assert fed.waited > 0.3  # of 12 embeddings one after the other


@pytest.mark.parametrize("harm", ["flip", "gone"])
def test_a_shard_that_breaks_in_the_middle_is_told_by_its_tile(tmp_path: Path, path: Path, harm: str) -> None:
    made = make_store(tmp_path / "s.zarr", LABELS)
    with feed(held(made, path), resident="disk") as fed:
        steps = fed.steps(0, 100, first_step=0)
        next(steps)
        file = shard_path(made.path, 0)
        data = bytearray(file.read_bytes())
        file.unlink()
        if harm == "flip":
            for at in range(0, len(data), 1 << 20):
                data[at] ^= 1
            file.write_bytes(data)
        fed._gather.close()  # as if its shard had been let go of for others
        with pytest.raises(CorruptionError, match=r"s\.zarr, tile \d+ \(z="):
            list(steps)


def test_leaving_in_the_middle_leaves_nothing_behind(part: Held) -> None:
    def leave(end: Callable[[], None]) -> None:
        with feed(part, ahead=3) as fed:
            for _ in fed.steps(0, 50, first_step=0):
                end()

    def stop() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        leave(stop)
    del caught
    with feed(part, ahead=3) as fed:
        next(fed.steps(0, 50, first_step=0))
        assert taken(fed.steps(0, 1, first_step=0))


def test_what_is_said_names_place_and_order(part: Held) -> None:
    said: list[str] = []
    with Feed([part], FeedOptions(batch_size=2, seed=0, resident="disk"), CPU, say=said.append) as fed:
        assert said == [fed.residence.sentence, fed.order.sentence()]
    assert "24.00 MiB of embeddings" in said[0]


@pytest.mark.parametrize(
    "wrong", [{"threads": 0}, {"images_per_call": 0}, {"check": "seldom"}, {"ahead": -1}, {"resident": "gpu"}]
)
def test_options_out_of_range_are_refused(part: Held, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        feed(part, **wrong)
