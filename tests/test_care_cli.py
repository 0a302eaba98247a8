"""verify, repair, gc and diff as commands: what they print, and with what they exit."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from care_samples import flip, shard
from encode_samples import quick
from other_disks import watched

from embedcache.cli.app import run
from embedcache.encode.care import fidelity
from embedcache.store import EmbeddingStore
from embedcache.store.certificate import Certificate


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("originals")
    np.save(folder / "scan.npy", np.random.default_rng(0).integers(1, 255, (5, 48, 64), np.uint8))
    quick(folder / "scan.npy", store=folder / "float16")
    return folder


@pytest.fixture
def store(originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EmbeddingStore:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr(fidelity, "GRID", 1)  # sixteen prompts a tile take seconds without a GPU
    shutil.copytree(originals / "float16", tmp_path / "embeddings" / "s.zarr")
    return EmbeddingStore.open(tmp_path / "embeddings" / "s.zarr")


def as_json(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any]:
    capsys.readouterr()
    code = run([*map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out)


def in_words(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = run([*map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


# ---- verify


def test_verify_of_a_whole_store(store: EmbeddingStore, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = as_json(capsys, "verify", str(store.path))
    assert code == 0
    assert {name: found[name] for name in ("checked", "ok", "corrupt", "missing")} == {
        "checked": 5,
        "ok": 5,
        "corrupt": 0,
        "missing": 0,
    }
    assert (found["changed"], found["certificate"], found["problems"]) == (None, None, [])
    code, out, _ = in_words(capsys, "verify", store.path)
    assert code == 0
    assert "embeddings checked" in out


def test_verify_names_what_is_damaged_and_the_way_out(
    store: EmbeddingStore, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(shard(store, 0), 5)
    code, found = as_json(capsys, "verify", str(store.path))
    assert (code, found["corrupt"], found["problems"][0]["tiles"]) == (4, 1, [0])
    code, _, err = in_words(capsys, "verify", store.path)
    assert code == 4
    assert "tiles 0" in err
    assert f"embedcache repair {store.path}" in err


def test_verify_of_a_store_that_does_not_open_is_a_result_too(
    store: EmbeddingStore, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(store.path / "journal" / "main.jsonl", 80)
    code, found = as_json(capsys, "verify", str(store.path), "--reencode", "1", "--against", "x")
    assert (code, found["complete"], found["problems"][0]["what"]) == (4, False, "journal")


def test_verify_against_a_changed_volume_exits_with_3(
    store: EmbeddingStore, originals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    volume = tmp_path / "scan.npy"
    shutil.copy(originals / "scan.npy", volume)
    code, found = as_json(capsys, "verify", str(store.path), "--against", str(volume))
    assert (code, found["changed"]["tiles_changed"], found["changed"]["compared"]) == (0, 0, 5)
    pixels = np.load(volume)
    pixels[2] ^= 1
    np.save(volume, pixels)
    code, found = as_json(capsys, "verify", str(store.path), "--against", str(volume))
    assert (code, found["changed"]["tiles"]) == (3, [2])
    code, _, err = in_words(capsys, "verify", store.path, "--against", volume)
    assert code == 3
    assert "z=2" in err
    flip(shard(store, 0), 5)
    assert as_json(capsys, "verify", str(store.path), "--against", str(volume))[0] == 4


def test_the_certificate_is_kept_and_shown_by_status_and_train(
    store: EmbeddingStore, capsys: pytest.CaptureFixture[str]
) -> None:
    code, status = as_json(capsys, "status", str(store.path))
    assert (code, status["certificate"]) == (0, None)
    code, found = as_json(
        capsys, "verify", str(store.path), "--reencode", "1", "--seed", "7", "--device", "cpu"
    )
    assert (code, found["certificate"]["tiles"], found["certificate"]["kept"]) == (0, 1, True)
    _, status = as_json(capsys, "status", str(store.path))
    assert status["certificate"]["seed"] == 7
    for command in ("status", "verify"):
        assert "1 of 1 bit for bit" in " ".join(in_words(capsys, command, store.path)[1].split())
    _, _, err = in_words(capsys, "train", "--store", store.path, "--labels", "nothing.zarr")
    assert "fidelity of s.zarr: float16 against float32 on 1 tiles" in err


def test_a_certificate_of_a_read_only_store_is_shown_and_said_not_to_be_kept(
    store: EmbeddingStore, capsys: pytest.CaptureFixture[str]
) -> None:
    (store.path / "journal" / "writer.lock").unlink(missing_ok=True)
    (store.path / "journal" / "writer.lock").mkdir()  # root may write anywhere, but not there
    code, found = as_json(capsys, "verify", str(store.path), "--reencode", "1", "--device", "cpu")
    assert (code, found["certificate"]["tiles"], found["certificate"]["kept"]) == (0, 1, False)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--against", "nothing.npy"], 2, "Name it with --against"),
        (["--against", "small.npy"], 3, "cannot be the volume"),
        (["--reencode", "0"], 2, "at least 1"),
        (["--reencode", "1", "--checkpoint", "nothing.pth"], 2, "nothing.pth"),
        (["--reencode", "1", "--device", "tpu"], 2, "tpu"),
        (["--reencode", "1", "--against", "nothing.npy"], 2, "nothing.npy"),
        (["--checkpoint", "nothing.pth"], 2, "--reencode"),
    ],
)
def test_what_cannot_be_compared_with_is_refused_before_anything_is_read(
    store: EmbeddingStore, capsys: pytest.CaptureFixture[str], words: list[str], code: int, said: str
) -> None:
    np.save("small.npy", np.zeros((2, 48, 64), np.uint8))
    flip(shard(store, 0), 5)  # which reading the store would find, with another exit code
    found, out, err = in_words(capsys, "verify", store.path, *words)
    assert (found, out) == (code, "")
    assert said in err


def test_what_was_found_is_told_although_the_certificate_cannot_be_made(
    store: EmbeddingStore, originals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.load(originals / "scan.npy") ^ 1
    np.save(tmp_path / "other.npy", pixels)
    words = ("verify", str(store.path), "--reencode", "1", "--against", str(tmp_path / "other.npy"))
    code, found = as_json(capsys, *words, "--device", "cpu")
    assert (code, found["ok"], found["certificate"]) == (3, 5, None)
    flip(shard(store, 0), 5)
    code, found = as_json(capsys, *words, "--device", "cpu")
    assert (code, found["ok"]) == (4, 4)


def test_wanted_tiles_that_no_record_speaks_of_are_told(
    store: EmbeddingStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """A main.jsonl that ends at a line's end looks as if its last tiles had never been encoded."""
    main = store.path / "journal" / "main.jsonl"
    lines = main.read_bytes().splitlines(keepends=True)
    main.write_bytes(b"".join(lines[:-1]))
    code, found = as_json(capsys, "verify", str(store.path))
    assert (code, found["tiles_wanted"], found["tiles_not_encoded"]) == (0, 5, 1)
    code, out, err = in_words(capsys, "verify", store.path)
    assert code == 0
    assert "not encoded yet 1" in " ".join(out.split())
    assert "1 of 5 wanted tiles are not in the store" in err
    assert "unclaimed" in err
    main.write_bytes(b"")
    assert "No selection is recorded" in in_words(capsys, "verify", store.path)[2]


