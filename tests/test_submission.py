"""A contest's table: masks of several fragments in, the same masks out; everything else refused with its place."""

from __future__ import annotations

import csv
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from click.testing import CliRunner
from PIL import Image

from embedcache.cli.app import app, register, run
from embedcache.errors import InputError
from embedcache.results.painting import paint_submission, read_size
from embedcache.results.rle import encode_runs
from embedcache.results.submission import read_submission, submit, write_submission


@pytest.fixture
def masks(tmp_path: Path) -> dict[str, np.ndarray]:
    """Two fragments of different sizes, as PNGs; one of them with 1 as its foreground, and an empty one."""
    rng = np.random.default_rng(0)
    found = {"a": rng.random((30, 20)) < 0.3, "b": rng.random((11, 41)) < 0.6, "c": np.zeros((4, 5), bool)}
    for name, mask in found.items():
        Image.fromarray(mask.astype(np.uint8) * (1 if name == "b" else 255)).save(tmp_path / f"{name}.png")
    return found


def test_masks_of_several_fragments_come_back_from_their_table(
    tmp_path: Path, masks: dict[str, np.ndarray]
) -> None:
    table = submit([tmp_path / f"{name}.png" for name in masks], tmp_path / "sub.csv")
    with table.open(newline="") as stream:
        rows = list(csv.reader(stream))
    assert rows == [["Id", "Predicted"], *([name, encode_runs(mask)] for name, mask in masks.items())]
    assert rows[3][1] == ""
    painted = paint_submission(table, tmp_path / "back", {name: mask.shape for name, mask in masks.items()})
    for path, mask in zip(painted, masks.values(), strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(path)), mask * 255)


def test_a_table_that_is_joined_is_not_written_over(tmp_path: Path, masks: dict[str, np.ndarray]) -> None:
    tables = [submit([tmp_path / f"{name}.png"], tmp_path / f"{name}.csv") for name in ("a", "b")]
    before = tables[0].read_bytes()
    with pytest.raises(InputError, match=r"a\.csv is what is"):
        submit(tables, tables[0])
    assert tables[0].read_bytes() == before


def test_a_mask_of_0_and_1_is_not_taken_for_an_empty_one_below_a_threshold(
    tmp_path: Path, masks: dict[str, np.ndarray]
) -> None:
    with pytest.raises(InputError, match="holds 0 and 1, a mask"):
        submit([tmp_path / "b.png"], tmp_path / "sub.csv", threshold=0.5)
    assert not (tmp_path / "sub.csv").exists()
    np.save(tmp_path / "n.npy", masks["b"])  # booleans go up to 1
    lines = read_submission(submit([tmp_path / "n.npy"], tmp_path / "sub.csv", threshold=0.5))
    assert lines == {"n": encode_runs(masks["b"])}


def test_any_form_of_a_mask_gives_the_same_line(tmp_path: Path, masks: dict[str, np.ndarray]) -> None:
    mask = masks["a"]
    tifffile.imwrite(tmp_path / "t.tif", mask.astype(np.uint16) * 65535)
    zarr.create_array(str(tmp_path / "z.zarr"), data=mask[None].astype(np.uint8) * 255, chunks=(1, 8, 8))
    np.save(tmp_path / "n.npy", mask)
    np.save(tmp_path / "p.npy", np.where(mask, 0.7, np.nan).astype(np.float32))
    Image.fromarray(np.where(mask, 150, 90).astype(np.uint8)).save(tmp_path / "grey.png")
    files = [tmp_path / name for name in ("a.png", "t.tif", "z.zarr", "n.npy")]
    lines = read_submission(submit(files, tmp_path / "masks.csv"))
    lines |= read_submission(
        submit([tmp_path / "p.npy", tmp_path / "grey.png"], tmp_path / "p.csv", threshold=0.5)
    )
    assert set(lines) == {"a", "t", "z", "n", "p", "grey"}
    assert set(lines.values()) == {encode_runs(mask)}


