"""What a sweep promises: its runs in order, each once, one table; and a file that says no wrong word."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from training_stores import blob_labels, make_store, save_labels

from embedcache.cli.app import app, register
from embedcache.cli.app import run as command
from embedcache.errors import ConfigError, InputError, Interrupted, LockedError, MismatchError
from embedcache.files import exclusive_lock
from embedcache.progress import Silent
from embedcache.store import EmbeddingStore
from embedcache.store.reader import EmbeddingReader
from embedcache.train import Run, train
from embedcache.train.sweep import run_name, run_sweep
from embedcache.train.sweep_file import Range, SweepFile, read_sweep

QUICK = {"steps": 1, "batch_size": 1, "logger": "none", "device": "cpu"}


def written(folder: Path, text: str) -> Path:
    path = folder / "sweep.toml"
    path.write_text(text)
    return path


def grid(steps: int = 1, **vary: list[Any]) -> SweepFile:
    return SweepFile(
        "grid", "dice", QUICK | {"steps": steps}, {name: tuple(values) for name, values in vary.items()}
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[EmbeddingStore, Path]:
    folder = tmp_path_factory.mktemp("sweep")
    labels = blob_labels(1, 64, 320)
    return make_store(folder / "s.zarr", labels), save_labels(folder / "l.npy", labels)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the training embeddings that are read from files."""
    found: list[int] = []
    read = EmbeddingReader.read_stored

    def counted(self: EmbeddingReader, indices: Any, *rest: Any, **named: Any) -> Any:
        found.extend(int(number) for number in indices)
        return read(self, indices, *rest, **named)

    monkeypatch.setattr(EmbeddingReader, "read_stored", counted)
    return found


class Opened:
    """Counts how often files are opened, by name, while ``on``; a hook of Python's own cannot be taken away."""

    def __init__(self) -> None:
        self.on = False
        self.counts: Counter[str] = Counter()
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.on and event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            self.counts[Path(os.fsdecode(arguments[0])).name] += 1

    def during(self, work: Any) -> Counter[str]:
        self.counts, self.on = Counter(), True
        try:
            work()
        finally:
            self.on = False
        return self.counts


def test_a_grid_is_walked_in_the_files_order_the_last_option_fastest(tmp_path: Path) -> None:
    text = 'kind = "grid"\nmetric = "iou"\n[fixed]\nsteps = 5\n[vary]\nlr = [1e-4, 1e-3]\nloss = ["sam", "mse"]\n'
    found = read_sweep(written(tmp_path, text))
    assert found.metric == "iou"
    assert [tuple(chosen.values()) for chosen in found.choices()] == [
        (1e-4, "sam"),
        (1e-4, "mse"),
        (1e-3, "sam"),
        (1e-3, "mse"),
    ]
    assert [run_name(i, c) for i, c in enumerate(found.choices(), 1)][2] == "003-lr=0.001-loss=sam"


@given(st.integers(0, 99), st.integers(1, 12), st.integers(1, 12))
@settings(max_examples=25, deadline=None)
def test_random_draws_follow_the_seed_and_more_runs_begin_alike(seed: int, few: int, more: int) -> None:
    vary: dict[str, Any] = {"lr": Range(1e-5, 1e-2, True), "max_objects": Range(1, 9), "loss": ("sam", "mse")}
    draws = [SweepFile("random", "dice", {}, vary, runs, seed).choices() for runs in (few, few + more)]
    assert draws[1][:few] == draws[0]
    for chosen in draws[1]:
        assert 1e-5 <= float(chosen["lr"]) <= 1e-2
        assert chosen["max_objects"] in range(1, 10)
        assert chosen["loss"] in ("sam", "mse")


