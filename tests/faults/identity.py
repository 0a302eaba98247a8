"""Another model, recipe or volume than a store's: refused with exit 3, field by field, nothing written."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from embedcache.volume import Preprocess

from .outcome import Outcome, Row, SilentError, detected, survived
from .stage import SIDE, TILES, Stage, planes
from .truth import named

MANY = 2000
"""Planes of a volume so long that its identity's 64 places are few among them."""

RECORDED = 24
SAMPLED = 8


def every_byte(folder: Path) -> dict[str, tuple[str, int]]:
    """Digest and time of change of every file below a folder."""
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mtime_ns,
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _newer_preprocessing() -> None:
    """As a version would be in which preprocessing was changed and its revision raised."""
    defaults = Preprocess.__init__.__defaults__
    Preprocess.__init__.__defaults__ = (*defaults[:-1], defaults[-1] + 1)  # type: ignore[attr-defined]
    Preprocess.__post_init__ = lambda _: None  # type: ignore[method-assign]


FIELDS: dict[str, tuple[dict[str, str], str]] = {
    "weights": ({"checkpoint": "other.pth"}, "encoder_digest"),
    "model": ({"model": "ill"}, "model_type"),
    "precision": ({"precision": "bf16"}, "precision"),
    "window": ({"window": "0:200"}, "window"),
    "channels": ({"channels": "adjacent"}, "channels"),
    "tile": ({"tile": "32"}, "tile"),
    "overlap": ({"overlap": "8"}, "overlap"),
    "stored type": ({"store_dtype": "int8"}, "store_dtype"),
    "pixels": ({"volume": "other.npy"}, "pixels"),
    "shape": ({"volume": "longer.npy"}, "shape"),
    "data type": ({"volume": "wide.npy", "window": "0:255"}, "dtype"),
    "preprocessing revision": ({}, "revision"),
}
"""What is changed alone, and the field that the refusal has to name."""


def _prepare_fields(stage: Stage) -> None:
    pixels = np.load(stage.volume)
    np.save(stage.folder / "longer.npy", np.concatenate([pixels, pixels[:1]]))
    np.save(stage.folder / "wide.npy", pixels.astype(np.uint16))


def _field_trial(stage: Stage, case: tuple[str, str], _: Random) -> Outcome:
    name, kind = case
    changes, field = FIELDS[name]
    store = stage.copy(stage.whole if kind == "complete" else stage.half)
    found = {key: _file(stage, value) for key, value in changes.items()}
    before = every_byte(store)
    words = stage.encode(store, **found)
    child = stage.run(*words, before=_newer_preprocessing if not changes else lambda: None)
    if child.code == 0:
        raise SilentError(f"{name} on a {kind} store: exit code 0")
    assert child.code == 3, f"exit code {child.code}: {child.said[-800:]}"
    named(child.said, field)
    assert every_byte(store) == before, "the store was changed"
    return detected()


def _file(stage: Stage, value: str) -> str:
    for folder in (stage.folder, stage.base):
        if (folder / value).exists():
            return str(folder / value)
    return value


def _one_ulp(stage: Stage, case: int, rng: Random) -> Outcome:
    """The checkpoint file is written anew under its name, one weight changed by its smallest step."""
    checkpoint = stage.here / "weights.pth"
    state = torch.load(stage.base / "patches.pth", weights_only=True)
    torch.save(state, checkpoint)
    store = stage.here / "s.zarr"
    first = stage.run(*stage.encode(store, checkpoint=checkpoint, z_range="0:1"))
    assert first.code == 0, first.said
    times = checkpoint.stat()
    name = rng.choice([name for name in state if name.startswith("image_encoder.")])
    flat = state[name].view(-1)
    at = rng.randrange(len(flat))
    flat[at] = torch.nextafter(flat[at], torch.tensor(math.inf))
    torch.save(state, checkpoint)
    os.utime(checkpoint, ns=(times.st_atime_ns, times.st_mtime_ns))
    before = every_byte(store)
    child = stage.run(*stage.encode(store, checkpoint=checkpoint))
    if child.code == 0:
        raise SilentError(f"{name}[{at}] changed by one ulp: exit code 0")
    assert child.code == 3, f"exit code {child.code}: {child.said[-800:]}"
    named(child.said, "encoder_digest")
    assert every_byte(store) == before, "the store was changed"
    return detected()


def _mixed(stage: Stage, _: int, rng: Random) -> Outcome:
    """A stopped encode is resumed with another model and another volume under the same paths."""
    volume, checkpoint = stage.here / "scan.npy", stage.here / "weights.pth"
    _put(stage.volume, volume)
    _put(stage.base / "patches.pth", checkpoint)
    store = stage.here / "s.zarr"
    some = f"0:{rng.randrange(1, TILES)}"
    first = stage.run(*stage.encode(store, volume=volume, checkpoint=checkpoint, z_range=some))
    assert first.code == 0, first.said
    before = every_byte(store)
    if (what := rng.randrange(3)) != 0:
        _put(stage.base / "other.npy", volume)
    if what != 1:
        _put(stage.base / "other.pth", checkpoint)
    child = stage.run(*stage.encode(store, volume=volume, checkpoint=checkpoint))
    if child.code == 0:
        raise SilentError("a store of two models or volumes")
    assert child.code == 3, f"exit code {child.code}: {child.said[-800:]}"
    assert every_byte(store) == before, "the store was changed"
    return detected()


def _put(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes())
    os.utime(target, ns=(10**18, 10**18))


# ---- one voxel


