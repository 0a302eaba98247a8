"""Stores and checkpoints from a stranger: nothing runs, nothing outside is read or written, no claim believed."""

from __future__ import annotations

import base64
import errno
import json
import os
import pickle
import resource
import shutil
import socket
import tarfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from embedcache.store import EmbeddingStore, EncodeSpec
from embedcache.store.journal import encode_line

from .child import Child
from .identity import every_byte
from .outcome import Outcome, Row, SilentError, detected, survived
from .stage import Stage, content, planes, require_same
from .truth import has_command

ADDRESS_SPACE = 2 << 30
"""Bytes that a command may reserve beyond what it starts with."""

MEMORY = 300 << 20
SECONDS = 15.0
REFUSED = {2, 3, 4, 6}

Attack = Callable[[Path, Path], None]
"""``(store, outside)``: makes a copied store hostile; ``outside`` is a folder that must not change."""


# ---- checkpoints


class Touch:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)

    def __reduce__(self) -> tuple[Any, tuple[str, int]]:
        return os.open, (self._path, os.O_CREAT | os.O_WRONLY)


def _plain_pickle(path: Path, payload: Touch) -> None:
    path.write_bytes(pickle.dumps(payload))


def _zip_nested(path: Path, payload: Touch) -> None:
    torch.save({"model_state": {"image_encoder.patch.weight": torch.zeros(2)}, "optimizer": [payload]}, path)


def _zip_in_state(path: Path, payload: Touch) -> None:
    torch.save({"image_encoder.patch.weight": payload}, path)


def _legacy(path: Path, payload: Touch) -> None:
    torch.save({"state_dict": {"a": payload}}, path, _use_new_zipfile_serialization=False)


def _legacy_tar(path: Path, payload: Touch) -> None:
    """torch's format of before 0.1.10, a tar of pickles."""
    folder = path.with_suffix(".parts")
    folder.mkdir()
    for name in ("storages", "tensors", "pickle"):
        (folder / name).write_bytes(pickle.dumps(payload))
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            archive.add(folder / name, name)


CHECKPOINTS: dict[str, Callable[[Path, Touch], None]] = {
    "plain pickle": _plain_pickle,
    "zip, beside tensors": _zip_nested,
    "zip, as a tensor": _zip_in_state,
    "legacy": _legacy,
    "legacy tar": _legacy_tar,
}


def _checkpoint_trial(stage: Stage, case: tuple[str, str, str], _: Random) -> Outcome:
    kind, ending, place = case
    marker = stage.here / "executed"
    file = stage.here / f"weights{ending}"
    CHECKPOINTS[kind](file, Touch(marker))
    if place == "encode":
        words = stage.encode(stage.here / "s.zarr", checkpoint=file)
    elif place == "predict":
        words = ["predict", "--store", stage.whole, "--checkpoint", file, "--output", stage.here / "o.zarr"]
    else:
        labels = stage.here / "labels.npy"
        np.save(labels, planes(0) > 100)
        words = [
            "train",
            "--store",
            stage.whole,
            "--labels",
            labels,
            "--init",
            file,
            "--out",
            stage.here / "run",
        ]
    child = stage.run(*words)
    if marker.exists():
        raise SilentError(f"{kind}{ending} given to {place}: its code was executed")
    assert child.code in REFUSED, (
        f"{kind}{ending} given to {place}: exit code {child.code}: {child.said[-500:]}"
    )
    return detected()


# ---- stores: links and things that are no files


def _link_to(name: str) -> Attack:
    def attack(store: Path, outside: Path) -> None:
        path = store / name
        target = outside / path.name
        shutil.move(path, target)
        path.symlink_to(target)

    return attack


def _pipe(name: str) -> Attack:
    def attack(store: Path, _: Path) -> None:
        (store / name).unlink()
        os.mkfifo(store / name)

    return attack


def _socket(name: str) -> Attack:
    def attack(store: Path, _: Path) -> None:
        (store / name).unlink()
        here = Path.cwd()
        os.chdir((store / name).parent)  # the path of a socket may have 107 letters
        try:
            with socket.socket(socket.AF_UNIX) as made:
                made.bind((store / name).name)
        finally:
            os.chdir(here)

    return attack


def _device(name: str) -> Attack:
    def attack(store: Path, _: Path) -> None:
        (store / name).unlink()
        try:
            os.mknod(store / name, 0o20666, os.makedev(1, 5))  # /dev/zero: as long as one reads
        except PermissionError:
            os.mkfifo(store / name)

    return attack


def _folder(name: str) -> Attack:
    def attack(store: Path, _: Path) -> None:
        (store / name).unlink()
        (store / name).mkdir()

    return attack


def _sparse(name: str, size: int = 1 << 40) -> Attack:
    """A file that claims a terabyte, or as much as the file system lets it."""

    def attack(store: Path, _: Path) -> None:
        for length in (size, size >> 6, 16 << 30):
            try:
                os.truncate(store / name, length)
            except OSError as error:
                if error.errno not in (errno.EFBIG, errno.ENOSPC):
                    raise
            else:
                return

    return attack


