"""Parts: several processes fill one store, at once, late or again, and its bytes are those of one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from encode_samples import QUICK, quick, scan, shard_digests
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from embedcache.cli import stage_one
from embedcache.cli.app import run as command
from embedcache.encode import pipeline
from embedcache.encode import run as encode_run
from embedcache.encode.estimate import estimate
from embedcache.encode.options import options_from
from embedcache.encode.parts import Part, part_of, part_of_array_job
from embedcache.errors import ConfigError, Interrupted, MismatchError
from embedcache.progress import Silent
from embedcache.store import EmbeddingStore
from embedcache.volume import pixel_digest


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    return scan(tmp_path / "scan.npy", planes=7)


@given(
    selected=st.lists(st.booleans(), min_size=1, max_size=60),
    shard_tiles=st.integers(1, 7),
    of=st.integers(1, 9),
)
def test_parts_share_the_selected_shards_evenly_and_none_twice(selected, shard_tiles, of):
    flags = np.array(selected)
    shares = [Part(number, of).shards(flags, shard_tiles) for number in range(of)]
    holding = sorted({number // shard_tiles for number in np.flatnonzero(flags).tolist()})
    taken = [shard for share in shares for shard in share]
    assert len(taken) == len(set(taken))
    assert set(holding) <= set(taken)
    counts = [len(set(share) & set(holding)) for share in shares]
    assert max(counts) - min(counts) <= 1


def test_three_parts_one_after_the_other_give_the_bytes_of_one_run(volume, tmp_path):
    whole = quick(volume, store=tmp_path / "whole.zarr")
    results = [quick(volume, store=tmp_path / "s.zarr", num_parts=3, part_id=part) for part in (2, 0, 1)]
    assert sum(result.encoded for result in results) == 7
    assert all(result.selected == result.encoded for result in results)
    assert shard_digests(tmp_path / "s.zarr") == shard_digests(tmp_path / "whole.zarr")
    store = EmbeddingStore.open(tmp_path / "s.zarr")
    assert store.status().complete
    assert store.fingerprint == whole.store.fingerprint


def test_one_part_alone_wants_the_whole_selection_and_a_second_start_finds_nothing_to_do(volume, tmp_path):
    part = {"store": tmp_path / "s.zarr", "num_parts": 3, "part_id": 1}
    first, again = quick(volume, **part), quick(volume, **part)
    assert first.encoded
    assert (again.encoded, again.encoder_calls, again.reused) == (0, 0, first.encoded)
    assert first.store.wanted.sum() == 7
    assert first.to_dict()["num_parts"] == 3
    assert first.to_dict()["part_id"] == 1


def test_more_parts_than_shards_leave_some_with_nothing_to_do(volume, tmp_path):
    results = [quick(volume, store=tmp_path / "s.zarr", num_parts=9, part_id=part) for part in range(9)]
    assert sum(result.encoded for result in results) == 7
    assert sum(result.selected == 0 for result in results) == 5
    assert EmbeddingStore.open(tmp_path / "s.zarr").status().complete


@pytest.mark.parametrize("store_dtype", ["float16", "int8"])
def test_an_interrupted_part_leaves_the_others_and_is_finished_later(volume, tmp_path, store_dtype):
    wishes = {"store": tmp_path / "s.zarr", "store_dtype": store_dtype}
    quick(volume, **wishes | {"store": tmp_path / "whole.zarr"})
    asked = iter([15])
    with pytest.raises(Interrupted):
        quick(volume, stop=lambda: next(asked), num_parts=2, part_id=1, **wishes)
    for part in (0, 1):
        quick(volume, num_parts=2, part_id=part, **wishes)
    assert shard_digests(tmp_path / "s.zarr") == shard_digests(tmp_path / "whole.zarr")


def test_a_part_that_finds_other_numerics_recorded_meanwhile_takes_them(volume, tmp_path, monkeypatch):
    built = []
    original = encode_run.EncodeRun._build

    def another_is_quicker(self, numerics):
        built.append(numerics)
        if len(built) == 1:
            monkeypatch.setattr(encode_run.EncodeRun, "_build", original)
            quick(volume, store=tmp_path / "s.zarr", batch_size=3, num_parts=2, part_id=1)
            monkeypatch.setattr(encode_run.EncodeRun, "_build", another_is_quicker)
        return original(self, numerics)

    monkeypatch.setattr(encode_run.EncodeRun, "_build", another_is_quicker)
    quick(volume, store=tmp_path / "s.zarr", num_parts=2, part_id=0)
    store = EmbeddingStore.open(tmp_path / "s.zarr")
    assert [numerics["batch"] for numerics in store.state.numerics] == [3]
    assert built[-1]["batch"] == 3
    assert store.status().complete


def in_a_child(task: Callable[[], object]) -> int:
    """Start a task in a process of its own; its number."""
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            task()
            os._exit(0)
        finally:
            os._exit(1)
    return child


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.fault
@pytest.mark.parametrize("store_dtype", ["float16", "int8"])
def test_a_killed_part_disturbs_no_other_and_is_started_again(volume, tmp_path, store_dtype):
    wishes = {"store_dtype": store_dtype, "num_parts": 4}
    whole = (
        tmp_path / "whole.zarr"
    )  # made as the parts are: the threads of an encoder are part of its numerics
    os.waitpid(in_a_child(lambda: quick(volume, store=whole, store_dtype=store_dtype)), 0)
    for attempt in range(4):
        store = tmp_path / f"{attempt}.zarr"

        def part(number: int, store=store, killed=attempt) -> None:
            stop = die if number == killed else lambda: None
            quick(volume, stop=stop, store=store, part_id=number, **wishes)

        children = [in_a_child(lambda number=number, part=part: part(number)) for number in range(4)]
        ends = [os.waitpid(child, 0)[1] for child in children]
        assert [end == 0 for end in ends] == [number != attempt for number in range(4)]
        assert ends[attempt] == signal.SIGKILL
        again = in_a_child(lambda attempt=attempt, part=part: part(attempt, killed=None))
        assert os.waitpid(again, 0)[1] == 0
        assert shard_digests(store) == shard_digests(whole)


@pytest.mark.fault
def test_three_processes_that_start_at_once_fill_a_store_that_was_not_there(tmp_path):
    """SAM's own encoder class, through the command."""
    volume = scan(tmp_path / "scan.npy", planes=9)
    words = "--model vit_tiny --tile 64 --precision fp32 --device cpu --shard-tiles 2 --json"
    arguments = ["--volume", str(volume), "--store", str(tmp_path / "s.zarr"), *words.split()]
    start = [sys.executable, "-m", "embedcache", "encode", *arguments, "--num-parts", "3", "--part-id"]
    running = [
        subprocess.Popen([*start, str(part)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for part in range(3)
    ]
    results = []
    for process in running:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err.decode()
        results.append(json.loads(out))
    assert sum(result["tiles_encoded"] for result in results) == 9
    whole = quick(volume, store=tmp_path / "whole.zarr", model="vit_tiny")
    assert EmbeddingStore.open(tmp_path / "s.zarr").status().complete
    assert shard_digests(tmp_path / "s.zarr") == shard_digests(whole.store.path)


def save_image(folder: Path, name: str, seed: int) -> None:
    folder.mkdir(exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 60), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / f"{name}.png")


def meanwhile(
    monkeypatch: pytest.MonkeyPatch, owner: object, name: str, happening: Callable[[], object]
) -> None:
    """Let something happen when a function is called for the first time, just before it does its work."""
    original = getattr(owner, name)

    def first(*given):
        monkeypatch.setattr(owner, name, original)
        happening()
        return original(*given)

    monkeypatch.setattr(owner, name, first)


@pytest.mark.parametrize("late", ["b1", "a2"], ids=["end", "between"])
def test_two_runs_that_list_a_growing_folder_differently_never_confuse_its_images(
    tmp_path, monkeypatch, late
):
    folder, store = tmp_path / "photos", tmp_path / "s.zarr"
    for seed, name in enumerate(("a0", "a1")):
        save_image(folder, name, seed)
    quick(folder, store=store)
    save_image(folder, "b2", 2)
    save_image(folder, late, 3)

    def another_sees_only_b2() -> None:
        (folder / f"{late}.png").rename(tmp_path / "late.png")
        quick(folder, store=store, z_range="0:1")
        (tmp_path / "late.png").rename(folder / f"{late}.png")

    meanwhile(monkeypatch, pipeline, "_encode", another_sees_only_b2)
    with pytest.raises(MismatchError, match=f"other images meanwhile.*{late}.png"):
        quick(folder, store=store)
    result = quick(folder, store=store)
    assert [image.name for image in result.store.images] == ["a0.png", "a1.png", "b2.png", f"{late}.png"]
    for number in range(4):
        pixels = np.asarray(Image.open(folder / result.store.plane_name(number)))
        assert result.store.record(number).input_digest == pixel_digest(pixels)


def test_two_runs_that_begin_a_collection_with_other_images_never_confuse_them(tmp_path, monkeypatch):
    folder, store = tmp_path / "photos", tmp_path / "s.zarr"
    save_image(folder, "b", 1)

    def another_is_quicker() -> None:
        (folder / "a.png").unlink()
        quick(folder, store=store)
        save_image(folder, "a", 0)

    save_image(folder, "a", 0)
    meanwhile(monkeypatch, pipeline, "_create", another_is_quicker)
    with pytest.raises(MismatchError, match="other images meanwhile"):
        quick(folder, store=store)
    assert [image.name for image in quick(folder, store=store).store.images] == ["b.png", "a.png"]


def test_images_that_another_part_adds_while_this_one_encodes_do_not_disturb_it(tmp_path, monkeypatch):
    folder, store = tmp_path / "photos", tmp_path / "s.zarr"
    for number in range(4):
        save_image(folder, f"0{number}", number)
    quick(folder, store=store, z_range="0:1")

    def another_part() -> None:
        for number in (10, 11):
            save_image(folder, str(number), number)
        assert quick(folder, store=store, num_parts=2, part_id=1).encoded == 4

    meanwhile(monkeypatch, encode_run.EncodeRun, "encode_missing", another_part)
    result = quick(folder, store=store, num_parts=2, part_id=0)
    assert (result.selected, result.encoded, result.reused) == (2, 1, 1)
    assert result.store.status().complete


@pytest.mark.parametrize("part", [{}, {"num_parts": 2, "part_id": 0}])
def test_images_that_another_run_added_before_this_one_got_the_lock_do_not_disturb_it(
    tmp_path, monkeypatch, part
):
    folder, store = tmp_path / "photos", tmp_path / "s.zarr"
    for number in range(3):
        save_image(folder, str(number), number)
    quick(folder, store=store, z_range="0:1")

    def another_run() -> None:
        save_image(folder, "9", 9)
        quick(folder, store=store, z_range="0:1")

    meanwhile(monkeypatch, pipeline, "_encode", another_run)
    result = quick(folder, store=store, **part)
    assert result.failed == {}
    assert len(result.store.images) == 4
    quick(folder, store=store)
    assert shard_digests(store) == shard_digests(quick(folder, store=tmp_path / "new.zarr").store.path)


def test_parts_of_a_growing_folder_add_its_images_once(tmp_path):
    folder = tmp_path / "photos"
    for number in range(6):
        save_image(folder, str(number), number)
        if number == 2:
            quick(folder, store=tmp_path / "s.zarr")
    for part in (1, 0, 1):
        quick(folder, store=tmp_path / "s.zarr", num_parts=2, part_id=part)
    store = EmbeddingStore.open(tmp_path / "s.zarr")
    assert [record.name for record in store.images] == [f"{number}.png" for number in range(6)]
    assert store.status().complete


@pytest.mark.parametrize(
    ("wishes", "word"),
    [
        ({"num_parts": 3}, "--part-id"),
        ({"part_id": 0}, "--num-parts"),
        ({"num_parts": 3, "part_id": 3}, "0 to 2"),
        ({"num_parts": 0, "part_id": 0}, "at least 1"),
    ],
)
def test_parts_that_make_no_sense_are_refused(volume, tmp_path, wishes, word):
    with pytest.raises(ConfigError, match=word):
        quick(volume, store=tmp_path / "s.zarr", **wishes)
    assert not (tmp_path / "s.zarr").exists()


@pytest.mark.parametrize(
    ("ids", "task", "part"),
    [
        ({"COUNT": 4, "MIN": 0, "MAX": 3, "STEP": 1}, 2, Part(2, 4)),
        ({"COUNT": 3, "MIN": 5, "MAX": 7}, 5, Part(0, 3)),
        ({"COUNT": 3, "MIN": 1, "MAX": 9, "STEP": 4}, 9, Part(2, 3)),
        ({"COUNT": 2}, 1, Part(1, 2)),
    ],
)
def test_a_slurm_task_knows_its_part(ids, task, part):
    environment = {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in (ids | {"ID": task}).items()}
    assert part_of_array_job(environment) == part


def test_outside_an_array_there_is_no_part():
    assert part_of_array_job({"SLURM_JOB_ID": "7"}) is None
    assert part_of(None, None) is None


@pytest.mark.parametrize(
    "ids",
    [{"COUNT": 3, "MIN": 1, "MAX": 7, "ID": 3}, {"COUNT": "x", "ID": 0}, {"COUNT": 2, "MIN": 4, "ID": 3}],
)
def test_an_uneven_array_is_refused_with_what_to_do(ids):
    with pytest.raises(ConfigError, match="SLURM") as refusal:
        part_of_array_job({f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in ids.items()})
    assert "--num-parts" in refusal.value.hint


def test_the_command_takes_its_part_from_slurm_and_says_so(volume, tmp_path, monkeypatch, capsys):
    for name, value in (("ID", 1), ("COUNT", 2), ("MIN", 0), ("MAX", 1)):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    asked = []
    original = stage_one.run_encode
    monkeypatch.setattr(stage_one, "run_encode", lambda *given: asked.append(given[0]) or original(*given))
    words = "--model patches --checkpoint random:0 --tile 64 --precision fp32 --device cpu --shard-tiles 2"
    arguments = [
        "encode",
        "--volume",
        str(volume),
        "--store",
        str(tmp_path / "s.zarr"),
        *words.split(),
        "--json",
    ]
    assert command(arguments) == 0
    shown = capsys.readouterr()
    assert "SLURM array" in shown.err
    assert "part 1 of 2: 1/2 of the selection is left to other tasks" in shown.err
    assert "4 of its tiles are missing by now" in shown.err
    said = json.loads(shown.out)
    assert (said["num_parts"], said["tiles_missing_in_store"], said["complete"]) == (2, 4, False)
    assert command([*arguments, "--num-parts", "1", "--part-id", "0"]) == 0
    shown = capsys.readouterr()
    assert "SLURM" not in shown.err
    assert "other tasks" not in shown.err
    said = json.loads(shown.out)
    assert (said["tiles_missing_in_store"], said["complete"]) == (0, True)
    assert command(arguments) == 0
    assert "it is complete by now" in capsys.readouterr().err
    assert [(options.num_parts, options.part_id) for options in asked] == [(2, 1), (1, 0), (2, 1)]
    assert EmbeddingStore.open(tmp_path / "s.zarr").status().complete


def test_plan_tells_the_time_of_the_largest_part(volume):
    figures = [estimate(options_from(volume, QUICK | {"num_parts": parts}), Silent()) for parts in (None, 2)]
    assert [(f.num_parts, f.tiles_of_part, f.tiles_missing) for f in figures] == [(1, 7, 7), (2, 4, 7)]
    assert figures[1].seconds_estimated == pytest.approx(
        figures[1].seconds_start + 4 * figures[1].seconds_per_tile
    )