def _prepare_long(stage: Stage) -> None:
    """A store of the first planes of a long volume, so that the volume's identity sees few of them."""
    pixels = np.random.default_rng(5).integers(0, 256, (MANY, 16, 16), dtype=np.uint8)
    np.save(stage.folder / "long.npy", pixels)
    stage.data["store"] = stage.folder / "long.zarr"
    child = stage.run(*_long_words(stage, stage.folder / "long.npy"))
    assert child.code == 0, child.said
    stage.data["before"] = every_byte(stage.data["store"])


def _long_words(stage: Stage, volume: Path, *more: str) -> list[str | Path]:
    words = stage.encode(stage.data["store"], volume=volume, tile="16", z_range=f"0:{RECORDED}")
    return [*words, *more]


def _voxel_trial(check: str) -> Callable[[Stage, Any, Random], Outcome]:
    def trial(stage: Stage, _: int, rng: Random) -> Outcome:
        volume = stage.here / "long.npy"
        source = stage.folder / "long.npy"
        pixels = np.load(source)
        place = (rng.randrange(1, RECORDED), rng.randrange(16), rng.randrange(16))
        pixels[place] ^= 1 << rng.randrange(8)
        np.save(volume, pixels)
        times = source.stat()
        os.utime(volume, ns=(times.st_atime_ns, times.st_mtime_ns))
        child = stage.run(
            *_long_words(stage, volume, "--check-pixels", check, "--seed", str(rng.randrange(2**32)))
        )
        assert every_byte(stage.data["store"]) == stage.data["before"], "the store was changed"
        if child.code == 3:
            named(child.said, f"z={place[0]}\\b|planes? {place[0]}\\b|pixels")
            return detected(n_found=1)
        assert child.code == 0, f"exit code {child.code}: {child.said[-800:]}"
        if check == "all":
            raise SilentError(
                f"voxel {place} changed and was not found although all pixels were to be checked"
            )
        said = (child.result["pixels_checked"], child.result["pixels_recorded"])
        assert said == (SAMPLED, RECORDED), said  # a sample says that it was one
        return survived(n_not_in_the_sample=1)

    return trial


def _changed_again(stage: Stage, _: int, rng: Random) -> Outcome:
    """``--changed reencode``: exactly the changed tiles are encoded; the store is then the new volume's."""
    volume = stage.here / "scan.npy"
    pixels = planes(0)
    np.save(volume, pixels)
    store = stage.here / "s.zarr"
    assert stage.run(*stage.encode(store, volume=volume)).code == 0
    changed = sorted(rng.sample(range(TILES), rng.randrange(1, TILES)))
    for plane in changed:
        pixels[plane, rng.randrange(SIDE), rng.randrange(SIDE)] ^= 3
    np.save(volume, pixels)
    refused = stage.run(*stage.encode(store, volume=volume))
    if refused.code == 0:
        raise SilentError("changed pixels were not found")
    assert refused.code == 3, refused.said
    child = stage.run(*stage.encode(store, volume=volume, changed="reencode"))
    assert child.code == 0, child.said[-800:]
    assert child.result["encoder_calls"] == len(changed), (
        f"{child.result['encoder_calls']} calls for {changed}"
    )
    anew = stage.here / "anew.zarr"
    assert stage.run(*stage.encode(anew, volume=volume)).code == 0
    for path in sorted((anew / "image_embeddings" / "c").rglob("*")):
        if path.is_file() and path.read_bytes() != (store / path.relative_to(anew)).read_bytes():
            raise SilentError(f"{path.relative_to(anew)} is not what a new store of the volume holds")
    assert stage.run(*stage.encode(store, volume=volume, check_pixels="all")).code == 0
    return detected(n_tiles_encoded_again=len(changed))


ROWS: Sequence[Row] = (
    Row(
        "spec-fields",
        "each field that decides an embedding changed alone, on complete and on partial stores",
        "exit 3 naming the field, not a byte written",
        _field_trial,
        cases=lambda _: [(name, kind) for name in FIELDS for kind in ("complete", "partial")],
        prepare=_prepare_fields,
        weight=6,
    ),
    Row(
        "one-ulp",
        "one weight changed by one ulp, in a file of the same name and time",
        "exit 3 naming the encoder's digest, not a byte written",
        _one_ulp,
        trials=12,
        weight=8,
    ),
    Row(
        "mixed-resume",
        "a stopped encode resumed with another model, another volume, or both, at the same paths",
        "exit 3, not a byte written (micro-sam: mixed without a word)",
        _mixed,
        trials=12,
        weight=8,
    ),
    Row(
        "one-voxel",
        "one voxel changed, file time kept; `--check-pixels all`",
        "exit 3 naming the plane",
        _voxel_trial("all"),
        trials=40,
        prepare=_prepare_long,
        weight=10,
    ),
    Row(
        "one-voxel-sampled",
        f"the same, {SAMPLED} of {RECORDED} recorded tiles compared",
        f"found with probability {SAMPLED / RECORDED:.2f} (1 − (1 − f)^n = "
        f"{1 - (1 - 1 / RECORDED) ** SAMPLED:.2f}), and it is said how many were compared",
        _voxel_trial(str(SAMPLED)),
        trials=120,
        prepare=_prepare_long,
        weight=30,
    ),
    Row(
        "changed-reencode",
        "voxels of some planes changed; `--changed reencode`",
        "refused first; then exactly these tiles are encoded, and the bytes are those of a new store",
        _changed_again,
        trials=8,
        weight=12,
    ),
)
