"""A list of stores and labels in TOML: paths beside the file, names for --val; nothing misspelt gets through."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from training_stores import blob_labels, make_store

from embedcache.cli.app import register, run
from embedcache.cli.defaults import training_data
from embedcache.errors import ConfigError
from embedcache.train.truth.data_file import read_data_file

register()
THREE = """
[[data]]
store = "a.zarr"
labels = "frag1/inklabels.png"
supervision = "none"
[[data]]
store = "b.zarr"
labels = "frag2/inklabels.png"
name = "f2"
[[data]]
store = "/elsewhere/c.zarr"
labels = "https://example.org/ink.zarr"
validation = "v.png"
boxes = "b.csv"
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_paths_are_relative_to_the_file_and_addresses_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sub").mkdir()
    path = write(tmp_path / "sub/pairs.toml", THREE)
    monkeypatch.chdir(tmp_path)
    one, two, three = read_data_file(Path("sub/pairs.toml"))
    assert (one.store, one.labels) == (f"{path.parent}/a.zarr", f"{path.parent}/frag1/inklabels.png")
    assert (one.supervision, one.name, two.name) == ("none", "", "f2")
    assert (three.store, three.labels) == ("/elsewhere/c.zarr", "https://example.org/ink.zarr")
    assert (three.validation, three.boxes) == (f"{path.parent}/v.png", f"{path.parent}/b.csv")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[[data]]\nstore = "a"\nlabels = "b"\n[[data]]\nstore = "c"\n', "number 2 lacks labels"),
        ('[[data]]\nstore = "a"\nlabel = "b"\n', "number 1 has no key 'label'; did you mean labels"),
        ('[[data]]\nstore = "a"\nlabels = ["b"]\n', "number 1: labels is"),
        ('[[data]]\nstore = "a"\nlabels = ""\n', "number 1: labels is ''"),
        ('[data]\nstore = "a"\nlabels = "b"\n', r"lists no \[\[data\]\]"),
        ("data = [3]\n", "number 1 is no table"),
        ("", r"lists no \[\[data\]\]"),
        ('store = "a"\n', "has no key 'store'"),
        ("[[data]\n", "is no TOML"),
        ('[[data]]\nstore = "a"\nlabels = "b"\nname = "x"\n' * 2, "two stores are called 'x'"),
    ],
)
def test_what_cannot_be_is_refused_with_its_place(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        read_data_file(write(tmp_path / "pairs.toml", text))
    assert "pairs.toml" in caught.value.message


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_data_file(tmp_path / "none.toml")
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe[[data]]")
    with pytest.raises(ConfigError, match="is no TOML"):
        read_data_file(tmp_path / "b.toml")


def lay_fragments(folder: Path, count: int) -> None:
    """Fragments f1, f2, … of one plane with ink and a parchment mask, and their stores."""
    for number in range(1, count + 1):
        ink = blob_labels(1, 64, 64, seed=number)
        make_store(folder / f"s{number}.zarr", ink, tile=32)
        (folder / f"f{number}").mkdir()
        Image.fromarray(ink[0]).save(folder / f"f{number}/inklabels.png")
        Image.fromarray(np.full((64, 64), 255, np.uint8)).save(folder / f"f{number}/mask.png")


def test_masks_beside_the_labels_are_taken_and_said_unless_it_says_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lay_fragments(tmp_path, 2)
    labels = [str(tmp_path / f"f{n}/inklabels.png") for n in (1, 2)]
    stores = [str(tmp_path / f"s{n}.zarr") for n in (1, 2)]
    found = training_data(stores, labels, tmp_path)
    masks = tuple(str(tmp_path / f"f{n}/mask.png") for n in (1, 2))
    assert found.options == {"val": "auto", "supervision": masks, "validation": None, "boxes": None}
    assert f"supervision: {masks[0]}" in capsys.readouterr().err
    off = training_data(stores, labels, tmp_path, files={"supervision": ["none"]})
    assert off.options["supervision"] is None
    given = training_data(stores, labels, tmp_path, files={"supervision": ["m.png"]})
    assert given.options["supervision"] == "m.png", "one for all stores stays one, as runs have recorded it"
    one = training_data(stores, labels, tmp_path, files={"supervision": ["none", "m.png"]})
    assert one.options["supervision"] == (None, "m.png")
    with pytest.raises(ConfigError, match="2 stores, but --supervision was given 3 times"):
        training_data(stores, labels, tmp_path, files={"supervision": ["a", "b", "c"]})


def test_a_validation_mask_that_lies_there_gives_way_to_val(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("s7_inklabels.png", "s7_validation_mask.png"):
        (tmp_path / name).touch()
    pair = ["s.zarr"], [str(tmp_path / "s7_inklabels.png")]
    mask = str(tmp_path / "s7_validation_mask.png")
    assert training_data(*pair, tmp_path).options["validation"] == mask
    assert training_data(*pair, tmp_path, val="0.3").options["validation"] is None
    assert "--val says what is held out" in capsys.readouterr().err
    given = training_data(*pair, tmp_path, val="0.3", files={"validation": [mask]})
    assert given.options["validation"] == mask, "what is given stays, and training refuses both"


def test_bare_train_with_a_data_file_leaves_one_fragment_out_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lay_fragments(tmp_path, 3)
    monkeypatch.chdir(tmp_path)
    pairs = [
        f'[[data]]\nstore = "s{n}.zarr"\nlabels = "f{n}/inklabels.png"\nname = "frag{n}"\n' for n in (1, 2, 3)
    ]
    write(tmp_path / "pairs.toml", "".join(pairs))
    write(tmp_path / "embedcache.toml", '[train]\ndata = "pairs.toml"\nval = "store:frag2"\n')
    words = [
        "--steps",
        "1",
        "--batch-size",
        "1",
        "--device",
        "cpu",
        "--logger",
        "none",
        "--out",
        "r",
        "--json",
    ]
    assert run(["train", *words]) == 0
    out, err = capsys.readouterr()
    summary = json.loads(out)
    assert summary["split"] == "stores"
    assert summary["split_rule"].startswith("store 2 (")
    split = json.loads((tmp_path / "r/split.json").read_text())
    assert {index for index, _ in split["val"]} == {1}
    assert {index for index, _ in split["train"]} == {0, 2}
    assert "data: pairs.toml (3 stores with labels)" in err
    config = json.loads((tmp_path / "r/config.json").read_text())
    assert config["options"]["supervision"] == [str(tmp_path / f"f{n}/mask.png") for n in (1, 2, 3)]
    assert run(["train", "--store", "s1.zarr", "--data", "pairs.toml"]) == 2
    assert "leave --data out" in capsys.readouterr().err


def test_a_name_of_the_file_is_not_taken_for_a_fragment_that_is_called_by_a_number(tmp_path: Path) -> None:
    pairs = [f'[[data]]\nstore = "{n}.zarr"\nlabels = "{n}.png"\nname = "f{n}"\n' for n in (2, 1)]
    data = write(tmp_path / "pairs.toml", "".join(pairs))
    assert training_data((), (), tmp_path, data=str(data), val="store:f2, 1").val == "store:#1,1"


def test_a_name_that_none_has_is_told_before_labels_are_looked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (1, 2):
        make_store(tmp_path / f"s{number}.zarr", blob_labels(1, 32, 32, seed=number), tile=32)
    pairs = [f'[[data]]\nstore = "s{n}.zarr"\nlabels = "gone.png"\nname = "f{n}"\n' for n in (1, 2)]
    data = str(write(tmp_path / "pairs.toml", "".join(pairs)))
    assert run(["train", "--data", data, "--val", "store:nonsense"]) == 2
    said = capsys.readouterr().err
    assert "no store is called 'nonsense'; there are:\n  1. f1 or volume or s1\n  2. f2 or" in said
    assert "Give one of these names, or store:#N." in said
    stores = ["--store", str(tmp_path / "s1.zarr"), "--labels", str(tmp_path / "gone.png")]
    assert run(["train", *stores, "--val", "z=1"]) == 2
    assert "--val names 'z=1', which is no image that is encoded; there are: z=0." in capsys.readouterr().err