def test_the_printed_seed_is_taken_as_it_stands(
    store: EmbeddingStore, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = in_words(capsys, "verify", store.path)
    seed = next(line.split()[1] for line in out.splitlines() if line.split()[:1] == ["seed"])
    assert in_words(capsys, "verify", store.path, "--seed", seed)[0] == 0


def test_a_certificate_says_when_it_was_measured(
    store: EmbeddingStore, capsys: pytest.CaptureFixture[str]
) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    _, found = as_json(capsys, "verify", str(store.path), "--reencode", "1", "--device", "cpu")
    date = found["certificate"]["date"]
    assert before <= datetime.fromisoformat(date) <= datetime.now(UTC)
    for command in ("status", "verify"):
        assert f"measured {date}" in " ".join(in_words(capsys, command, store.path)[1].split())
    older = {name: value for name, value in found["certificate"].items() if name not in ("date", "kept")}
    assert "measured" not in Certificate.from_dict(older).sentence


@pytest.mark.parametrize("words", [["--subset", "5"], ["--subset", "0%"], ["--max-duration", "5"]])
def test_a_scope_that_is_none_is_refused(
    store: EmbeddingStore, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert in_words(capsys, "verify", store.path, *words)[0] == 2


def test_a_subset_and_a_duration(store: EmbeddingStore, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = as_json(
        capsys,
        "verify",
        str(store.path),
        "--subset",
        "34%",
        "--max-duration",
        "2m",
        "--seed",
        "1",
        "--digests",
    )
    assert (code, found["shards_checked"], found["shards_total"], found["complete"]) == (0, 2, 3, False)


# ---- repair


def test_repair_says_what_it_did(store: EmbeddingStore, capsys: pytest.CaptureFixture[str]) -> None:
    flip(shard(store, 0), 5)
    code, found = as_json(capsys, "repair", str(store.path), "--device", "cpu")
    assert (code, found["checked"], found["broken"], found["repaired"], found["tiles_encoded"]) == (
        0,
        5,
        1,
        1,
        1,
    )
    assert as_json(capsys, "verify", str(store.path))[0] == 0
    code, out, _ = in_words(capsys, "repair", store.path)
    assert code == 0
    assert "nothing else was broken" in out


def test_repair_names_what_it_cannot_mend(
    store: EmbeddingStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(shard(store, 0), 5)
    code, _, err = in_words(capsys, "repair", store.path, "--volume", tmp_path / "nothing.npy")
    assert code == 4
    assert "not mended: tile 0" in err


# ---- gc


def test_gc_shows_and_removes_only_when_told(
    store: EmbeddingStore, capsys: pytest.CaptureFixture[str]
) -> None:
    litter = store.path / "image_embeddings" / "0.4711.partial"
    litter.write_bytes(b"xx")
    code, found = as_json(capsys, "gc")
    assert (code, found["deleted"], found["bytes"], found["found"][0]["path"]) == (0, False, 2, str(litter))
    assert litter.exists()
    code, out, err = in_words(capsys, "gc", store.path)
    assert code == 0
    assert "partial file" in out
    assert "--delete" in err
    code, found = as_json(capsys, "gc", str(store.path), "--delete")
    assert (code, found["deleted"], len(found["found"])) == (0, True, 1)
    assert not litter.exists()


def test_gc_of_unused_stores_needs_runs(
    store: EmbeddingStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert in_words(capsys, "gc", "--stores", "--delete")[0] == 2
    run_folder = tmp_path / "runs" / "one"
    run_folder.mkdir(parents=True)
    (run_folder / "config.json").write_text(json.dumps({"stores": ["/elsewhere"], "fingerprints": []}))
    code, found = as_json(capsys, "gc", "--stores")
    assert (code, [row["what"] for row in found["found"]]) == (0, ["unused store"])
    assert store.path.exists()


def test_gc_leaves_a_damaged_store_alone_and_goes_on_with_the_others(
    store: EmbeddingStore, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(store.path, store.path.with_name("t.zarr"))
    flip(store.path / "journal" / "main.jsonl", 80)
    (store.path.with_name("t.zarr") / "x.1.partial").write_bytes(b"x")
    code, found = as_json(capsys, "gc")
    assert (code, len(found["found"]), len(found["refused"])) == (0, 1, 1)
    assert "left alone" in in_words(capsys, "gc")[2]
    assert in_words(capsys, "gc", store.path)[0] == 4  # named, so it was asked for


def test_gc_that_the_disk_refuses_to_remove_something_says_so_with_its_exit_code(
    store: EmbeddingStore, capsys: pytest.CaptureFixture[str]
) -> None:
    litter = store.path / "image_embeddings" / "0.4711.partial"
    litter.write_bytes(b"xx")

    def refuse(step: str, arguments: tuple[Any, ...]) -> None:
        if step == "unlink" and arguments[0] == litter:
            raise PermissionError(13, "Permission denied")

    with watched(refuse):
        code, _, err = in_words(capsys, "gc", "--delete")
    assert code == 6
    assert str(litter) in err


def test_damaged_copies_that_repair_kept_are_named_and_never_removed(
    store: EmbeddingStore, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(store.path / "journal" / "main.jsonl", 80)
    assert in_words(capsys, "repair", store.path)[0] == 0
    kept = store.path / "journal" / "main.jsonl.damaged"
    _, found = as_json(capsys, "verify", str(store.path))
    assert [line.split(": ")[0] for line in found["unclaimed"]] == [str(kept)]
    code, found = as_json(capsys, "gc", str(store.path), "--delete")
    assert (code, found["found"], found["kept"]) == (0, [], [str(kept)])
    assert str(kept) in in_words(capsys, "gc")[2]
    assert kept.exists()


def test_gc_without_a_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert in_words(capsys, "gc")[0] == 2


# ---- diff


def test_diff_says_fields_and_tiles(
    store: EmbeddingStore, originals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = as_json(capsys, "diff", str(store.path), str(originals / "float16"))
    assert (code, found["same"], found["tiles_equal"]) == (0, True, 5)
    other = quick(originals / "scan.npy", store=tmp_path / "o", z_range="0:2", window="0:100").store
    code, found = as_json(capsys, "diff", str(store.path), str(other.path))
    assert (code, found["tiles_only_a"], found["tiles_different"]) == (3, 3, 2)
    assert found["fields"]["preprocess.window"][1] == [0.0, 100.0]
    code, out, err = in_words(capsys, "diff", store.path, other.path)
    assert code == 3
    assert "preprocess.window" in out
    assert "only in A: tiles 2, 3, 4" in err
