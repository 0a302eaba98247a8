"""Several processes are one training: they sum, agree, and end together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from process_pairs import meeting_place
from torch import nn

from embedcache.errors import ConfigError
from embedcache.train.stepping.ranks import Ranks, joined, speaks

WORKER = Path(__file__).with_name("worker_ranks.py")


def start_two(place: dict[str, str]) -> list[subprocess.Popen[str]]:
    return [
        subprocess.Popen(
            [sys.executable, str(WORKER)],
            env=os.environ | place | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


def test_two_processes_sum_and_agree_and_when_one_dies_the_other_ends_and_says_so() -> None:
    with meeting_place() as place:
        first, second = start_two(place)
        said = [json.loads(second.communicate(timeout=300)[0])]
        assert second.returncode == 9
        out, errors = first.communicate(timeout=300)  # a living one it would wait for twice as long
    assert first.returncode != 0
    assert "Another process of this training ended" in errors
    said.insert(0, json.loads(out))
    assert [one.pop("who") for one in said] == [[0, 2, True], [1, 2, False]]
    assert said[0] == said[1]
    assert said[0] == {
        "sum": [2, 5],
        "total": 21,
        "most": 1,
        "agreed": {"folder": "of 0"},
        "gathered": [[0, 0], [1, 0], [1, 1]],
        "gradients": [[3.0, 3.0], [1.0, 1.0, 1.0], None],  # None in both stays None
        "beside": [1.0, 2.0],
    }


def test_one_alone_is_the_sum_and_the_word_of_all() -> None:
    with joined("cpu") as ranks:
        assert (ranks.rank, ranks.world, ranks.main) == (0, 1, True)
        assert (ranks.total(3), ranks.most(4), ranks.agree("x")) == (3, 4, "x")
        weight = nn.Parameter(torch.zeros(2))
        assert ranks.sum_gradients([weight], torch.ones(1)).tolist() == [1.0]
        assert weight.grad is None
        assert ranks.gather([(1, 2)], 2) == [(1, 2)]
    assert speaks()


def test_several_processes_that_do_not_know_where_to_meet_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with (
        pytest.raises(ConfigError, match="MASTER_ADDR and MASTER_PORT are not set") as refusal,
        joined("cpu"),
    ):
        pass
    assert "torchrun" in str(refusal.value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    assert not speaks()


def test_a_sum_over_one_changes_nothing() -> None:
    tensor = torch.tensor([1.5])
    Ranks(torch.device("cpu")).sum_([tensor])
    assert tensor.tolist() == [1.5]
