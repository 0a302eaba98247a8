"""What loggers promise: the figures of ``metrics.jsonl``, at every service, and none of its failures is ours."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from embedcache.errors import ConfigError
from embedcache.train.loggers import log_row, open_loggers, parse_loggers

ROWS: list[dict[str, Any]] = [
    {"step": 10, "split": "train", "epoch": 0.5, "lr": 1e-4, "loss": 0.75, "dice": 0.5},
    {"step": 20, "split": "val", "prompt_source": "free", "weights": "raw", "dice": 0.25, "iou": 0.125},
    {"step": 20, "split": "val", "prompt_source": "free", "weights": "ema", "dice": 0.5, "iou": 0.375},
    {"step": 20, "split": "val", "prompt_source": "oracle", "weights": "raw", "dice": 0.625, "iou": 0.5},
]
SCALARS = {
    ("train/epoch", 10, 0.5),
    ("train/lr", 10, 1e-4),
    ("train/loss", 10, 0.75),
    ("train/dice", 10, 0.5),
    ("val/free/dice", 20, 0.25),
    ("val/free/iou", 20, 0.125),
    ("val/free/ema/dice", 20, 0.5),
    ("val/free/ema/iou", 20, 0.375),
    ("val/oracle/dice", 20, 0.625),
    ("val/oracle/iou", 20, 0.5),
}
PIXELS = np.zeros((4, 6, 3), np.uint8)

WANDB = """
import json, os
from pathlib import Path

class Image:
    def __init__(self, pixels):
        self.shape = pixels.shape

class Run:
    def __init__(self, wishes):
        self.id = wishes["id"] or "w1"
        self.place = Path(wishes["dir"]) / "service.jsonl"
        self.write({"init": {**wishes, "config": sorted(wishes["config"])}})
    def write(self, row):
        with self.place.open("a") as stream:
            stream.write(json.dumps(row, default=lambda image: list(image.shape)) + "\\n")
    def define_metric(self, name, step_metric):
        assert (name, step_metric) == ("*", "step")
    def log(self, values):
        if os.environ.get("WANDB_BROKEN"):
            raise ConnectionError("the server went away")
        self.write(values)
    def finish(self):
        self.write({"finished": True})

def init(**wishes):
    if os.environ.get("WANDB_API_KEY") == "wrong":
        raise ValueError("no such key")
    return Run(wishes)
"""

MLFLOW = """
import json, os
from pathlib import Path
from types import SimpleNamespace

def write(row):
    with Path(os.environ["MLFLOW_TRACKING_URI"]).open("a") as stream:
        stream.write(json.dumps(row) + "\\n")

class Metric:
    def __init__(self, key, value, timestamp, step):
        self.row = [key, step, value]

entities = SimpleNamespace(Metric=Metric)

class MlflowClient:
    def get_experiment_by_name(self, name):
        return None
    def create_experiment(self, name):
        write({"experiment": name})
        return "7"
    def create_run(self, experiment, run_name):
        write({"run": run_name})
        return SimpleNamespace(info=SimpleNamespace(run_id="m1"))
    def log_param(self, run, key, value):
        write({"param": key})
    def log_batch(self, run, metrics):
        write({"of": run, "metrics": [metric.row for metric in metrics]})
    def log_image(self, run, image, artifact_file):
        write({"image": artifact_file, "shape": list(image.shape)})
    def set_terminated(self, run):
        write({"finished": run})
