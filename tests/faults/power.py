"""Loss of power, simulated: a disk that records its steps, and what of them would be there after a cut.

Three views of a cut after step k. *Strict*: only what was fsynced, contents and names. *Names*: all names, as on a
file system that writes its folders early, with the fsynced contents only. *Mixed*: of each folder's names since
its last fsync only the first few, of each file's writes since its last fsync only some.
"""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from embedcache.files import disk as disk_module
from embedcache.store.writer import StoreWriter

from .outcome import LostError, Outcome, Row, survived
from .scenarios import COMPACT, CREATE, IMAGES, INT8, REENCODE, WIDEN, Scenario, prepare
from .stage import Stage, known, litter, require_same, stored

VIEWS = ("strict", "names", "mixed")
ACKNOWLEDGED = "acknowledged"


class RecordingDisk(disk_module.Disk):
    """The real disk, which also writes down every step that succeeded."""

    def __init__(self, log: Path) -> None:
        self._stream = log.open("wb")
        self._paths: dict[int, str] = {}

    def note(self, *step: Any) -> None:
        """Write one step down."""
        pickle.dump(step, self._stream)
        self._stream.flush()

    def open_new(self, path: Path) -> int:
        descriptor = super().open_new(path)
        self.note("new", str(path), descriptor)
        return descriptor

    def open_kept(self, path: Path) -> int:
        descriptor = super().open_kept(path)
        self.note("kept", str(path), descriptor)
        return descriptor

    def write(self, descriptor: int, pieces: Sequence[memoryview], offset: int) -> int:
        taken = super().write(descriptor, pieces, offset)
        self.note("write", descriptor, offset, b"".join(pieces)[:taken])
        return taken

    def fsync(self, descriptor: int) -> None:
        super().fsync(descriptor)
        self.note("fsync", descriptor)

    def fsync_folder(self, folder: Path) -> None:
        super().fsync_folder(folder)
        self.note("fsync_folder", str(folder))

    def truncate(self, descriptor: int, size: int) -> None:
        super().truncate(descriptor, size)
        self.note("truncate", descriptor, size)

    def replace(self, source: Path, target: Path) -> None:
        super().replace(source, target)
        self.note("replace", str(source), str(target))

    def link(self, source: Path, target: Path) -> None:
        super().link(source, target)
        self.note("link", str(source), str(target))

    def mkdir(self, folder: Path) -> None:
        there = folder.is_dir()
        super().mkdir(folder)
        if not there:
            self.note("mkdir", str(folder))

    def unlink(self, path: Path) -> None:
        super().unlink(path)
        self.note("unlink", str(path))

    def rmdir(self, folder: Path) -> None:
        super().rmdir(folder)
        self.note("rmdir", str(folder))


@dataclass
class File:
    """A file's content: what is durable, and what came since."""

    durable: bytes = b""
    since: list[tuple[Any, ...]] = field(default_factory=list)

    def content(self, steps: Sequence[tuple[Any, ...]]) -> bytes:
        """The durable content with some of the steps since."""
        data = bytearray(self.durable)
        for kind, *rest in steps:
            if kind == "truncate":
                (size,) = rest
                del data[size:]
                data.extend(bytes(size - len(data)))
            else:
                offset, piece = rest
                data.extend(bytes(max(0, offset - len(data))))
                data[offset : offset + len(piece)] = piece
        return bytes(data)


@dataclass
class Folder:
    """A folder's names: those that are durable, and what was done to them since."""

    durable: dict[str, File | Folder] = field(default_factory=dict)
    since: list[tuple[str, File | Folder | None]] = field(default_factory=list)

    def names(self, steps: Sequence[tuple[str, File | Folder | None]]) -> dict[str, File | Folder]:
        """The durable names with some of the changes since; ``None`` takes a name away."""
        found = dict(self.durable)
        for name, item in steps:
            if item is None:
                found.pop(name, None)
            else:
                found[name] = item
        return found

    @property
    def now(self) -> dict[str, File | Folder]:
        """The names as the running system shows them."""
        return self.names(self.since)