def test_tables_and_folders_of_predict_are_joined_as_they_are(
    tmp_path: Path, masks: dict[str, np.ndarray]
) -> None:
    first = write_submission(tmp_path / "first.csv", {"f1": masks["a"], "f2": masks["b"]})
    paint_submission(first, tmp_path / "pictures", {"f1": (30, 20), "f2": (11, 41)})
    both = read_submission(submit([first, tmp_path / "a.png"], tmp_path / "both.csv"))
    assert list(both) == ["f1", "f2", "a"]
    assert read_submission(submit([tmp_path / "pictures"], tmp_path / "p.csv")) == read_submission(first)
    renamed = write_submission(tmp_path / "one.csv", {"z=0": masks["a"]})
    assert list(read_submission(submit({"frag1": renamed}, tmp_path / "named.csv"))) == ["frag1"]


def test_a_fragments_folder_names_its_mask(tmp_path: Path, masks: dict[str, np.ndarray]) -> None:
    (tmp_path / "frag7").mkdir()
    Image.fromarray(masks["a"]).save(tmp_path / "frag7" / "mask.png")
    table = submit([tmp_path / "frag7" / "mask.png"], tmp_path / "sub.csv")
    assert list(read_submission(table)) == ["frag7"]


@pytest.mark.parametrize("name", ["a,b", 'say "a"', "plain", "é", " a "])
def test_a_name_of_any_signs_comes_back(tmp_path: Path, name: str) -> None:
    table = write_submission(tmp_path / "s.csv", {name: np.eye(3, dtype=bool), "b": np.eye(2, dtype=bool)})
    assert read_submission(table) == {name: "1 1 5 1 9 1", "b": "1 1 4 1"}


def test_cells_of_any_length_are_read(tmp_path: Path) -> None:
    mask = np.zeros((600, 1000), bool)
    mask[:, ::2] = True
    table = write_submission(tmp_path / "long.csv", {"a": mask})
    limit = csv.field_size_limit()
    assert len(read_submission(table)["a"]) > limit
    assert csv.field_size_limit() == limit
    painted = paint_submission(table, tmp_path / "back", {None: mask.shape})
    np.testing.assert_array_equal(np.asarray(Image.open(painted[0])) > 0, mask)


def test_a_large_mask_is_read_by_blocks_of_rows(tmp_path: Path) -> None:
    side = 8192
    array = zarr.create_array(
        str(tmp_path / "large.zarr"), shape=(1, side, side), chunks=(1, 512, side), dtype="uint8"
    )
    array[0, 4000:4100, 10:20] = 255
    submit([tmp_path / "large.zarr"], tmp_path / "warm.csv")
    tracemalloc.start()
    table = submit([tmp_path / "large.zarr"], tmp_path / "sub.csv")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(read_submission(table)["large"].split()) == 200
    assert peak < side * side / 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "expected is Id,Predicted"),
        (b"id,predicted\na,1 1\n", "expected is Id,Predicted"),
        (b"Id,Predicted,Usage\na,1 1,x\n", "expected is Id,Predicted"),
        (b"Id,Predicted\na,1 1\na,2 2\n", "line 3: Id a is there twice"),
        (b"Id,Predicted\na\n", "line 2: 1 cells"),
        (b"Id,Predicted\n ,1 1\n", "line 2: the Id is empty"),
        (b'Id,Predicted\na,"1 1\n', "is no csv"),
        (b"Id,Predicted\n\xff\xfe,1 1\n", "is no csv"),
    ],
)
def test_what_is_no_such_table_is_refused_with_its_place(tmp_path: Path, text: bytes, words: str) -> None:
    (tmp_path / "sub.csv").write_bytes(text)
    with pytest.raises(InputError, match=words):
        read_submission(tmp_path / "sub.csv")


