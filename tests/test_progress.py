"""Progress tells pace, rest and the stage that limits: to people, and to machines one JSON object a line."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import embedcache.progress as module
from embedcache.progress import PACE_SECONDS, JsonLines, Pace, Terminal, readable_seconds


class Clock:
    """A clock that goes when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(module, "time", found)
    return found


@given(
    pace=st.floats(0.01, 1000),
    steps=st.lists(st.integers(1, 64), min_size=1, max_size=300),
    rest=st.integers(0, 99),
)
def test_a_steady_pace_is_told_and_extrapolated(pace, steps, rest):
    found, now = Pace(sum(steps) + rest, 50.0), 50.0
    for count in steps:
        now += count / pace
        found.add(count, now)
    assert found.done == sum(steps)
    assert found.per_second(now) == pytest.approx(pace, rel=1e-6)
    assert found.left(now) == pytest.approx(rest / pace, rel=1e-6)


def test_the_pace_is_that_of_late():
    pace = Pace(1000, 0.0)
    for second in range(1, 101):
        pace.add(1, float(second))
    for second in range(101, 101 + 2 * int(PACE_SECONDS)):
        pace.add(5, float(second))
    assert pace.per_second(101 + 2 * PACE_SECONDS) == pytest.approx(5, rel=0.05)


def test_nobody_knows_the_rest_of_what_has_no_end_or_has_not_begun():
    assert Pace(0, 0.0).left(1.0) is None
    assert Pace(5, 0.0).left(1.0) is None
    assert Pace(5, 0.0).per_second(0.0) == 0.0


def test_a_plain_line_tells_count_pace_rest_and_limit(clock, capsys):
    progress = Terminal()
    progress.start("encoding with vit_b", 100)
    for _ in range(4):
        clock.now += 5
        progress.advance(10, "encode")
    progress.finish()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "encoding with vit_b: 100 to do",
        "encoding with vit_b: 20/100 in 10 s, 2/s, 40 s left, limited by encode",
        "encoding with vit_b: 40/100 in 20 s, 2/s, 30 s left, limited by encode",
        "encoding with vit_b: 40 done in 20.0 s",
    ]


def test_what_was_done_before_counts_but_says_nothing_of_the_pace(clock, capsys):
    for progress in (Terminal(), JsonLines()):
        progress.start("train", 100, 60)
        for _ in range(2):
            clock.now += 5
            progress.advance(5)
        progress.finish()
    lines = capsys.readouterr().err.splitlines()
    assert lines[:3] == [
        "train: 40 to do, 60 of 100 are done",
        "train: 70/100, 10 of them in 10 s, 1/s, 30 s left",
        "train: 10 done in 10.0 s",
    ]
    event = json.loads(lines[4])
    assert (event["tiles_done"], event["tiles_per_second"], event["eta_seconds"]) == (70, 1.0, 30.0)


def test_a_note_that_is_no_stage_is_shown_as_it_is(clock, capsys):
    progress = Terminal()
    progress.start("train", 100)
    clock.now += 20
    progress.advance(10, "loss 0.5")
    assert "0.5/s, 180 s left, loss 0.5" in capsys.readouterr().err.replace("3 min", "180 s")


def test_a_machine_reads_one_object_a_line(clock, capsys):
    progress = JsonLines()
    progress.say("a line\nof two – lines")
    progress.start("encoding", 100)
    for _ in range(3):
        clock.now += 5
        progress.advance(10, "read")
    progress.start("something else", 0)
    progress.advance(3, "loss 1")
    progress.finish()
    progress.finish()
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [event["event"] for event in events] == ["say", "start", "progress", "finish", "start", "finish"]
    assert events[0]["text"] == "a line\nof two – lines"
    assert {name: events[2][name] for name in ("what", "tiles_done", "tiles_total", "tiles_per_second")} == {
        "what": "encoding",
        "tiles_done": 20,
        "tiles_total": 100,
        "tiles_per_second": 2.0,
    }
    assert (events[2]["eta_seconds"], events[2]["bottleneck"], events[2]["note"]) == (40.0, "read", None)
    assert (events[5]["tiles_total"], events[5]["bottleneck"], events[5]["note"]) == (None, None, "loss 1")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (5000, "83 min"), (12000, "3 h 20 min"), (190000, "2 d 4 h")],
)
def test_durations_are_readable(seconds, text):
    assert readable_seconds(seconds) == text