class Model:
    """What the disk would hold: the recorded steps, replayed on a folder that was durable before."""

    def __init__(self, root: Path) -> None:
        self.root_path = root
        self.root = self._scan(root)
        self.open: dict[int, File] = {}
        self.acknowledged: set[int] = set()

    def _scan(self, folder: Path) -> Folder:
        found = Folder()
        for path in sorted(folder.iterdir()):
            found.durable[path.name] = self._scan(path) if path.is_dir() else File(path.read_bytes())
        return found

    def _folder(self, path: Path) -> Folder:
        here = self.root
        for name in path.relative_to(self.root_path).parts:
            below = here.now[name]
            assert isinstance(below, Folder), path
            here = below
        return here

    def _set(self, path: str, item: File | Folder | None) -> None:
        self._folder(Path(path).parent).since.append((Path(path).name, item))

    def _get(self, path: str) -> File | Folder | None:
        return self._folder(Path(path).parent).now.get(Path(path).name)

    def step(self, kind: str, *rest: Any) -> None:
        """Replay one step."""
        if kind == ACKNOWLEDGED:
            self.acknowledged |= set(rest[0])
        elif kind in ("new", "kept"):
            self._open(kind, *rest)
        elif kind == "write":
            descriptor, offset, piece = rest
            self.open[descriptor].since.append(("write", offset, piece))
        elif kind == "truncate":
            descriptor, size = rest
            self.open[descriptor].since.append(("truncate", size))
        elif kind == "fsync":
            file = self.open[rest[0]]
            file.durable, file.since = file.content(file.since), []
        elif kind == "fsync_folder":
            if Path(rest[0]).is_relative_to(self.root_path):
                folder = self._folder(Path(rest[0]))
                folder.durable, folder.since = folder.now, []
        elif kind == "mkdir":
            self._set(rest[0], Folder())
        elif kind in ("replace", "link"):
            source, target = rest
            self._set(target, self._get(source))
            if kind == "replace":
                self._set(source, None)
        elif kind in ("unlink", "rmdir"):
            self._set(rest[0], None)
        else:
            raise AssertionError(f"a step of an unknown kind: {kind}")

    def _open(self, kind: str, path: str, descriptor: int) -> None:
        file = self._get(path)
        if file is None:
            file = File()
            self._set(path, file)
        assert isinstance(file, File), path
        if kind == "new":
            file.since.append(("truncate", 0))
        self.open[descriptor] = file

    def write(self, view: str, rng: Random) -> None:
        """Put what a view of the cut leaves in the place of the folder."""
        shutil.rmtree(self.root_path)
        self._write(self.root, self.root_path, view, rng)

    def _write(self, folder: Folder, path: Path, view: str, rng: Random) -> None:
        path.mkdir()
        some = {"strict": 0, "names": len(folder.since), "mixed": rng.randint(0, len(folder.since))}[view]
        for name, item in folder.names(folder.since[:some]).items():
            if isinstance(item, Folder):
                self._write(item, path / name, view, rng)
                continue
            steps = item.since if view == "mixed" and rng.random() < 0.5 else []
            steps = [step for step in steps if rng.random() < 0.7]
            (path / name).write_bytes(item.content(steps))


def power_row(scenario: Scenario, name: str, weight: float, every: int) -> Row:
    """Power is cut after every ``every``-th step."""

    def prepare_row(stage: Stage) -> None:
        prepare(stage, scenario)
        stage.fresh()
        stage.data["log"] = stage.folder / "steps.pickle"
        store = scenario.begin(stage)
        child = scenario.run(stage, store, lambda: _record(stage.data["log"]))
        assert child.code == 0, child.said[-800:]
        shutil.rmtree(stage.here / "log")

    def cases(stage: Stage) -> Sequence[tuple[int, str]]:
        steps = len(_steps(stage.data["log"]))
        return [(k, VIEWS[(k // every + at) % 3]) for k in range(0, steps + 1, every) for at in range(1)]

    def trial(stage: Stage, case: tuple[int, str], rng: Random) -> Outcome:
        after, view = case
        store = scenario.begin(stage)
        model = Model(stage.here)
        for step in _steps(stage.data["log"])[:after]:
            model.step(*step)
        model.write(view, rng)
        words = f"power cut after step {after} ({view})"
        acknowledged = scenario.kept | model.acknowledged
        if acknowledged:
            _check_reading(store, acknowledged, stage.data["known"], words, superseded=scenario is REENCODE)
        again = scenario.run(stage, store)
        assert again.code == 0, f"{words}: the next run ended with {again.code}: {again.said[-800:]}"
        require_same(store, stage.data["content"], f"{words}, next run")
        assert known(store) == stage.data["known"], (
            f"{words}: the journal does not say what it says undisturbed"
        )
        worked = again.result.get("tiles_encoded", 0) > 0
        assert not litter(store, wrote=worked), f"{words}: left behind: {litter(store, wrote=worked)}"
        return survived(steps=after)

    return Row(
        name,
        f"power cut after every {'' if every == 1 else 'other '}step, what was not fsynced is gone "
        f"in whole or in part: {scenario.name}",
        "acknowledged tiles are there and read right; the same command ends with the bytes of an undisturbed run",
        trial,
        cases=cases,
        prepare=prepare_row,
        weight=weight,
    )


def _check_reading(
    store: Path, acknowledged: set[int], expected: dict[int, tuple[int, str]], words: str, *, superseded: bool
) -> None:
    found = known(store)
    missing = acknowledged - set(found)
    if missing:
        raise LostError(f"{words}: acknowledged tiles {sorted(missing)} are gone")
    stored(store)  # every tile that is recorded as committed has to read right
    for tile in () if superseded else acknowledged:
        assert found[tile] == expected[tile], f"{words}: tile {tile} is another one"


def _record(log: Path) -> None:
    disk = RecordingDisk(log)
    disk_module.set_disk(disk)
    commit = StoreWriter.commit_shard

    def commit_shard(writer: StoreWriter, shard: int, **given: Any) -> Any:
        done = commit(writer, shard, **given)
        disk.note(ACKNOWLEDGED, list(given["embeddings"]))
        return done

    StoreWriter.commit_shard = commit_shard  # type: ignore[method-assign]


_read: dict[str, list[tuple[Any, ...]]] = {}


def _steps(log: Path) -> list[tuple[Any, ...]]:
    """The recorded steps; read once."""
    if str(log) not in _read:
        _read.clear()
        steps = []
        with log.open("rb") as stream:
            while stream.tell() < os.fstat(stream.fileno()).st_size:
                steps.append(pickle.load(stream))
        _read[str(log)] = steps
    return _read[str(log)]


ROWS = (
    power_row(CREATE, "power-encode", 40, 1),
    power_row(WIDEN, "power-widen", 20, 1),
    power_row(COMPACT, "power-compact", 30, 1),
    power_row(REENCODE, "power-reencode", 30, 2),
    power_row(INT8, "power-int8", 20, 1),
    power_row(IMAGES, "power-images", 15, 2),
)
