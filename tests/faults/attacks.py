"""What can be done to a store so that it harms whoever opens it: links, pipes, devices, claims of any size."""

from __future__ import annotations

import base64
import errno
import json
import os
import shutil
import socket
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from embedcache.store import EmbeddingStore, EncodeSpec
from embedcache.store.journal.lines import encode_line

Attack = Callable[[Path, Path], None]
"""``(store, outside)``: makes a copied store hostile; ``outside`` is a folder that must not change."""


# ---- links and things that are no files


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


# ---- what metadata claims


def attributes(**changes: Any) -> Attack:
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
        attributes(spec=values, fingerprint=spec.fingerprint, embedding_space=spec.embedding_space)(
            store, outside
        )

    return attack


CLAIMS: dict[str, Attack] = {
    "2^31 − 1 tiles": _records("table", "created.jsonl", tiles=2**31 - 1),
    "2^62 tiles": _records("table", "created.jsonl", tiles=2**62),
    "−1 tiles": _records("table", "created.jsonl", tiles=-1),
    "tiles as text": _records("table", "created.jsonl", tiles="6"),
    "another table of 2^31 − 1 tiles": _append(kind="table", tiles=2**31 - 1, images=[]),
    "2^31 tiles a shard": attributes(shard_tiles=2**31),
    "−2 tiles a shard": attributes(shard_tiles=-2),
    "no tiles a shard": attributes(shard_tiles=0),
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
    "format 999": attributes(format=999),
    "format −1": attributes(format=-1),
    "format as text": attributes(format="1"),
    "no fingerprint": attributes(fingerprint=None),
    "a spec that is a list": attributes(spec=[]),
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