def test_a_byte_order_mark_and_the_line_ends_of_other_systems_are_no_fault(tmp_path: Path) -> None:
    (tmp_path / "sub.csv").write_bytes(b"\xef\xbb\xbfId,Predicted\r\na,1 1\r\n")
    assert read_submission(tmp_path / "sub.csv") == {"a": "1 1"}


def test_what_is_no_single_mask_is_refused(tmp_path: Path, masks: dict[str, np.ndarray]) -> None:
    np.save(tmp_path / "stack.npy", np.zeros((3, 4, 5), np.uint8))
    np.save(tmp_path / "prob.npy", np.zeros((4, 5), np.float32))
    Image.fromarray(np.arange(20, dtype=np.uint8).reshape(4, 5)).save(tmp_path / "grey.png")
    Image.new("RGB", (4, 5)).save(tmp_path / "colour.png")
    for name, words in {
        "stack.npy": "3 planes",
        "prob.npy": "holds probabilities",
        "grey.png": r"grey values \(1, 2",
        "colour.png": "colour picture",
        "missing.png": "does not exist",
    }.items():
        with pytest.raises(InputError, match=words):
            submit([tmp_path / name], tmp_path / "sub.csv")
    with pytest.raises(InputError, match="another mask is called a"):
        submit([tmp_path / "a.png", tmp_path / "a.png"], tmp_path / "sub.csv")
    with pytest.raises(InputError, match="bool"):
        write_submission(tmp_path / "sub.csv", {"a": np.zeros((4, 5), np.uint8)})
    with pytest.raises(InputError, match="at least one"):
        submit([], tmp_path / "sub.csv")
    with pytest.raises(InputError, match=r"is a \.csv"):
        submit([tmp_path / "a.png"], tmp_path / "sub.txt")
    assert not list(tmp_path.glob("sub.*"))


def test_runs_that_do_not_fit_and_names_that_are_no_files_are_refused(tmp_path: Path) -> None:
    table = tmp_path / "sub.csv"
    table.write_text("Id,Predicted\na,1 2 900 200\n")
    with pytest.raises(InputError, match=r"Id a: run 2 \(start 900, length 200\) ends beyond 30 × 30 pixels"):
        paint_submission(table, tmp_path / "back", {None: (30, 30)})
    with pytest.raises(InputError, match="size of its plane") as refused:
        paint_submission(table, tmp_path / "back", {})
    assert "--size a=HEIGHTxWIDTH" in str(refused.value.hint)
    with pytest.raises(InputError, match="holds no Id b"):
        paint_submission(table, tmp_path / "back", {"b": (30, 30)})
    table.write_text("Id,Predicted\n../a,1 2\n")
    with pytest.raises(InputError, match="cannot be the name of a file"):
        paint_submission(table, tmp_path / "back", {None: (30, 30)})
    assert list(tmp_path.iterdir()) == [table]


@pytest.mark.parametrize("text", ["30", "30x", "axb", "-3x4", "0x4", "9999999x9999999", "3x4x5", "٣x4"])
def test_sizes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="--size"):
        read_size(text)


def test_the_command_joins_masks_and_paints_them_again(
    tmp_path: Path, masks: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    register()
    shell = CliRunner()
    done = shell.invoke(app, ["submit", "a.png", "--id", "second=b.png", "--output", "s.csv", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["ids"] == ["a", "second"]
    back = ["submit", "--back", "s.csv", "--output", "back"]
    done = shell.invoke(app, [*back, "--like", "a.png", "--size", "second=11x41"])
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [str(tmp_path / "back" / f"{name}.png") for name in ("a", "second")]
    np.testing.assert_array_equal(np.asarray(Image.open("back/second.png")) > 0, masks["b"])
    assert run([*back, "--size", "9x9"]) == 2
    assert run([*back, "a.png", "--size", "9x9"]) == 2
    assert run(["submit", "a.png", "--output", "s.csv", "--size", "9x9"]) == 2
    assert run(["submit", "--id", "a.png", "--output", "s.csv"]) == 2