def test_a_random_sweep_covers_every_decade(tmp_path: Path) -> None:
    text = 'kind = "random"\nruns = 60\nseed = 3\n[vary]\nlr = {low = 1e-5, high = 1e-2, log = true}\n'
    rates = [float(chosen["lr"]) for chosen in read_sweep(written(tmp_path, text)).choices()]
    assert min(Counter(int(np.floor(np.log10(rate))) for rate in rates).values()) >= 10


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kid = 1", "kid is not known. Did you mean kind"),
        ("[vary]\nlearning_rate = [1]", "learning_rate is not known"),
        ("[fixed]\nstepz = 1\n[vary]\nlr = [1e-3]", "stepz is not known. Did you mean steps"),
        ("", "is empty"),
        ("[vary]\nlr = []", "list of lr is empty"),
        ("[vary]\nlr = 1e-3", r"\[vary\] takes lists"),
        ("[vary]\nlr = [1e-3, 1e-3]", "twice"),
        ("[vary]\nlr = [[1]]", "text, numbers"),
        ("[vary]\nlr = {low = 1e-4, high = 1e-3}", "a grid cannot walk"),
        ('kind = "random"\n[vary]\nlr = {low = 1, high = 0.1}', "low < high"),
        ('kind = "random"\n[vary]\nlr = {low = 0, high = 0.1, log = true}', "begins above 0"),
        ('kind = "random"\n[vary]\nlr = {lo = 0, high = 0.1}', "lo is not known"),
        ('kind = "random"\nruns = 0\n[vary]\nlr = [1e-3]', "runs is 0"),
        ('runs = 3\n[vary]\nlr = [1e-3]', "belongs to kind"),
        ('kind = "both"\n[vary]\nlr = [1e-3]', "kind is 'both'"),
        ('metric = "accuracy"\n[vary]\nlr = [1e-3]', "metric is 'accuracy'"),
        ("[fixed]\nlr = 1e-3\n[vary]\nlr = [1e-3]", r"\[fixed\] and in \[vary\]"),
        ("[vary]\nval = ['0:1']", "val may not vary"),
        ("[vary]\nout = ['a']", "out is said on the command line"),
        ("[vary]\nstore = ['a']", "store is said on the command line"),
        ("[vary]\nlr = [5.0]", "run 1: --lr is 5.0"),
        ("[vary]\nlr = ['fast']", "run 1"),
        (f"[vary]\nseed = {list(range(150))}\nmax_objects = {list(range(1, 150))}", "at most 10,000"),
        ("vary = 3", "no table"),
        ("lr == 1", "no TOML"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_with_the_word_that_is_wrong(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        read_sweep(written(tmp_path, text))


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_sweep(tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="no TOML"):
        read_sweep(tmp_path / "bytes.toml")


def test_runs_become_one_table_sorted_by_the_metric(
    data: tuple[EmbeddingStore, Path], tmp_path: Path
) -> None:
    result = run_sweep(*data, grid(lr=[1e-5, 3e-3]), out=tmp_path / "sweep")
    values = [row["value"] for row in result.rows]
    assert values == sorted(values, reverse=True)
    assert {row["prompt_source"] for row in result.rows} == {"free"}
    assert len({row["untrained"] for row in result.rows}) == 1
    assert result.to_dict()["best"] == result.rows[0]["run"]
    lines = result.table().splitlines()
    assert lines[0].split() == ["run", "lr", "dice", "untrained", "prompt", "source", "steps", "seconds"]
    assert len(lines) == 3
    assert sorted(p.name for p in (tmp_path / "sweep").iterdir() if p.is_dir()) == [
        "001-lr=1e-05",
        "002-lr=0.003",
    ]
    for row in result.rows:
        alone = train(*data, out=tmp_path / row["name"], **QUICK, **row["options"])
        assert alone.summary["figures"]["dice"] == row["value"]


def test_a_sweep_that_was_killed_goes_on_and_gives_the_same_table(
    data: tuple[EmbeddingStore, Path], tmp_path: Path
) -> None:
    plan = grid(2, seed=[0, 1])
    whole = run_sweep(*data, plan, out=tmp_path / "whole")
    asked = iter([None, 15])
    with pytest.raises(Interrupted):
        run_sweep(*data, plan, out=tmp_path / "cut", stop=lambda: next(asked))
    half = json.loads((tmp_path / "cut" / "sweep.json").read_text())
    assert [row["name"] for row in half["runs"]] == ["001-seed=0"]
    done = (tmp_path / "cut" / "001-seed=0" / "best.safetensors").stat().st_mtime_ns
    again = run_sweep(*data, plan, out=tmp_path / "cut")
    assert [_facts(row) for row in again.rows] == [_facts(row) for row in whole.rows]
    assert (tmp_path / "cut" / "001-seed=0" / "best.safetensors").stat().st_mtime_ns == done


def _facts(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("run", "seconds", "checkpoint")}


def test_runs_open_the_store_and_labels_and_read_embeddings_once(
    data: tuple[EmbeddingStore, Path], tmp_path: Path, reads: list[int]
) -> None:
    store, labels = data
    opened = Opened()
    one = opened.during(lambda: run_sweep(store.path, labels, grid(seed=[0]), out=tmp_path / "one"))
    three = opened.during(lambda: run_sweep(store.path, labels, grid(seed=[0, 1, 2]), out=tmp_path / "three"))
    assert one[labels.name] >= 1
    assert three[labels.name] == one[labels.name]
    assert three["zarr.json"] == one["zarr.json"]
    reads.clear()
    result = run_sweep(
        store.path, labels, grid(2, max_objects=[1, 2], resident=["ram"]), out=tmp_path / "kept"
    )
    held_out = {
        n for _, part in Run(result.rows[0]["run"]).split["val"] for n in part
    }  # read at each validation
    trained = [number for number in reads if number not in held_out]
    assert sorted(trained) == sorted(set(trained)) != []


def test_a_run_that_fails_is_a_row_with_its_reason_and_is_not_tried_again(
    data: tuple[EmbeddingStore, Path], tmp_path: Path
) -> None:
    # ids are asked of a mask, which has none: the run is refused, the others are made
    plan = grid(objects=["whole", "ids"])
    result = run_sweep(*data, plan, out=tmp_path / "s")
    assert "failed" not in result.rows[0]
    assert "failed" in result.rows[1]
    assert "failed: " in result.table().splitlines()[-1]
    (tmp_path / "s" / result.rows[1]["name"]).mkdir(exist_ok=True)
    said: list[str] = []

    class Teller(Silent):
        def say(self, line: str) -> None:
            said.append(line)

    again = run_sweep(*data, plan, out=tmp_path / "s", progress=Teller())
    assert again.rows[1]["failed"] == result.rows[1]["failed"]
    assert any("not tried again" in line for line in said)


def test_when_all_runs_fail_the_last_error_is_the_sweeps(
    data: tuple[EmbeddingStore, Path], tmp_path: Path
) -> None:
    plan = grid(objects=["ids"], seed=[0, 1])
    with pytest.raises(ConfigError):
        run_sweep(*data, plan, out=tmp_path / "s")
    rows = json.loads((tmp_path / "s" / "sweep.json").read_text())["runs"]
    assert ["failed" in row for row in rows] == [True, True]
    for row in rows:
        (tmp_path / "s" / row["name"]).mkdir(exist_ok=True)
    with pytest.raises(InputError, match="No run finished"):
        run_sweep(*data, plan, out=tmp_path / "s")


def test_a_folder_of_something_else_is_refused_and_left_as_it_is(
    data: tuple[EmbeddingStore, Path], tmp_path: Path
) -> None:
    run_sweep(*data, grid(seed=[0]), out=tmp_path / "s")
    with pytest.raises(MismatchError, match="another sweep"):
        run_sweep(*data, grid(seed=[1]), out=tmp_path / "s")
    with pytest.raises(InputError, match="holds a run"):
        run_sweep(*data, grid(seed=[0]), out=tmp_path / "s" / "001-seed=0")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds no sweep"):
        run_sweep(*data, grid(seed=[0]), out=tmp_path / "mine")
    with pytest.raises(InputError, match="is a file"):
        run_sweep(*data, grid(seed=[0]), out=tmp_path / "mine" / "notes.txt")
    with pytest.raises(ConfigError, match="--out"):
        run_sweep(*data, grid(seed=[0]), out=None)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_other_options_on_the_command_line_are_another_sweep_and_no_row_is_lost(
    data: tuple[EmbeddingStore, Path], tmp_path: Path
) -> None:
    plan = SweepFile("grid", "dice", {"steps": 1, "batch_size": 1}, {"seed": (0,)})
    given = {"logger": "none", "device": "cpu", "lr": 1e-4}
    first = run_sweep(*data, plan, out=tmp_path / "s", options=given)
    before = (tmp_path / "s" / "sweep.json").read_bytes()
    with pytest.raises(MismatchError, match=r"lr: recorded 0\.0001, now 0\.001"):
        run_sweep(*data, plan, out=tmp_path / "s", options=given | {"lr": 1e-3})
    assert (tmp_path / "s" / "sweep.json").read_bytes() == before
    again = run_sweep(*data, plan, out=tmp_path / "s", options=given | {"check_reads": "once"})
    assert again.rows == first.rows
    assert (tmp_path / "s" / "sweep.json").read_bytes() == before


def test_two_sweeps_do_not_share_a_folder(data: tuple[EmbeddingStore, Path], tmp_path: Path) -> None:
    with exclusive_lock(tmp_path / "s" / ".lock"), pytest.raises(LockedError):
        run_sweep(*data, grid(seed=[0]), out=tmp_path / "s")


def test_several_processes_are_refused(
    data: tuple[EmbeddingStore, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="one process"):
        run_sweep(*data, grid(seed=[0]), out=tmp_path / "s")


def test_a_random_sweep_may_get_more_runs(data: tuple[EmbeddingStore, Path], tmp_path: Path) -> None:
    vary: dict[str, Any] = {"lr": Range(1e-5, 1e-3, True)}
    short = run_sweep(*data, SweepFile("random", "dice", dict(QUICK), vary, 1), out=tmp_path / "s")
    longer = run_sweep(*data, SweepFile("random", "dice", dict(QUICK), vary, 2), out=tmp_path / "s")
    assert {row["name"] for row in short.rows} < {row["name"] for row in longer.rows}


def test_the_command_prints_one_object_and_a_table_for_people(
    data: tuple[EmbeddingStore, Path], tmp_path: Path
) -> None:
    register()
    path = written(tmp_path, "[fixed]\nsteps = 1\nbatch_size = 1\n[vary]\nseed = [0]\n")
    words = ["train", "--store", str(data[0].path), "--labels", str(data[1]), "--sweep", str(path)]
    words += ["--out", str(tmp_path / "s"), "--logger", "none"]
    found = json.loads(CliRunner().invoke(app, [*words, "--json"], catch_exceptions=False).stdout)
    assert found["best"] == found["runs"][0]["run"] == str(tmp_path / "s" / "001-seed=0")
    printed = CliRunner().invoke(app, words, catch_exceptions=False).stdout.splitlines()
    assert printed[0].split()[:3] == ["run", "seed", "dice"]


def test_a_sweep_that_finished_with_a_failed_run_prints_its_table_and_ends_with_7(
    data: tuple[EmbeddingStore, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, '[fixed]\nsteps = 1\nbatch_size = 1\n[vary]\nobjects = ["ids", "whole"]\n')
    words = ["train", "--store", str(data[0].path), "--labels", str(data[1]), "--sweep", str(path)]
    words += ["--out", str(tmp_path / "s"), "--logger", "none"]
    assert command(words) == 7
    table, said = capsys.readouterr()
    assert table.splitlines()[-1].split()[1:3] == ["ids", "failed:"]
    assert "1 run of 2 failed" in said
    assert command([*words, "--json"]) == 7  # when it is not tried again, too
    found = json.loads(capsys.readouterr().out)
    assert found["failed"] == ["001-objects=ids"]
    assert [row.get("exit_code") for row in found["runs"]] == [None, 2]