FILES = (
    "zarr.json",
    "journal/created.jsonl",
    "journal/main.jsonl",
    "image_embeddings/c/0/0/0/0",
    "tiles/c/0/0",
    "decoder.safetensors",
)
FOLDERS = ("journal", "image_embeddings", "image_embeddings/c", "image_embeddings/c/1", "tiles", "tiles/c")


# ---- stores: what their metadata claims


def _attributes(**changes: Any) -> Attack:
    """Attributes changed in both places that hold them, checksums right."""

    def attack(store: Path, _: Path) -> None:
        path = store / "zarr.json"
        group = json.loads(path.read_text())
        group["attributes"]["embedcache"].update(changes)
        path.write_text(json.dumps(group))

        def change(record: dict[str, Any]) -> dict[str, Any]:
            if record["kind"] == "store":
                record["attributes"].update(changes)
            return record

        rewrite(store / "journal" / "created.jsonl", change)

    return attack


def rewrite(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change records of a journal file, and give each its right checksum again."""
    lines = []
    for line in path.read_text().splitlines():
        record = json.loads(line)
        record.pop("crc32c")
        lines.append(encode_line(change(record)))
    path.write_text("".join(f"{line}\n" for line in lines))


def _records(kind: str, file: str = "main.jsonl", **changes: Any) -> Attack:
    """Members of all records of a kind changed, checksums right."""

    def attack(store: Path, _: Path) -> None:
        def change(record: dict[str, Any]) -> dict[str, Any]:
            if record["kind"] == kind:
                record.update(changes)
            return record

        rewrite(store / "journal" / file, change)

    return attack


def _append(**record: Any) -> Attack:
    """One more record, its checksum right."""

    def attack(store: Path, _: Path) -> None:
        with (store / "journal" / "main.jsonl").open("a") as stream:
            stream.write(encode_line({"seq": 10**6, **record}) + "\n")

    return attack


def _text(name: str, data: bytes) -> Attack:
    def attack(store: Path, _: Path) -> None:
        (store / name).write_bytes(data)

    return attack


def _bomb(count: int) -> dict[str, Any]:
    """Flags that unpack to half a gigabyte."""
    return {"count": count, "bits": base64.b64encode(zlib.compress(bytes(512 << 20), 9)).decode()}


def _header(length: int, text: bytes = b"") -> bytes:
    return length.to_bytes(8, "little") + text


_DEEP = b'{"a":' * 200_000 + b"1" + b"}" * 200_000
_TENSOR = {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}


def _spec(**changes: Any) -> Attack:
    """The recorded volume changed, with the fingerprint and the embedding space that go with it."""

    def attack(store: Path, outside: Path) -> None:
        values = EmbeddingStore.open(store).spec.to_dict()
        values["volume"] |= changes
        spec = EncodeSpec.from_dict(values)
        _attributes(spec=values, fingerprint=spec.fingerprint, embedding_space=spec.embedding_space)(
            store, outside
        )

    return attack


CLAIMS: dict[str, Attack] = {
    "2^31 − 1 tiles": _records("table", "created.jsonl", tiles=2**31 - 1),
    "2^62 tiles": _records("table", "created.jsonl", tiles=2**62),
    "−1 tiles": _records("table", "created.jsonl", tiles=-1),
    "tiles as text": _records("table", "created.jsonl", tiles="6"),
    "another table of 2^31 − 1 tiles": _append(kind="table", tiles=2**31 - 1, images=[]),
    "2^31 tiles a shard": _attributes(shard_tiles=2**31),
    "−2 tiles a shard": _attributes(shard_tiles=-2),
    "no tiles a shard": _attributes(shard_tiles=0),
    "shard −1": _records("shard", shard=-1),
    "shard 2^62": _records("shard", shard=2**62),
    "shard as text": _records("shard", shard="../../x"),
    "a shard of 2^62 bytes": _records("shard", bytes=2**62),
    "a shard of −1 bytes": _records("shard", bytes=-1),
    "more crcs than slots": _records("shard", crcs=base64.b64encode(bytes(4 << 20)).decode()),
    "all slots": _records("shard", slots="//////////8="),
    "slots that are no base64": _records("shard", slots="€€€€"),
    "reasons for slots outside": _records("shard", failed={"x": [10**12]}),
    "numerics that are not there": _records("shard", numerics=10**9),
    "a digest with a path": _records("shard", digest="sha256:../../../etc/passwd"),
    "flags that unpack to half a gigabyte": _append(kind="selection", selection={}, wanted=_bomb(64)),
    "flags of 2^40 tiles": _append(kind="selection", selection={}, wanted=_bomb(2**40)),
    "a sequence of 2^70": _append(kind="numerics", numerics={}, seq=2**70),
    "a sequence of text": _append(kind="numerics", numerics={}, seq="9"),
    "a snapshot outside": _append(kind="snapshot", file="../../../x", crc32c="00000000", bytes=1),
    "an unknown kind of record": _append(kind="hologram"),
    "an image called ../../x": _append(
        kind="table", tiles=64, images=[{"name": "../../x", "height": 1, "width": 1}]
    ),
    "metadata nested 200,000 deep": _text("zarr.json", _DEEP),
    "a journal nested 200,000 deep": _text("journal/main.jsonl", _DEEP + b"\n"),
    "metadata that is a list": _text("zarr.json", b"[1, 2]"),
    "metadata that is no text": _text("zarr.json", bytes(range(256))),
    "a number of a million digits": _text("zarr.json", b'{"attributes": ' + b"9" * 10**6 + b"}"),
    "format 999": _attributes(format=999),
    "format −1": _attributes(format=-1),
    "format as text": _attributes(format="1"),
    "no fingerprint": _attributes(fingerprint=None),
    "a spec that is a list": _attributes(spec=[]),
    "a volume of 2^40 planes": _spec(shape=[2**40, 64, 64]),
    "a volume of −1 planes": _spec(shape=[-1, 64, 64]),
    "a volume whose shape is text": _spec(shape="large"),
    "a decoder header of 2^63 bytes": _text("decoder.safetensors", _header(2**63)),
    "a decoder of 2^40 values": _text(
        "decoder.safetensors",
        _header(
            len(json.dumps({"mask_decoder.a": _TENSOR})), json.dumps({"mask_decoder.a": _TENSOR}).encode()
        ),
    ),
}

ATTACKS: dict[str, Attack] = {
    **{f"{name} is a link": _link_to(name) for name in (*FILES, *FOLDERS)},
    **{f"{name} is a pipe": _pipe(name) for name in FILES},
    **{f"{name} is a socket": _socket(name) for name in FILES[:2]},
    **{f"{name} is a device": _device(name) for name in FILES},
    **{f"{name} is a folder": _folder(name) for name in FILES},
    **{f"{name} claims a terabyte": _sparse(name) for name in FILES},
    **CLAIMS,
}


def _store_trial(stage: Stage, name: str, _: Random) -> Outcome:
    """A hostile store is given to every command that opens one."""
    store, outside = stage.copy(stage.half), stage.here / "outside"
    outside.mkdir()
    (outside / "precious").write_text("as it was")
    ATTACKS[name](store, outside)
    before = {path: (mode, data) for path, (mode, data) in every_byte(outside).items()}
    refusals = 0
    most = slowest = 0.0
    commands: list[list[str | Path]] = [["status", store, "--json"]]
    if has_command("verify"):
        commands.append(["verify", store, "--json"])
    commands.append(stage.encode(store))
    if has_command("repair"):
        volume = ["--volume", stage.volume, "--checkpoint", stage.base / "patches.pth", "--device", "cpu"]
        commands.append(["repair", store, "--json", *volume])
    for words in commands:
        begin = time.monotonic()
        child, memory = _limited(stage, words)
        seconds = time.monotonic() - begin
        most, slowest = max(most, memory), max(slowest, seconds)
        what = f"{name}, given to {words[0]}"
        assert child.code in {0, *REFUSED}, f"{what}: exit code {child.code}: {child.said[-700:]}"
        assert "Traceback" not in child.said, f"{what}: {child.said[-700:]}"
        assert seconds < SECONDS, f"{what}: {seconds:.1f} s"
        assert memory < MEMORY, f"{what}: {memory / 2**20:.0f} MiB more than at its start"
        refusals += child.code != 0
        if every_byte(outside) != before:
            raise SilentError(f"{what}: something outside the store was changed")
        if words[0] == "repair" and child.code == 0:
            break
    if not refusals:
        require_same(store, stage.data["expected"], f"{name}: no command refuses it, and")
        return survived(most_megabytes=most / 2**20)
    return detected(most_megabytes=most / 2**20, most_seconds=slowest)


def _prepare(stage: Stage) -> None:
    stage.data["expected"] = content(stage.whole)


def _limited(stage: Stage, words: list[str | Path]) -> tuple[Child, float]:
    """Run a command that may not reserve much memory; the bytes that it came to hold more than at its start."""
    report = stage.log().with_suffix(".memory")

    def before() -> None:
        pages = [int(value) for value in Path("/proc/self/statm").read_text().split()]
        size = pages[0] * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + ADDRESS_SPACE, size + ADDRESS_SPACE))
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(str(pages[1] * resource.getpagesize()))

    child = stage.start(*words, before=before)
    child.wait()
    start = int(report.read_text())
    return child, max(0.0, child.most_memory - start)


ROWS = (
    Row(
        "hostile-checkpoints",
        "pickles that run code, as checkpoints of encode, predict and train",
        "refused, nothing executed",
        _checkpoint_trial,
        cases=lambda _: [
            (kind, ending, place)
            for kind in CHECKPOINTS
            for ending in (".pth", ".safetensors")
            for place in ("encode", "predict", "train")
        ],
        weight=6,
    ),
    Row(
        "hostile-stores",
        "links, pipes, devices and sparse files in a store; metadata that claims anything, its checksums right",
        f"refused in under {SECONDS:.0f} s and {MEMORY >> 20} MiB, nothing outside read through or written",
        _store_trial,
        prepare=_prepare,
        cases=lambda _: list(ATTACKS),
        weight=70,
    ),
)
