"""What a step-by-step fault is injected into: a command, the store it starts from, and what it has to end with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from embedcache.files import disk as disk_module
from embedcache.store.journal import compaction

from .child import Before, Child
from .outcome import LostError
from .stage import SIDE, SMALL, SMALL_HALF, CountingDisk, Stage, Watch, content, known, litter, require_same

Words = list[str | Path]


def nothing() -> None:
    """No tweak."""


@dataclass(frozen=True)
class Scenario:
    """One command.

    Parameters
    ----------
    name : str
        In words.
    begin : callable
        ``(stage) -> store``: what is there before.
    words : callable
        ``(stage, store) -> command line``.
    prepare : callable
        ``(stage) -> None``: makes what ``begin`` needs, once a row.
    kept : frozenset of int
        Tiles that are committed before and have to stay.
    tweak : callable
        Run in every process of the scenario first.
    """

    name: str
    begin: Callable[[Stage], Path]
    words: Callable[[Stage, Path], Words]
    prepare: Callable[[Stage], None] = lambda stage: None
    kept: frozenset[int] = frozenset()
    tweak: Before = nothing

    def run(self, stage: Stage, store: Path, before: Before = nothing) -> Child:
        """Run the command to its end."""

        def both() -> None:
            self.tweak()
            before()

        return stage.run(*self.words(stage, store), before=both)


def _encode_small(stage: Stage, store: Path) -> Words:
    return stage.encode(store, volume=stage.small_volume)


def _compact_at_once() -> None:
    compaction.COMPACT_BYTES = 0


def _prepare_changed(stage: Stage) -> None:
    """A store whose volume has changed since, in its second and third plane."""
    volume = stage.folder / "changing.npy"
    pixels = np.load(stage.small_volume)
    np.save(volume, pixels)
    child = stage.run(*stage.encode(stage.folder / "before.zarr", volume=volume))
    assert child.code == 0, child.said
    pixels[1:, SIDE // 2] ^= 1
    np.save(volume, pixels)


def _begin_broken(stage: Stage) -> Path:
    """A store with a flipped bit, a missing shard, and without its tile table and decoder."""
    store = stage.copy(stage.base / SMALL)
    first, second = sorted(path for path in (store / "image_embeddings" / "c").rglob("*") if path.is_file())
    data = bytearray(first.read_bytes())
    data[12345] ^= 4
    first.write_bytes(data)
    second.unlink()
    (store / "tiles" / "c" / "0" / "0").unlink()
    (store / "decoder.safetensors").unlink()
    return store


CREATE = Scenario("create and encode", lambda stage: stage.here / "s.zarr", _encode_small)
WIDEN = Scenario(
    "replace a shard",
    lambda stage: stage.copy(stage.base / SMALL_HALF),
    _encode_small,
    kept=frozenset({0}),
)
COMPACT = Scenario(
    "compact the journal, replace a shard, compact again",
    lambda stage: stage.copy(stage.base / SMALL_HALF),
    _encode_small,
    kept=frozenset({0}),
    tweak=_compact_at_once,
)
REENCODE = Scenario(
    "encode changed pixels again",
    lambda stage: stage.copy(stage.folder / "before.zarr"),
    lambda stage, store: stage.encode(store, volume=stage.folder / "changing.npy", changed="reencode"),
    prepare=_prepare_changed,
    kept=frozenset({0}),
)
REPAIR = Scenario(
    "repair a broken store",
    _begin_broken,
    lambda stage, store: [
        *(
            "repair",
            store,
            "--json",
            "--volume",
            stage.small_volume,
            "--checkpoint",
            stage.base / "patches.pth",
        ),
        *("--device", "cpu"),
    ],
)
INT8 = Scenario(
    "replace a shard of int8 embeddings and their scales",
    lambda stage: stage.copy(stage.folder / "before.zarr"),
    lambda stage, store: stage.encode(store, volume=stage.small_volume, store_dtype="int8"),
    prepare=lambda stage: _prepare_int8(stage),
    kept=frozenset({0}),
)


VIEWS = Scenario(
    "give a store views and encode them",
    lambda stage: stage.copy(stage.base / SMALL_HALF),
    lambda stage, store: stage.encode(store, volume=stage.small_volume, views="flips"),
    kept=frozenset({0}),
)
VIEWS_OF_IMAGES = Scenario(
    "add images to a collection that has views",
    lambda stage: stage.copy(stage.folder / "before.zarr"),
    lambda stage, store: stage.encode(store, volume=stage.folder / "photos", views="flips"),
    prepare=lambda stage: _prepare_images(stage, views="flips"),
    kept=frozenset({0}),
)
IMAGES = Scenario(
    "add images to a collection",
    lambda stage: stage.copy(stage.folder / "before.zarr"),
    lambda stage, store: stage.encode(store, volume=stage.folder / "photos"),
    prepare=lambda stage: _prepare_images(stage),
    kept=frozenset({0}),
)


def _prepare_images(stage: Stage, **changes: str) -> None:
    """A store of a folder with one image, to which two of other sizes come."""
    folder = stage.folder / "photos"
    folder.mkdir(exist_ok=True)
    for number, (name, side) in enumerate((("b", 64), ("a", 100), ("c", 64))):
        pixels = np.random.default_rng(number).integers(0, 256, (side, SIDE), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
        if number == 0:
            child = stage.run(*stage.encode(stage.folder / "before.zarr", volume=folder, **changes))
            assert child.code == 0, child.said


def _prepare_int8(stage: Stage) -> None:
    words = stage.encode(
        stage.folder / "before.zarr", volume=stage.small_volume, store_dtype="int8", z_range="0:1"
    )
    child = stage.run(*words)
    assert child.code == 0, child.said


def prepare(stage: Stage, scenario: Scenario) -> list[str]:
    """Run the scenario undisturbed, keep what it ends with; the names of all steps of it, in order."""
    scenario.prepare(stage)
    stage.fresh()
    names = stage.here / "steps"
    names.touch()

    def before() -> None:
        stream = names.open("a", buffering=1)
        disk_module.set_disk(CountingDisk(lambda name: print(name, file=stream)))

    store = scenario.begin(stage)
    child = scenario.run(stage, store, before)
    assert child.code == 0, f"undisturbed, it ends with {child.code}: {child.said[-800:]}"
    stage.data["content"], stage.data["known"] = content(store), known(store)
    return names.read_text().split()


def check_afterwards(stage: Stage, scenario: Scenario, store: Path, watch: Watch, words: str) -> None:
    """What was acknowledged is there, and the same command ends as if nothing had happened."""
    acknowledged = scenario.kept | watch.acknowledged
    if acknowledged and scenario is not REPAIR:
        missing = acknowledged - set(known(store))
        if missing:
            raise LostError(f"{words}: acknowledged tiles {sorted(missing)} are gone")
    again = scenario.run(stage, store)
    assert again.code == 0, f"{words}: the next run ended with {again.code}: {again.said[-800:]}"
    require_same(store, stage.data["content"], f"{words}, next run")
    assert known(store) == stage.data["known"], f"{words}: the journal does not say what it says undisturbed"
    worked = again.result.get("tiles_encoded", 0) > 0
    assert not litter(store, wrote=worked), f"{words}: left behind: {litter(store)}"
