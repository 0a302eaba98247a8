"""Training's files: killed while they are written, flipped, cut; other embedding spaces; a writer beside it."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from random import Random

import numpy as np
import torch

from embedcache.errors import EmbedcacheError
from embedcache.files import disk as disk_module
from embedcache.sam import Decoder
from embedcache.train import Checkpoint, Run
from embedcache.train.stepping.state import load_state

from . import encoder
from .flips import flipped
from .kills import kill
from .outcome import Outcome, Row, SilentError, detected, survived
from .stage import SIDE, TILES, CountingDisk, Stage, Watch
from .steps import ERRORS, refusal
from .truth import named

FLIPS = 20


def train(labels: Path, store: Path, out: Path, *more: str) -> list[str | Path]:
    """A training of a few steps."""
    words: list[str | Path] = ["train", "--store", store, "--labels", labels, "--out", out]
    return [*words, "--batch-size", "1", "--device", "cpu", "--json", *more]


def _prepare(stage: Stage) -> None:
    """Labels, and a run of one step."""

    def make(folder: Path) -> None:
        labels = np.zeros((TILES, SIDE, SIDE), dtype=np.uint8)
        labels[:, 10:40, 20:50] = 255
        np.save(folder / "labels.npy", labels)
        run = stage.run(*train(folder / "labels.npy", stage.whole, folder / "run", "--steps", "1"))
        assert run.code == 0, run.said[-800:]

    made = stage.once("training", make)
    stage.data |= {"labels": made / "labels.npy", "run": made / "run"}


def _prepare_resumed(stage: Stage) -> None:
    """The same, and how many steps change the disk when it goes on."""
    _prepare(stage)
    watch = Watch()
    out = stage.here / "run"
    shutil.copytree(stage.data["run"], out)
    child = stage.run(*_go_on(stage, out), before=lambda: _count(watch))
    assert child.code == 0, child.said[-800:]
    stage.data["steps"] = watch.steps


def _go_on(stage: Stage, out: Path) -> list[str | Path]:
    return train(stage.data["labels"], stage.whole, out, "--steps", "2", "--resume")


def _count(watch: Watch, last: int = 0) -> None:
    def on_step(_: str) -> None:
        if watch.step() == last:
            os._exit(137)

    disk_module.set_disk(CountingDisk(on_step))


def _prepare_killed(stage: Stage) -> None:
    """An undisturbed run with all that has a state, its steps that change the disk, and how long it takes."""
    _prepare(stage)

    def make(folder: Path) -> None:
        watch = Watch()
        began = time.monotonic()
        child = stage.run(*_everything(stage, folder / "run"), before=lambda: _count(watch))
        assert child.code == 0, child.said[-800:]
        (folder / "facts.json").write_text(json.dumps([watch.steps, time.monotonic() - began]))

    made = stage.once("undisturbed-training", make)
    steps, seconds = json.loads((made / "facts.json").read_text())
    stage.data |= {"steps": steps, "seconds": seconds, "undisturbed": made / "run"}


def _everything(stage: Stage, out: Path) -> list[str | Path]:
    words = "--steps 3 --accumulate 2 --ema 0.5 --adapter --validate-every 2 --save-every 1 --resume --logger none"
    return train(stage.data["labels"], stage.whole, out, *words.split())


def _killed(stage: Stage, case: int, rng: Random) -> Outcome:
    """A run is killed at one of its writes or at any moment: the same command ends with the same bits and rows."""
    out = stage.here / "run"
    words = _everything(stage, out)
    if case % 2:
        kill(stage, words, rng, longest=stage.data["seconds"])
    else:
        step = rng.randrange(1, stage.data["steps"] + 1)
        child = stage.run(*words, before=lambda: _count(Watch(), step))
        assert child.code == 137, f"exit code {child.code}: {child.said[-500:]}"
    for name in ("best", "last"):
        if (out / f"{name}.safetensors").exists():
            Checkpoint.load(out / f"{name}.safetensors")
    again = stage.run(*words)
    assert again.code == 0, f"it cannot go on: {again.said[-800:]}"
    for name in ("best", "last"):
        files = [folder / f"{name}.safetensors" for folder in (out, stage.data["undisturbed"])]
        if files[0].read_bytes() != files[1].read_bytes():
            raise SilentError(f"{name} is not that of the undisturbed run")
    rows = [_untimed(Run(folder)) for folder in (out, stage.data["undisturbed"])]
    assert rows[0] == rows[1], "its rows are not those of the undisturbed run"
    assert not list(out.rglob("*.partial")), "left behind: a partial file"
    return survived()


def _untimed(run: Run) -> list[dict[str, object]]:
    return [
        {name: value for name, value in row.items() if name not in ("seconds", "data_wait")}
        for row in run.metrics
    ]


def _refused(stage: Stage, case: int, rng: Random) -> Outcome:
    """A write of a run that goes on is refused: that is said, the checkpoints are whole, and it goes on again."""
    out = stage.here / "run"
    shutil.copytree(stage.data["run"], out)
    step, code = rng.randrange(1, stage.data["steps"] + 1), rng.choice(ERRORS)
    watch = Watch()
    refuse = refusal(watch, step, code, always=bool(case % 2))
    child = stage.run(*_go_on(stage, out), before=lambda: disk_module.set_disk(CountingDisk(refuse)))
    words = f"{os.strerror(code)} at step {step}"
    assert child.code in (0, 6), f"{words}: exit code {child.code}: {child.said[-800:]}"
    for name in ("best", "last"):
        Checkpoint.load(out / f"{name}.safetensors")
    again = stage.run(*_go_on(stage, out))
    assert again.code == 0, f"{words}: it cannot go on: {again.said[-800:]}"
    assert not list(out.rglob("*.partial")), f"{words}: left behind: a partial file"
    return detected() if child.code else survived()


def _flip_checkpoint(stage: Stage, _: int, rng: Random) -> Outcome:
    """Bits of a trained checkpoint are flipped, or it is cut."""
    total = Outcome()
    path = stage.here / "best.safetensors"
    shutil.copy(stage.data["run"] / "best.safetensors", path)
    expected = Checkpoint.load(path)
    size = path.stat().st_size
    for _ in range(FLIPS):
        offset = rng.choice((rng.randrange(size), rng.randrange(min(size, 60_000))))
        with flipped(path, offset, rng.randrange(8)):
            total.add(_loaded(path, expected, f"byte {offset}"))
    for _ in range(4):
        os.truncate(path, rng.randrange(path.stat().st_size))
        total.add(_loaded(path, expected, "cut"))
    child = stage.run(
        *(
            "predict",
            "--store",
            stage.whole,
            "--checkpoint",
            path,
            "--output",
            stage.here / "o.zarr",
            "--device",
            "cpu",
        )
    )
    assert child.code in (2, 4), f"predict with a cut checkpoint: exit code {child.code}: {child.said[-500:]}"
    return total


def _loaded(path: Path, expected: Checkpoint, words: str) -> Outcome:
    try:
        found = Checkpoint.load(path)
    except EmbedcacheError:
        return detected()
    if found != expected or any(not torch.equal(found.state[n], t) for n, t in expected.state.items()):
        total = Outcome()
        total.problem("silent", f"checkpoint, {words}: another one was loaded")
        return total
    return survived()


def _flip_state(stage: Stage, _: int, rng: Random) -> Outcome:
    """Bits of the file from which a training goes on are flipped, or it is cut."""
    total = Outcome()
    path = stage.here / "resume.safetensors"
    shutil.copy(stage.data["run"] / "resume.safetensors", path)
    size = path.stat().st_size
    expected = _state(path)
    for attempt in range(FLIPS // 2):
        offset = rng.choice((rng.randrange(size), rng.randrange(60_000)))
        if attempt < FLIPS // 2 - 2:
            with flipped(path, offset, rng.randrange(8)):
                total.add(_state_loaded(path, expected, f"byte {offset}"))
        else:
            os.truncate(path, rng.randrange(path.stat().st_size))
            total.add(_state_loaded(path, expected, "cut"))
    return total


def _state_loaded(path: Path, expected: object, words: str) -> Outcome:
    try:
        found = _state(path)
    except EmbedcacheError:
        return detected()
    if found == expected:
        return survived()
    total = Outcome()
    total.problem("silent", f"training state, {words}: another one was loaded")
    return total


def _state(path: Path) -> object:
    """What a training would go on from, as a comparable value."""
    decoder = Decoder.random(0)
    optimizer = torch.optim.AdamW(decoder.parameters())
    standing = load_state(path, decoder, optimizer)
    tensors = list(decoder.state_dict().values())
    for slots in optimizer.state_dict()["state"].values():
        tensors += [slots[name] for name in sorted(slots)]
    return standing, [tensor.numpy().tobytes() for tensor in tensors]


def _other_space(stage: Stage, command: str, _: Random) -> Outcome:
    """A checkpoint trained on embeddings of other weights."""
    store = stage.here / "other.zarr"
    made = stage.run(*stage.encode(store, checkpoint=stage.base / "other.pth"))
    assert made.code == 0, made.said
    checkpoint, out = stage.data["run"] / "best.safetensors", stage.here / "out.zarr"
    words = {
        "predict": ["predict", "--store", store, "--checkpoint", checkpoint, "--output", out],
        "evaluate": [
            "evaluate",
            "--store",
            store,
            "--checkpoint",
            checkpoint,
            "--labels",
            stage.data["labels"],
        ],
        "train": [
            *train(stage.data["labels"], store, stage.here / "run", "--steps", "1"),
            "--init",
            checkpoint,
        ],
        "two stores": [*train(stage.data["labels"], store, stage.here / "run", "--steps", "1")],
    }[command]
    if command == "two stores":
        words += ["--store", stage.whole, "--labels", stage.data["labels"]]
    child = stage.run(*words)
    if child.code == 0:
        raise SilentError(f"{command} took a checkpoint of another embedding space")
    assert child.code == 3, f"{command}: exit code {child.code}: {child.said[-500:]}"
    named(child.said, "space")
    assert not out.exists(), "something was written"
    return detected()


def _beside(stage: Stage, _: int, rng: Random) -> Outcome:
    """Training from a partial store while an encode replaces all of its shards."""
    store = stage.copy(stage.half)
    quiet = stage.copy(stage.half, "quiet.zarr")
    words = ("--steps", "2", "--allow-partial")
    encoding = stage.start(*stage.encode(store), before=lambda: _slow(rng.uniform(0.1, 0.4)))
    beside = stage.run(*train(stage.data["labels"], store, stage.here / "beside", *words))
    assert beside.code == 0, f"exit code {beside.code}: {beside.said[-800:]}"
    assert encoding.wait() == 0, encoding.said
    alone = stage.run(*train(stage.data["labels"], quiet, stage.here / "alone", *words))
    assert alone.code == 0, alone.said[-800:]
    same = Checkpoint.load(stage.here / "beside").state, Checkpoint.load(stage.here / "alone").state
    if any(not torch.equal(same[0][name], tensor) for name, tensor in same[1].items()):
        seen = beside.result.get("tiles"), alone.result.get("tiles")
        assert seen[0] != seen[1], "trained on the same tiles, with another result"
        return survived(n_saw_more_tiles=1)
    return survived()


def _slow(seconds: float) -> None:
    encoder.on_call = lambda images: time.sleep(seconds * images)


ROWS = (
    Row(
        "train-killed",
        "SIGKILL of a training at any moment, or exit at one of its writes",
        "the checkpoints there load; the same command ends with the bits and rows of an undisturbed run",
        _killed,
        trials=20,
        prepare=_prepare_killed,
        weight=200,
    ),
    Row(
        "train-refused",
        "ENOSPC, EIO or EACCES at a write of a training that goes on, once or from then on",
        "exit 6 (or no harm), the checkpoints there load, and `--resume` goes on",
        _refused,
        trials=8,
        prepare=_prepare_resumed,
        weight=50,
    ),
    Row(
        "flip-checkpoint",
        "bits of a checkpoint flipped, or the file cut",
        "refused by its digest",
        _flip_checkpoint,
        trials=10,
        prepare=_prepare,
        weight=15,
    ),
    Row(
        "flip-training-state",
        "bits of the file that `--resume` goes on from flipped, or the file cut",
        "refused by its digest",
        _flip_state,
        trials=5,
        prepare=_prepare,
        weight=15,
    ),
    Row(
        "other-space",
        "a checkpoint or a second store of another embedding space",
        "exit 3 naming both",
        _other_space,
        cases=lambda _: ["predict", "evaluate", "train", "two stores"],
        prepare=_prepare,
        weight=6,
    ),
    Row(
        "train-beside-encode",
        "training from a partial store while an encode replaces its shards",
        "exit 0, nothing called corrupt, the result of training alone",
        _beside,
        trials=2,
        prepare=_prepare,
        weight=25,
    ),
)