"""


@pytest.fixture
def services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Stand-ins for the services' packages, which write down what they are told; and a run's folder."""
    packages, folder = tmp_path / "packages", tmp_path / "run"
    folder.mkdir()
    packages.mkdir()
    (packages / "wandb.py").write_text(WANDB)
    (packages / "mlflow.py").write_text(MLFLOW)
    monkeypatch.syspath_prepend(str(packages))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tmp_path / "mlflow.jsonl"))
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    for name in ("wandb", "mlflow"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield folder
    for name in ("wandb", "mlflow"):
        sys.modules.pop(name, None)


def log_all(names: str, folder: Path, **wishes: Any) -> list[str]:
    said: list[str] = []
    logger = open_loggers(names, folder, settings={"lr": 1e-4, "loss": "sam"}, say=said.append, **wishes)
    for row in ROWS:
        log_row(logger, row)
    logger.picture(20, "tile-3", PIXELS)
    logger.close()
    return said


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_tensorboard_shows_every_number_of_the_rows(tmp_path: Path) -> None:
    assert log_all("tensorboard", tmp_path) == []
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    found = {
        (tag, event.step, event.value) for tag in events.Tags()["scalars"] for event in events.Scalars(tag)
    }
    assert found == {(tag, step, float(np.float32(value))) for tag, step, value in SCALARS}
    (picture,) = events.Images("tile-3")
    assert (picture.step, picture.width, picture.height) == (20, 6, 4)


def test_a_resumed_training_takes_back_what_was_logged_beyond_its_state(tmp_path: Path) -> None:
    log_all("tensorboard", tmp_path)
    logger = open_loggers("tensorboard", tmp_path, settings={}, step=10, say=print)
    log_row(logger, {"step": 20, "split": "val", "prompt_source": "free", "dice": 0.75})
    logger.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("val/free/dice")] == [(20, 0.75)]
    assert [event.step for event in events.Scalars("train/loss")] == [10]


def test_wandb_gets_the_same_scalars_and_a_resumed_run_goes_on_there(services: Path) -> None:
    assert log_all("wandb", services) == []
    first, *rows, picture, last = lines_of(services / "service.jsonl")
    assert first["init"]["project"] == "embedcache"
    assert first["init"]["name"] == "run"
    assert first["init"]["config"] == ["loss", "lr"]
    found = {(n, row["step"], v) for row in rows for n, v in row.items() if n != "step"}
    assert found == SCALARS
    assert (picture, last) == ({"tile-3": [4, 6, 3], "step": 20}, {"finished": True})
    log_all("wandb", services, step=10)
    again = [row["init"] for row in lines_of(services / "service.jsonl") if "init" in row][1]
    assert (again["id"], again["resume"]) == ("w1", "allow")


def test_mlflow_gets_the_same_scalars_and_a_resumed_run_goes_on_there(services: Path) -> None:
    log_all("mlflow", services)
    log_all("mlflow", services, step=10)
    rows = lines_of(services.parent / "mlflow.jsonl")
    assert [row["run"] for row in rows if "run" in row] == ["run"]
    assert sorted(row["param"] for row in rows if "param" in row) == ["loss", "lr"]
    metrics = [row for row in rows if "metrics" in row]
    assert {row["of"] for row in metrics} == {"m1"}
    assert {tuple(metric) for row in metrics for metric in row["metrics"]} == SCALARS
    assert {"image": "pictures/step-000020-tile-3.png", "shape": [4, 6, 3]} in rows


def test_a_service_that_goes_away_costs_its_curves_and_no_others(
    services: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_BROKEN", "1")
    said = log_all("wandb,tensorboard", services)
    assert said == ["wandb failed and is left out from here: ConnectionError: the server went away"]
    assert "val/free/dice" in EventAccumulator(str(services / "tensorboard")).Reload().Tags()["scalars"]


def test_a_service_that_cannot_be_started_is_a_wrong_option(
    services: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "wrong")
    with pytest.raises(ConfigError, match="wandb could not be started: ValueError: no such key"):
        open_loggers("wandb", services, settings={}, say=print)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_package_that_is_not_installed_is_refused_by_name(name: str) -> None:
    if importlib.util.find_spec(name) is not None:
        pytest.skip(f"{name} is installed")
    with pytest.raises(ConfigError, match=f"needs the package {name}") as caught:
        parse_loggers(f"tensorboard,{name}")
    assert caught.value.hint == f"pip install 'embedcache[{name}]'"


@pytest.mark.parametrize("text", ["tensorbord", "", "none,tensorboard", "tensorboard,,"])
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--logger"):
        parse_loggers(text)


def test_names_come_once_and_none_is_silent(tmp_path: Path) -> None:
    assert parse_loggers("tensorboard, tensorboard") == ("tensorboard",)
    assert log_all("none", tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_mlflow_itself_takes_what_we_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "kept").as_uri())
    assert log_all("mlflow", tmp_path) == []
    run = json.loads((tmp_path / "loggers.json").read_text())["mlflow"]
    assert mlflow.MlflowClient().get_metric_history(run, "val/free/dice")[0].value == 0.25


def test_wandb_itself_takes_what_we_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert log_all("wandb", tmp_path) == []
    assert "wandb" in json.loads((tmp_path / "loggers.json").read_text())
