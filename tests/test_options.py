"""Options of a training: what cannot be is refused before anything is opened, and a record is plain JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from embedcache.errors import ConfigError, MismatchError
from embedcache.train.options import TrainOptions
from embedcache.train.record import check_resumable
from embedcache.train.run import write_json


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"schedule": "square"}, "--schedule"),
        ({"warmup": -1}, "--warmup is -1"),
        ({"weight_decay": -0.1}, "--weight-decay is -0.1"),
        ({"weight_decay": float("nan")}, "--weight-decay"),
        ({"clip": 0.0}, "--clip is 0.0"),
        ({"rounds": 0}, "--rounds is 0"),
        ({"start": ("a", "b"), "steps": 0}, "--steps is 0"),
        ({"logger": "pigeon"}, "--logger is 'pigeon'"),
        ({"accumulate": 0}, "--accumulate is 0"),
        ({"amp": "fp16"}, "--amp"),
        ({"ema": 1.0}, "--ema is 1.0"),
        ({"save_every": 0}, "--save-every is 0"),
        ({"views": "d4"}, "--views"),
        ({"resident": "tape"}, "--resident"),
        ({"check_reads": "seldom"}, "--check-reads"),
        ({"read_threads": 0}, "--read-threads is 0"),
        ({"overfit": 0}, "--overfit is 0"),
    ],
)
def test_what_cannot_be_is_refused(wish: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainOptions(**wish)


def test_the_record_is_json_with_paths_that_mean_the_same_in_every_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = TrainOptions(supervision=(Path("a.png"), None), boxes="https://host/b.csv", init=Path("b.pth"))
    found = json.loads(json.dumps(options.to_dict()))
    assert found["supervision"] == [str(tmp_path / "a.png"), None]
    assert (found["boxes"], found["init"], found["start"]) == ("https://host/b.csv", "b.pth", None)


def test_a_run_that_began_before_an_option_was_known_goes_on_with_its_default(tmp_path: Path) -> None:
    options = TrainOptions().to_dict() | {"batch_size": 4}
    config = {"options": options, "fingerprints": [], "labels": []}
    older = {name: value for name, value in options.items() if name != "schedule"}
    write_json(tmp_path / "config.json", config | {"options": older})
    assert check_resumable(tmp_path, config, {}, None)["options"]["batch_size"] == 4
    with pytest.raises(MismatchError, match="schedule"):
        check_resumable(tmp_path, config | {"options": options | {"schedule": "linear"}}, {}, None)


def test_a_run_does_not_go_on_with_views_that_were_encoded_since_it_began(tmp_path: Path) -> None:
    config = {"options": TrainOptions().to_dict() | {"batch_size": 4}, "fingerprints": [], "labels": []}
    write_json(tmp_path / "config.json", config | {"views": [{"views": [0]}]})
    assert check_resumable(tmp_path, config | {"views": [{"views": [0]}]}, {}, None)["views"] == [
        {"views": [0]}
    ]
    more = {"views": [0, 4], "tiles": 8, "digest": "12ab" * 16}
    with pytest.raises(MismatchError) as told:
        check_resumable(tmp_path, config | {"views": [more]}, {}, None)
    assert "views 0, 4 in 8 tiles" in str(told.value.differences)


def test_masks_for_another_number_of_stores_are_refused() -> None:
    options = TrainOptions(supervision=("a.png", "b.png"))
    assert options.supervision_of(1, 2) == "b.png"
    with pytest.raises(ConfigError, match="1 store, but supervision masks were given for 2"):
        options.supervision_of(0, 1)
