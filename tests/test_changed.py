"""--changed reencode: exactly what changed is encoded anew, in place, and a kill at any moment loses nothing."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from encode_samples import Listener, all_bytes, change, quick, scan, shard_digests
from PIL import Image

from embedcache.cli.app import run as command
from embedcache.encode import pipeline
from embedcache.encode.plan import bytes_per_tile
from embedcache.errors import ConfigError, Interrupted, MismatchError, StorageError, VolumeError


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    return scan(tmp_path / "scan.npy")


def fresh(volume: Path, place: Path, **wishes) -> dict[str, str]:
    """The files of embeddings that a new store of the volume has."""
    return shard_digests(quick(volume, store=place, **wishes).store.path)


def test_exactly_the_changed_tiles_are_encoded_and_the_bytes_are_those_of_a_new_store(volume, tmp_path):
    quick(volume, store=tmp_path / "s.zarr")
    for plane in (1, 4):
        change(volume, plane)
    listener = Listener()
    result = quick(volume, listener, store=tmp_path / "s.zarr", changed="reencode")
    assert (result.changed, result.encoded, result.encoder_calls, result.checked_pixels) == (2, 2, 2, 6)
    assert result.to_dict()["tiles_changed"] == 2
    assert "planes z=1, 4" in listener.lines[0]
    assert shard_digests(tmp_path / "s.zarr") == fresh(volume, tmp_path / "new.zarr")
    assert result.store.fingerprint == quick(volume, store=tmp_path / "new.zarr").store.fingerprint


def test_afterwards_nothing_is_to_be_done(volume, tmp_path):
    wishes = {"cache_dir": tmp_path / "cache"}
    quick(volume, **wishes)
    change(volume, 3)
    quick(volume, changed="reencode", **wishes)
    before = all_bytes(tmp_path / "cache")
    again = quick(volume, check_pixels=None, **wishes)
    assert (again.encoded, again.reused, again.checked_pixels) == (0, 6, 6)
    assert quick(volume, changed="reencode", **wishes).changed == 0
    assert all_bytes(tmp_path / "cache") == before


def test_an_old_window_that_was_sampled_stays_and_a_later_change_is_still_seen(tmp_path):
    volume = scan(tmp_path / "wide.npy", dtype="uint16", high=60000)
    wishes = {"cache_dir": tmp_path / "cache"}
    window = quick(volume, **wishes).store.spec.preprocess.window
    pixels = np.load(volume)
    pixels[2] //= 3
    np.save(volume, pixels)
    result = quick(volume, changed="reencode", **wishes)
    assert (result.changed, result.encoded) == (1, 1)
    assert result.store.spec.preprocess.window == window
    again = quick(volume, **wishes)
    assert (again.store.path, again.encoded, again.reused) == (result.store.path, 0, 6)
    recipe = result.store.provenance["recipe"]["window"]
    assert quick(volume, window=recipe, **wishes).encoded == 0  # as --like and predict ask for it
    pixels[3] //= 3
    np.save(volume, pixels)
    with pytest.raises(MismatchError) as refusal:
        quick(volume, **wishes)
    assert "volume.sampled_window" in refusal.value.differences


def test_the_same_pixels_in_another_file_are_taken_over_without_encoding(volume, tmp_path):
    quick(volume, store=tmp_path / "s.zarr")
    zarr.save_array(tmp_path / "scan.zarr", np.load(volume))
    with pytest.raises(MismatchError):
        quick(tmp_path / "scan.zarr", store=tmp_path / "s.zarr")
    listener = Listener()
    result = quick(tmp_path / "scan.zarr", listener, store=tmp_path / "s.zarr", changed="reencode")
    assert (result.changed, result.encoded, result.checked_pixels) == (0, 0, 6)
    assert "takes the volume's new identity over" in listener.lines[0]
    assert quick(tmp_path / "scan.zarr", store=tmp_path / "s.zarr").reused == 6


def test_a_change_that_only_a_look_at_all_tiles_finds_is_encoded_too(tmp_path):
    """Of 80 tiles the identity looks at 64, so that a plane can change without changing it."""
    volume = scan(tmp_path / "deep.npy", planes=80)
    first = quick(volume, store=tmp_path / "s.zarr", shard_tiles=16)
    change(volume, 2)
    assert (
        quick(volume, store=tmp_path / "s.zarr", check_pixels=0).store.fingerprint == first.store.fingerprint
    )
    with pytest.raises(MismatchError, match=r"1 of 80 compared tiles changed .*\(plane z=2\)"):
        quick(volume, store=tmp_path / "s.zarr", check_pixels=None)
    result = quick(volume, store=tmp_path / "s.zarr", changed="reencode")
    assert (result.changed, result.encoded) == (1, 1)
    assert quick(volume, store=tmp_path / "s.zarr", check_pixels=None).checked_pixels == 80


def test_the_sample_is_another_one_each_time_and_a_seed_repeats_it(tmp_path):
    volume = scan(tmp_path / "deep.npy", planes=80)
    quick(volume, store=tmp_path / "s.zarr", shard_tiles=16)
    change(volume, 2)  # which the identity does not look at

    def found(**wishes) -> bool:
        try:
            result = quick(volume, store=tmp_path / "s.zarr", check_pixels=40, **wishes)
        except MismatchError:
            return True
        assert (result.checked_pixels, result.recorded_pixels) == (40, 80)
        assert result.check_seed == wishes.get("seed", result.check_seed)
        return False

    by_seed = [found(seed=seed) for seed in range(8)]
    assert by_seed == [found(seed=seed) for seed in range(8)]
    assert set(by_seed) == {True, False}
    assert any(found() for _ in range(60))  # misses all with probability 2 ** -60


def test_a_refusal_of_a_sample_says_how_to_draw_it_again(tmp_path):
    volume = scan(tmp_path / "deep.npy", planes=80)
    quick(volume, store=tmp_path / "s.zarr", shard_tiles=16)
    change(volume, 2)

    def refusal() -> str:
        try:
            quick(volume, store=tmp_path / "s.zarr", check_pixels=79)
        except MismatchError as error:
            return error.message
        return ""

    message = next(filter(None, (refusal() for _ in range(80))))  # each look misses one tile of 80
    seed = int(re.search(r"--seed (\d+)", message)[1])
    with pytest.raises(MismatchError, match="1 of 79"):
        quick(volume, store=tmp_path / "s.zarr", check_pixels=79, seed=seed)


def test_changed_tiles_outside_the_selection_are_encoded_as_well(volume, tmp_path):
    quick(volume, store=tmp_path / "s.zarr")
    for plane in (0, 5):
        change(volume, plane)
    result = quick(volume, store=tmp_path / "s.zarr", changed="reencode", z_range="0:2")
    assert (result.changed, result.encoded) == (2, 2)
    assert result.store.committed.sum() == 6
    assert (result.selected, result.reused) == (2, 1)  # of what was asked for; the rest is said apart


def test_tiles_that_changed_need_room_too_but_none_beyond_what_their_shards_have(tmp_path, monkeypatch):
    volume, store = scan(tmp_path / "scan.npy", planes=8), tmp_path / "s.zarr"
    quick(volume, store=store, shard_tiles=4, z_range="0:6")
    before = all_bytes(store)
    np.save(volume, np.load(volume)[::-1] // 2)
    margin = (64 << 20) + 4 * bytes_per_tile("float16")  # one shard stands beside its older half
    for free, enough in ((margin - 4096, False), (margin + 4096, True)):  # the second resumes the first
        monkeypatch.setattr(pipeline, "free_bytes", lambda _, free=free: free)
        if enough:
            result = quick(volume, store=store, changed="reencode", z_range="0:6")
            assert (result.selected, result.encoded) == (6, 6)
        else:
            with pytest.raises(StorageError, match="marked as missing"):
                quick(volume, store=store, changed="reencode", z_range="0:6")
            assert shard_files(before) == shard_files(all_bytes(store))
    monkeypatch.undo()
    assert shard_digests(store) == fresh(volume, tmp_path / "new.zarr", shard_tiles=4, z_range="0:6")


def shard_files(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if "/image_embeddings/c/" in name}


def test_a_partial_store_is_not_completed_beyond_what_it_wants(volume, tmp_path):
    quick(volume, store=tmp_path / "s.zarr", z_range="0:4")
    for plane in (0, 5):
        change(volume, plane)
    result = quick(volume, store=tmp_path / "s.zarr", changed="reencode", z_range="0:4")
    assert (result.changed, result.encoded, result.store.committed.sum()) == (1, 1, 4)


def test_what_was_skipped_as_empty_is_looked_at_again(tmp_path):
    pixels = np.random.default_rng(0).integers(1, 255, (4, 64, 64), dtype=np.uint8)
    pixels[1] = pixels[2] = 0
    np.save(tmp_path / "holes.npy", pixels)
    wishes = {"store": tmp_path / "s.zarr", "skip_empty": True}
    assert quick(tmp_path / "holes.npy", **wishes).skipped == 2
    pixels[1, 5, 5] = 9
    pixels[3] = 0
    np.save(tmp_path / "holes.npy", pixels)
    result = quick(tmp_path / "holes.npy", changed="reencode", **wishes)
    assert (result.changed, result.encoded, result.skipped) == (1, 1, 2)
    assert np.flatnonzero(result.store.committed).tolist() == [0, 1]
    new = quick(tmp_path / "holes.npy", store=tmp_path / "new.zarr", skip_empty=True).store
    assert np.array_equal(result.store.committed, new.committed)
    assert all(torch.equal(result.store[number], new[number]) for number in (0, 1))


@pytest.mark.parametrize("step", [1, 3, 7, 9])
def test_an_interrupted_re_encode_is_resumed_by_the_same_command_or_by_a_plain_one(volume, tmp_path, step):
    for name, wishes in (("same.zarr", {"changed": "reencode"}), ("plain.zarr", {})):
        scan(volume)
        store = tmp_path / name
        quick(volume, store=store)
        np.save(volume, np.load(volume)[::-1] // 2)
        asked = iter([None] * step)
        with pytest.raises(Interrupted):
            quick(volume, stop=lambda asked=asked: next(asked, 15), store=store, changed="reencode")
        if step < 7 and not wishes:
            with pytest.raises(MismatchError):  # nothing was changed yet
                quick(volume, store=store)
            wishes = {"changed": "reencode"}
        quick(volume, store=store, **wishes)
        assert quick(volume, store=store, check_pixels=None).reused == 6
        assert shard_digests(store) == fresh(volume, tmp_path / f"new-{name}")


@pytest.mark.fault
@pytest.mark.parametrize("moment", range(1, 12))
def test_a_kill_between_any_two_tiles_of_a_re_encode_is_survived(volume, tmp_path, moment):
    quick(volume, store=tmp_path / "s.zarr")
    np.save(volume, np.load(volume)[::-1] // 2)
    child = os.fork()
    if child == 0:
        moments = iter(range(moment))

        def stop_or_die() -> None:
            if next(moments, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            quick(volume, stop=stop_or_die, store=tmp_path / "s.zarr", changed="reencode")
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    result = quick(volume, store=tmp_path / "s.zarr", changed="reencode")
    assert result.store.status().complete
    assert shard_digests(tmp_path / "s.zarr") == fresh(volume, tmp_path / "new.zarr")


@pytest.mark.parametrize("wishes", [{}, {"num_parts": 1, "part_id": 0}, {"changed": "reencode"}])
def test_a_run_prepared_before_changes_were_taken_over_does_not_go_on(volume, tmp_path, monkeypatch, wishes):
    """Two copies of one volume: this run holds the older one and was compared with the store as it was before."""
    older, store = scan(tmp_path / "copy.npy"), tmp_path / "s.zarr"
    quick(volume, store=store, z_range="0:2")
    name = "_reencode" if "changed" in wishes else "_encode"
    original = getattr(pipeline, name)

    def another_command_first(*given):
        monkeypatch.setattr(pipeline, name, original)
        np.save(volume, np.load(volume)[::-1] // 2)
        assert quick(volume, store=store, z_range="0:2", changed="reencode").changed == 2
        return original(*given)

    monkeypatch.setattr(pipeline, name, another_command_first)
    with pytest.raises(MismatchError, match="while this one was being prepared"):
        quick(older, store=store, **wishes)
    assert quick(volume, store=store).encoded == 4
    assert shard_digests(store) == fresh(volume, tmp_path / "new.zarr")


def test_a_change_that_leaves_the_identity_alone_stops_a_run_prepared_before_it_too(tmp_path, monkeypatch):
    volume, store = scan(tmp_path / "deep.npy", planes=80), tmp_path / "s.zarr"
    older = scan(tmp_path / "copy.npy", planes=80)
    before = quick(volume, store=store, shard_tiles=16, z_range="0:4").store.fingerprint
    original = pipeline._encode

    def another_command_first(*given):
        monkeypatch.setattr(pipeline, "_encode", original)
        change(volume, 2)
        result = quick(volume, store=store, z_range="0:4", changed="reencode")
        assert (result.changed, result.store.fingerprint) == (1, before)
        return original(*given)

    monkeypatch.setattr(pipeline, "_encode", another_command_first)
    with pytest.raises(MismatchError, match="while this one was being prepared"):
        quick(older, store=store, z_range="0:5", check_pixels=0)


def test_a_tile_that_cannot_be_read_is_no_reason_to_drop_its_embedding(tmp_path):
    pixels = np.random.default_rng(0).integers(1, 255, (3, 64, 64), np.uint8)
    zarr.create_array(tmp_path / "scan.zarr", data=pixels, chunks=(1, 64, 64))
    quick(tmp_path / "scan.zarr", store=tmp_path / "s.zarr")
    chunk = next(path for path in sorted((tmp_path / "scan.zarr" / "c" / "1").rglob("*")) if path.is_file())
    chunk.write_bytes(b"torn")
    before = shard_digests(tmp_path / "s.zarr")
    with pytest.raises(VolumeError):
        quick(tmp_path / "scan.zarr", store=tmp_path / "s.zarr", changed="reencode")
    assert shard_digests(tmp_path / "s.zarr") == before


def save_image(path: Path, seed: int, size: tuple[int, int] = (40, 60)) -> None:
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, size, dtype=np.uint8)).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        save_image(folder / f"{number}.png", number)
    return folder


def test_a_changed_image_of_the_same_size_is_encoded_anew_and_named_before(photos, tmp_path):
    quick(photos, cache_dir=tmp_path / "cache")
    save_image(photos / "1.png", 9)
    save_image(photos / "9.png", 10)  # a new one beside it
    with pytest.raises(MismatchError, match=r"1\.png") as refusal:
        quick(photos, cache_dir=tmp_path / "cache")
    assert "--changed reencode" in refusal.value.hint
    result = quick(photos, cache_dir=tmp_path / "cache", changed="reencode")
    assert (result.changed, result.encoded, result.checked_pixels) == (1, 2, 3)
    again = quick(photos, cache_dir=tmp_path / "cache", check_pixels=None)
    assert (again.encoded, again.reused) == (0, 4)
    assert shard_digests(result.store.path) == fresh(photos, tmp_path / "new.zarr")


def test_an_image_saved_anew_with_the_same_pixels_is_taken_over(photos, tmp_path):
    quick(photos, cache_dir=tmp_path / "cache")
    Image.open(photos / "1.png").save(photos / "1.png", compress_level=0)
    result = quick(photos, cache_dir=tmp_path / "cache", changed="reencode")
    assert (result.changed, result.encoded) == (0, 0)
    assert quick(photos, cache_dir=tmp_path / "cache").reused == 3


def test_an_image_of_another_size_is_refused_by_name(photos, tmp_path):
    store = quick(photos, cache_dir=tmp_path / "cache").store
    before = all_bytes(store.path)
    save_image(photos / "2.png", 2, (80, 80))
    with pytest.raises(MismatchError, match=r"2\.png") as refusal:
        quick(photos, cache_dir=tmp_path / "cache", changed="reencode")
    assert "another size" in refusal.value.hint
    assert all_bytes(store.path) == before


def test_parts_do_not_re_encode(volume):
    with pytest.raises(ConfigError, match="one process"):
        quick(volume, changed="reencode", num_parts=2, part_id=0)


def test_the_command_says_what_it_found(volume, tmp_path, capsys):
    quick(volume, store=tmp_path / "s.zarr")
    change(volume, 5)
    words = "encode --model patches --checkpoint random:0 --tile 64 --precision fp32 --device cpu"
    arguments = [*words.split(), "--volume", str(volume), "--store", str(tmp_path / "s.zarr")]
    assert command(arguments) == 3
    assert "plane z=5" in capsys.readouterr().err
    assert command([*arguments, "--changed", "reencode", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["tiles_changed"] == 1
    assert "plane z=5" in shown.err
