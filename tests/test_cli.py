"""The door: exit codes, JSON on stdout alone, config file, signals, help."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from embedcache.cli.app import SECTIONS, app, register, run
from embedcache.cli.config import first_config
from embedcache.cli.output import readable

register()
ENCODE = ["encode", "--model", "vit_tiny", "--tile", "64", "--precision", "fp32", "--device", "cpu"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with one small volume."""
    np.save(tmp_path / "scan.npy", np.random.default_rng(0).integers(0, 255, (2, 64, 64), dtype=np.uint8))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EMBEDCACHE_DIR", raising=False)
    return tmp_path


def test_json_is_one_object_on_stdout_and_the_rest_on_stderr(folder, capsys):
    assert run([*ENCODE, "--volume", "scan.npy", "--json"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    for key in [
        "store",
        "fingerprint",
        "embedding_space",
        "tiles_total",
        "tiles_selected",
        "tiles_encoded",
        "tiles_reused",
        "tiles_skipped",
        "tiles_failed",
        "seconds",
        "seconds_by_stage",
        "tiles_per_second",
        "bytes_written",
        "device",
        "precision",
    ]:
        assert key in result
    assert result["tiles_encoded"] == 2
    assert "encoding" in err
    assert run([*ENCODE, "--volume", "scan.npy", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["tiles_encoded"], again["encoder_calls"], again["store"]) == (0, 0, result["store"])
    assert run(["status", result["store"], "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert status["complete"] is True
    assert status["tiles_committed"] == 2
    assert run(["status", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["stores"]) == 1


def test_a_second_encode_says_that_nothing_is_to_be_done(folder, capsys):
    run([*ENCODE, "--volume", "scan.npy"])
    capsys.readouterr()
    assert run([*ENCODE, "--volume", "scan.npy"]) == 0
    assert "Nothing to do" in capsys.readouterr().err


def test_options_may_stand_in_the_config_file_and_are_announced(folder, capsys):
    (folder / "embedcache.toml").write_text(
        '[encode]\nvolume = "scan.npy"\nmodel = "vit_tiny"\ntile = 64\nz-range = "0:1"\nprecision = "fp32"\n'
    )
    assert run(["encode", "--json", "--z_range", "1:2"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["tiles_selected"] == 1
    assert "embedcache.toml: encode.volume = 'scan.npy'" in err
    assert "z_range" not in err, "the command line wins, and what it replaces is not announced"


def test_config_names_are_those_of_the_options_and_one_value_may_stand_for_a_list(folder, capsys):
    (folder / "embedcache.toml").write_text(
        '[train]\nstore = "nowhere.zarr"\nlabels = "x.tif"\ntrain = "decoder"\n'
    )
    assert run(["train"]) == 2
    err = capsys.readouterr().err
    assert "embedcache.toml: train.store = ('nowhere.zarr',)" in err
    assert "embedcache.toml: train.train = 'decoder'" in err
    assert "nowhere.zarr does not exist" in err


def test_a_broken_store_or_run_does_not_hide_the_others(folder, capsys):
    for name in ("good", "bad"):
        (folder / "runs" / name).mkdir(parents=True)
        (folder / "runs" / name / "config.json").write_text("{}")
        (folder / "runs" / name / "summary.json").write_text('{"run": "good"}' if name == "good" else "{")
    assert run(["status", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["runs"] == [{"finished": True, "run": "good"}]
    assert "bad" in err


def test_an_interrupted_run_is_listed_with_how_far_it_came(folder, capsys):
    half = folder / "runs" / "half"
    half.mkdir(parents=True)
    (half / "config.json").write_text("{}")
    (half / "metrics.jsonl").write_text('{"step": 20}\n{"step": 40, "los')
    assert run(["status", "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)["runs"]
    assert (listed["finished"], listed["steps"]) == (False, 20)


@pytest.mark.parametrize(
    ("text", "word"),
    [("[encode]\ntiel = 3\n", "tiel"), ("[enkode]\ntile = 3\n", "enkode"), ("tile = = 3", "embedcache.toml")],
)
def test_a_wrong_config_file_is_refused(folder, capsys, text, word):
    (folder / "embedcache.toml").write_text(text)
    assert run(["encode", "--volume", "scan.npy"]) == 2
    assert word in capsys.readouterr().err


def test_init_writes_a_file_that_can_be_read_and_never_touches_one(folder, capsys):
    assert run(["init", "--volume", "scan.npy", "--model", "vit_tiny"]) == 0
    assert run(["encode", "--tile", "64", "--json"]) == 0
    text = (folder / "embedcache.toml").read_text()
    assert run(["init"]) == 2
    assert (folder / "embedcache.toml").read_text() == text == first_config("scan.npy", None, "vit_tiny")


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["encode", "--volume", "nowhere.zarr"], 2, "nowhere.zarr"),
        (["encode"], 2, "--volume"),
        (["encode", "--volume", "scan.npy", "--model", "vit_q"], 2, "vit_q"),
        (
            ["encode", "--volume", "scan.npy", "--model", "vit_tiny", "--check-pixels", "some"],
            2,
            "check-pixels",
        ),
        (["encode", "--volume", "scan.npy", "--like", "s.zarr", "--tile", "64"], 2, "--tile"),
        (["status", "nowhere.zarr"], 2, "nowhere.zarr"),
        (["train"], 2, "no store"),
        (["predict", "--checkpoint", "c", "--output", "o"], 2, "--store or --volume"),
        (["evaluate", "--store", "nowhere.zarr", "--labels", "x.tif"], 2, "nowhere.zarr"),
        (["fly"], 2, "fly"),
    ],
)
def test_wrong_usage_exits_with_2_and_names_the_fault(folder, capsys, arguments, code, word):
    assert run(arguments) == code
    out, err = capsys.readouterr()
    assert word in err
    assert out == ""


def test_several_stores_are_listed_and_none_is_taken(folder, capsys):
    run([*ENCODE, "--volume", "scan.npy", "--z-range", "0:1"])
    run([*ENCODE, "--volume", "scan.npy", "--z-range", "0:1", "--window", "0:99"])
    capsys.readouterr()
    assert run(["train"]) == 2
    assert "2 stores" in capsys.readouterr().err


def test_a_mismatch_exits_with_3_and_shows_the_field(folder, capsys):
    run([*ENCODE, "--volume", "scan.npy", "--store", "s.zarr", "--z-range", "0:1"])
    capsys.readouterr()
    assert run([*ENCODE, "--volume", "scan.npy", "--store", "s.zarr", "--window", "0:99"]) == 3
    assert "window" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(app.commands))
def test_every_command_has_a_sentence_and_an_example(name, capsys):
    assert run([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert "Example: embedcache " + name in text
    first = (app.commands[name].help or "").split("\n\n")[0].strip()
    assert first[0].isupper()
    assert first.endswith(".")


def test_the_commands_page_is_up_to_date(capsys):
    page = (Path(__file__).parents[1] / "docs" / "cli.md").read_text(encoding="utf-8")
    assert set(app.commands) <= {name for names in SECTIONS.values() for name in names}
    for name in app.commands:
        assert f"### embedcache {name}" in page


@pytest.mark.parametrize(
    ("value", "text"), [(True, "yes"), (1234567, "1,234,567"), (0.123456, "0.1235"), (None, "—")]
)
def test_values_are_readable(value, text):
    assert readable(value) == text


def test_an_option_on_the_command_line_takes_its_alternative_from_the_file_away(folder, capsys):
    (folder / "embedcache.toml").write_text(
        '[predict]\nvolume = "scan.npy"\ncheckpoint = "run"\noutput = "o.tif"\n'
    )
    assert run(["predict", "--store", "nowhere.zarr"]) == 2
    err = capsys.readouterr().err
    assert "either --store or --volume" not in err
    assert "predict.volume" not in err


def test_a_full_output_is_a_storage_failure_and_no_bug(folder, capsys, monkeypatch):
    class Full:
        """A disk without space."""

        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

        def flush(self) -> None:
            return

    monkeypatch.setattr("sys.stdout", Full())
    assert run(["status", "--json"]) == 6
    assert "No space left" in capsys.readouterr().err


def test_too_little_memory_is_no_bug_of_ours(folder, capsys):
    claim = {"zarr_format": 2, "shape": [10**14, 512, 512], "chunks": [1, 512, 512], "dtype": "|u1"}
    claim |= {"compressor": None, "fill_value": 0, "order": "C", "filters": None}
    (folder / "v.zarr").mkdir()
    (folder / "v.zarr" / ".zarray").write_text(json.dumps(claim))
    assert run(["info", "v.zarr"]) == 2
    said = capsys.readouterr().err
    assert "too little memory" in said
    assert "--level" in said
    assert "bug" not in said
