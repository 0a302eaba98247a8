"""The loop on a GPU whose memory is short: smaller calls, the same steps; and the words when nothing helps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training_stores import blob_labels, make_store, save_labels

from embedcache.errors import ConfigError
from embedcache.progress import Silent
from embedcache.sam.decoder import Decoder, DecoderOutput, Prompts
from embedcache.train.feed.feeding import Feed, FeedOptions
from embedcache.train.loggers import open_loggers
from embedcache.train.options import TrainOptions
from embedcache.train.setup import Setup, prepare
from embedcache.train.stepping.course import Course
from embedcache.train.stepping.loop import Loop
from embedcache.train.stepping.ranks import Ranks
from embedcache.train.stepping.rows import Rows
from embedcache.train.stepping.state import Standing
from embedcache.train.stepping.steps import Stepper

CPU = torch.device("cpu")
OPTIONS = TrainOptions(val="3:4", batch_size=3, lr=1e-3, warmup=0)


class Short(Decoder):
    """A decoder for whose answer there is memory only up to so many images in a call."""

    most = 3

    def forward(self, image_embeddings: Any, prompts: Prompts, **named: Any) -> DecoderOutput:
        if self.training and len(image_embeddings) > self.most:
            raise torch.OutOfMemoryError("no memory left")
        return super().forward(image_embeddings, prompts, **named)


class Hears(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("loop")
    labels = blob_labels(4, 64, 64)
    make_store(folder / "s.zarr", labels)
    return prepare(folder / "s.zarr", save_labels(folder / "l.npy", labels), OPTIONS, Silent())


def run(setup: Setup, folder: Path, most: int) -> tuple[dict[str, Tensor], list[str]]:
    """Two steps of three images; the weights then, and what was said."""
    folder.mkdir()
    model = Short.from_state(setup.stores[0].decoder_state())
    model.most = most
    ranks, hears = Ranks(CPU), Hears()
    course = Course(folder, 2, 3, 2, 2, 0, setup.val, (), setup.val_source)
    stepper = Stepper(model, OPTIONS, total_steps=2, ranks=ranks)
    rows = Rows(folder / "metrics.jsonl", open_loggers("none", folder, settings={}, say=hears.say))
    feed_options = FeedOptions(batch_size=3, seed=0, images_per_call=3, threads=1)
    with Feed(setup.train, feed_options, CPU, say=hears.say) as feed:
        loop = Loop(
            course, stepper, feed, Standing(), rows,
            save=lambda *_: None, ranks=ranks, progress=hears, stop=lambda: None,
        )  # fmt: skip
        assert loop.run().step == 2
    return model.state_dict(), hears.said


def test_when_memory_is_short_calls_become_smaller_and_the_steps_stay_the_same(
    setup: Setup, tmp_path: Path
) -> None:
    whole, said = run(setup, tmp_path / "whole", most=3)
    assert not any("memory does not hold" in line for line in said)
    cut, said = run(setup, tmp_path / "cut", most=1)
    assert [line for line in said if "memory does not hold" in line] == [
        "memory does not hold a call; images a call from here: 2.",
        "memory does not hold a call; images a call from here: 1.",
    ]
    for name, tensor in whole.items():
        torch.testing.assert_close(cut[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


def test_when_not_even_one_image_fits_it_is_said_what_helps(setup: Setup, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one image at a time with up to 8 objects") as refusal:
        run(setup, tmp_path / "none", most=0)
    assert "--max-objects" in str(refusal.value)
