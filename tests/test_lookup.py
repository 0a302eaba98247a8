"""Without --store the store is found by what it holds; another identity is never passed over in silence."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from encode_samples import QUICK, Listener, all_bytes, change, quick, scan
from PIL import Image

from embedcache.cli.app import run as command
from embedcache.encode import run_encode
from embedcache.encode.identity.refusals import command_line
from embedcache.encode.identity.words import Request, asked_words, same_source
from embedcache.encode.options import options_from
from embedcache.encode.survey import survey
from embedcache.errors import ConfigError, CorruptionError, MismatchError
from embedcache.progress import Silent
from embedcache.sam import random_weights, weights
from embedcache.volume import volume_identity


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    return scan(tmp_path / "scan.npy")


def stores(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir())


def test_a_renamed_store_is_found_and_reused(volume, cache):
    first = quick(volume, cache_dir=cache)
    first.store.path.rename(cache / "renamed.zarr")
    again = quick(volume, cache_dir=cache)
    assert again.store.path == cache / "renamed.zarr"
    assert (again.encoded, again.reused) == (0, 6)
    assert stores(cache) == ["renamed.zarr"]


def test_a_named_store_of_another_recipe_is_refused_before_weights_are_looked_for(
    volume, tmp_path, monkeypatch
):
    """Without --model it is vit_b that is asked for, whose weights may have to be downloaded."""
    quick(volume, store=tmp_path / "s.zarr")

    def download(*_: object, **__: object) -> Path:
        raise AssertionError("weights were looked for")

    monkeypatch.setattr(weights, "find_or_download", download)
    with pytest.raises(MismatchError, match="model_type"):
        run_encode(
            options_from(volume, {"store": tmp_path / "s.zarr", "tile": 64, "device": "cpu"}), Silent()
        )


def test_that_a_store_keeps_its_tiles_a_shard_is_said(volume, tmp_path):
    quick(volume, store=tmp_path / "s.zarr", z_range="0:2")
    for shard_tiles, said in ((2, False), (64, False), (3, True)):
        listener = Listener()
        result = quick(volume, listener, store=tmp_path / "s.zarr", shard_tiles=shard_tiles)
        assert result.store.shard_tiles == 2
        assert any("--shard-tiles 3 is for a new store" in line for line in listener.lines) is said


def test_a_moved_volume_finds_its_store(volume, cache, tmp_path):
    first = quick(volume, cache_dir=cache)
    volume.rename(tmp_path / "elsewhere.npy")
    again = quick(tmp_path / "elsewhere.npy", cache_dir=cache)
    assert (again.store.path, again.encoded) == (first.store.path, 0)


@pytest.mark.parametrize("spelling", ["..", "link to the file", "link to the folder"])
def test_a_changed_volume_is_recognised_however_its_path_is_spelled(volume, cache, tmp_path, spelling):
    quick(volume, cache_dir=cache)
    change(volume, plane=2)
    (tmp_path / "sub").mkdir()
    (tmp_path / "link.npy").symlink_to(volume)
    (tmp_path / "link").symlink_to(tmp_path)
    path = {
        "..": tmp_path / "sub" / ".." / "scan.npy",
        "link to the file": tmp_path / "link.npy",
        "link to the folder": tmp_path / "link" / "scan.npy",
    }[spelling]
    with pytest.raises(MismatchError, match="from the same source"):
        quick(path, cache_dir=cache)
    assert len(stores(cache)) == 1


@pytest.mark.parametrize("named", ["sub/../photos", "link"])
def test_a_folder_of_images_keeps_its_store_however_its_path_is_spelled(tmp_path, cache, named):
    for folder in ("photos", "sub"):
        (tmp_path / folder).mkdir()
    Image.fromarray(np.full((40, 60), 99, np.uint8)).save(tmp_path / "photos" / "a.png")
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    assert quick(tmp_path / "photos", cache_dir=cache).encoded == 1
    assert quick(tmp_path / named, cache_dir=cache).encoded == 0
    assert len(stores(cache)) == 1


def test_two_names_of_one_source(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "a.h5").touch()
    (tmp_path / "b.h5").symlink_to(tmp_path / "a.h5")
    (tmp_path / "c.h5").touch()
    assert same_source(f"{tmp_path}/a.h5:grey", f"{tmp_path}/x/../b.h5:grey")
    assert not same_source(f"{tmp_path}/a.h5:grey", f"{tmp_path}/b.h5:mask")
    assert not same_source(f"{tmp_path}/a.h5", f"{tmp_path}/c.h5")
    assert same_source("https://host/a/../b", "https://host/a/../b")
    assert not same_source("https://host/b", "https://host/a/../b")
    assert not same_source(None, str(tmp_path))


def test_another_recipe_makes_another_store(volume, cache):
    quick(volume, cache_dir=cache)
    for wishes in ({"window": "0:200"}, {"tile": 32}, {"checkpoint": "random:7"}, {"store_dtype": "int8"}):
        assert quick(volume, cache_dir=cache, z_range="0:1", **wishes).encoded
    assert len(stores(cache)) == 5


def test_one_changed_voxel_stops_even_with_the_old_mtime_and_names_the_plane(volume, cache):
    store = quick(volume, cache_dir=cache).store.path
    before, times = all_bytes(cache), volume.stat()
    change(volume, plane=4)
    os.utime(volume, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert volume.stat().st_mtime_ns == times.st_mtime_ns
    with pytest.raises(MismatchError) as refusal:
        quick(volume, cache_dir=cache)
    assert refusal.value.exit_code == 3
    assert list(refusal.value.differences) == ["volume.pixels"]
    assert "1 of 6 compared tiles changed (plane z=4)" in str(refusal.value)
    assert str(store) in str(refusal.value)
    assert all_bytes(cache) == before


def test_both_commands_of_the_refusal_do_what_they_say(volume, cache, capsys):
    quick(volume, cache_dir=cache)
    change(volume, plane=2)
    with pytest.raises(MismatchError) as refusal:
        quick(volume, cache_dir=cache)
    reencode, other = [line.split() for line in refusal.value.hint.splitlines() if line.startswith("  ")]
    assert "--changed" in reencode
    assert "--changed" not in other
    assert command([*other[1:], "--json"]) == 0
    assert command([*reencode[1:], "--json"]) == 0
    assert '"tiles_changed": 1' in capsys.readouterr().out
    assert len(stores(cache)) == 2


def test_a_part_is_told_to_re_encode_as_a_whole(volume, cache):
    quick(volume, cache_dir=cache)
    change(volume, plane=2)
    with pytest.raises(MismatchError) as refusal:
        quick(volume, cache_dir=cache, num_parts=2, part_id=1)
    reencode, other = [line for line in refusal.value.hint.splitlines() if line.startswith("  ")]
    assert "--num-parts" not in reencode
    assert "--num-parts 2 --part-id 1" in other


def test_of_several_earlier_states_of_a_volume_none_is_re_encoded_by_chance(volume, cache):
    first = quick(volume, cache_dir=cache).store.path
    change(volume, plane=2)
    quick(volume, store=cache / "second.zarr")
    assert quick(volume, cache_dir=cache).store.path == cache / "second.zarr"
    change(volume, plane=3)
    with pytest.raises(ConfigError, match=r"second\.zarr"):
        quick(volume, cache_dir=cache, changed="reencode")
    assert quick(volume, store=first, changed="reencode").changed == 2


def test_weights_that_changed_by_one_ulp_under_the_same_name_stop(volume, cache, tmp_path):
    state = random_weights("patches", 0).state
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    times = path.stat()
    quick(volume, cache_dir=cache, checkpoint=path)
    values = state["image_encoder.mix.weight"].reshape(-1)
    values[17] = torch.nextafter(values[17], torch.tensor(9.0))
    torch.save(state, path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(MismatchError) as refusal:
        quick(volume, cache_dir=cache, checkpoint=path)
    assert list(refusal.value.differences) == ["encoder_digest"]
    assert "--like" in refusal.value.hint
    assert "--changed" not in refusal.value.hint
    assert len(stores(cache)) == 1


def test_a_machine_of_another_precision_does_not_begin_anew_in_silence(volume, cache, monkeypatch):
    monkeypatch.setattr("embedcache.sam.device._has_bf16", lambda device: False)
    quick(volume, cache_dir=cache, precision="auto")
    monkeypatch.setattr("embedcache.sam.device._has_bf16", lambda device: True)
    with pytest.raises(MismatchError) as refusal:
        quick(volume, cache_dir=cache, precision="auto")
    assert refusal.value.differences == {"precision": ("fp32", "bf16")}
    assert quick(volume, cache_dir=cache, precision="fp32").reused == 6
    assert quick(volume, cache_dir=cache, precision="bf16", z_range="0:1").encoded == 1  # asked for expressly


def test_a_window_sampled_from_changed_pixels_stops(cache, tmp_path):
    volume = scan(tmp_path / "wide.npy", dtype="uint16", high=60000)
    quick(volume, cache_dir=cache)
    np.save(volume, np.load(volume) // 2)
    with pytest.raises(MismatchError) as refusal:
        quick(volume, cache_dir=cache)
    assert "volume.pixels" in refusal.value.differences
    assert len(stores(cache)) == 1


def test_stores_that_cannot_be_read_are_named_and_passed_over(volume, cache):
    quick(volume, cache_dir=cache)
    for name in ("a-broken.zarr", "b-foreign.zarr", "c-headless.zarr", "d-newer.zarr"):
        shutil.copytree(next(cache.glob("scan*.zarr")), cache / name)
    (cache / "a-broken.zarr" / "zarr.json").write_bytes(b"{")
    (cache / "b-foreign.zarr" / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    (cache / "c-headless.zarr" / "zarr.json").unlink()
    newer = (cache / "d-newer.zarr" / "zarr.json").read_text().replace('"format": 1', '"format": 99')
    (cache / "d-newer.zarr" / "zarr.json").write_text(newer)
    (cache / "a file").write_text("no store")
    (cache / "z-loop.zarr").symlink_to(cache / "z-loop.zarr")
    listener = Listener()
    assert quick(volume, listener, cache_dir=cache).reused == 6
    said = "\n".join(listener.lines)
    assert all(name in said for name in ("a-broken", "c-headless", "d-newer"))
    assert not any(name in said for name in ("b-foreign", "a file", "z-loop"))


def test_the_own_store_that_is_damaged_is_no_reason_to_begin_anew(volume, cache):
    store = quick(volume, cache_dir=cache).store.path
    (store / "journal" / "created.jsonl").write_bytes(b"{}\n{}\n")
    with pytest.raises(CorruptionError):
        quick(volume, cache_dir=cache)
    assert stores(cache) == [store.name]


def test_of_several_stores_of_one_identity_the_usual_name_is_taken_and_it_is_said(volume, cache):
    store = quick(volume, cache_dir=cache).store.path
    shutil.copytree(store, cache / "a-copy.zarr")
    listener = Listener()
    assert quick(volume, listener, cache_dir=cache).store.path == store
    assert "a-copy.zarr" in listener.lines[0]


def test_two_folders_of_images_keep_stores_of_their_own(tmp_path, cache):
    for name in ("left", "right"):
        (tmp_path / name / "photos").mkdir(parents=True)
        Image.fromarray(np.full((40, 60), 99, np.uint8)).save(tmp_path / name / "photos" / "a.png")
        assert quick(tmp_path / name / "photos", cache_dir=cache).encoded == 1
    assert len(stores(cache)) == 2


def test_like_finds_the_store_of_the_same_volume(tmp_path, cache):
    volume = scan(tmp_path / "wide.npy", dtype="uint16", high=60000)
    store = quick(volume, cache_dir=cache).store
    wishes = {"cache_dir": str(cache), "device": "cpu"}
    assert options_from(volume, wishes, store).window != "p1:p99"
    again = quick(volume, cache_dir=cache, window=store.provenance["recipe"]["window"])
    assert (again.store.path, again.encoded) == (store.path, 0)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_store_that_does_not_say_how_it_was_asked_for_is_known_by_its_recipe(tmp_path, dtype):
    volume = scan(tmp_path / "scan.npy", dtype=dtype, high=250)
    store = quick(volume, store=tmp_path / "s.zarr").store
    older = {name: value for name, value in store.provenance.items() if name != "asked"}
    change(volume, plane=1, row=0)
    options = options_from(volume, QUICK)
    seen = survey(options, Silent())
    words = asked_words(options, seen.volume, seen.preprocess)
    now = replace(store.spec, volume=volume_identity(seen.volume, seen.grid, seen.preprocess))
    request = Request(now, words, seen.volume, "random:0")
    assert request.is_alike(store.spec, older)
    assert request.expected(store.spec, older) == now != store.spec
    for other in ({"source": "/elsewhere"}, {"recipe": older["recipe"] | {"level": 1}}, {"recipe": None}):
        assert not request.is_alike(store.spec, older | other)


FIELDS = {
    "model": {"model": "ill"},
    "checkpoint": {"checkpoint": "random:1"},
    "precision": {"precision": "bf16"},
    "channels": {"channels": "adjacent:1"},
    "window": {"window": "0:200"},
    "tile": {"tile": 32},
    "overlap": {"overlap": 8},
    "store dtype": {"store_dtype": "int8"},
    "volume": {},
}


@pytest.mark.parametrize("selection", [None, "0:1"], ids=["complete", "partial"])
@pytest.mark.parametrize("field", FIELDS)
def test_each_field_of_the_spec_changed_alone_stops_before_anything_is_written(tmp_path, field, selection):
    volume, store = scan(tmp_path / "scan.npy", planes=3), tmp_path / "s.zarr"
    quick(volume, store=store, z_range=selection)
    before = all_bytes(store)
    if field == "volume":
        change(volume, plane=1)
    with pytest.raises(MismatchError) as refusal:
        quick(volume, store=store, **FIELDS[field])
    assert refusal.value.differences
    if field != "volume":  # re-encoding in place is for changed pixels only
        with pytest.raises(MismatchError):
            quick(volume, store=store, changed="reencode", **FIELDS[field])
    assert all_bytes(store) == before


def test_a_shape_that_changed_is_not_re_encoded_in_place(volume, tmp_path):
    quick(volume, store=tmp_path / "s.zarr")
    scan(volume, planes=7)
    with pytest.raises(MismatchError) as refusal:
        quick(volume, store=tmp_path / "s.zarr", changed="reencode")
    assert "volume.shape" in refusal.value.differences


def test_a_command_to_copy_says_what_was_asked_and_leaves_defaults_out():
    options = options_from("my scan.npy", QUICK | {"tile": "full", "check_pixels": None, "skip_empty": True})
    assert command_line(options, store="new.zarr") == (
        "embedcache encode --volume 'my scan.npy' --store new.zarr --model patches --checkpoint random:0 "
        "--tile full --skip-empty --precision fp32 --device cpu --shard-tiles 2 --check-pixels all"
    )
    assert "--model" not in command_line(options, like="S")
    assert (
        command_line(options_from("v", {"skip_empty": False}))
        == "embedcache encode --volume v --no-skip-empty"
    )
