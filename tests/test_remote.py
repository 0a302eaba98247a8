"""Stores that are somewhere else: only recorded bytes are accepted, however the connection behaves, and kept."""

from __future__ import annotations

import pickle
import shutil
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from store_samples import commit, embedding, make_store, spec

from embedcache.errors import CorruptionError, EmbedcacheError, InputError, MismatchError, StorageError
from embedcache.geometry import EMBEDDING_VALUES
from embedcache.remote import sources
from embedcache.store import EmbeddingReader, EmbeddingStore
from embedcache.store.journal.lines import encode_line
from embedcache.store.layout import scales_path, shard_path
from embedcache.store.reading import remote
from embedcache.store.reading.checks import CHECKS
from embedcache.store.reading.remote import RemoteStore, is_remote, open_remote

CHUNK = EMBEDDING_VALUES * 2 + 4


@pytest.fixture(autouse=True)
def mirrors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Mirrors are made in the test's own folder, and nobody waits long."""
    monkeypatch.setattr(remote, "CACHE", tmp_path / "mirrors")
    monkeypatch.setattr(sources, "PAUSES", (0.01, 0.01))
    return tmp_path / "mirrors"


@pytest.fixture
def local(tmp_path: Path) -> EmbeddingStore:
    made = make_store(tmp_path / "there")
    commit(made, 0, 1)
    commit(made, 2)
    return made


def in_memory(store: EmbeddingStore, name: str) -> str:
    """The store's files in fsspec's memory."""
    system = fsspec.filesystem("memory")
    if system.exists(f"/{name}"):
        system.rm(f"/{name}", recursive=True)
    for path in store.path.rglob("*"):
        if path.is_file():
            system.pipe_file(f"/{name}/{path.relative_to(store.path).as_posix()}", path.read_bytes())
    return f"memory://{name}"


class Server:
    """A web server of a folder that knows ranges, and misbehaves by a schedule."""

    def __init__(self, folder: Path, *, ranges: bool = True) -> None:
        self.asked: list[str] = []
        self.users: set[str | None] = set()
        self.ends = threading.Event()
        self.faults: list[str] = []
        """What happens to the next requests for shards: drop, stall, short, wrong, busy, fine."""
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.path)
                server.users.add(self.headers.get("Authorization"))
                path = folder / self.path.lstrip("/")
                if not path.is_file():
                    return self.send_error(404)
                fault = server.faults.pop(0) if server.faults and "/c/" in self.path else "fine"
                data = path.read_bytes()
                asked = self.headers.get("Range")
                if asked and ranges:
                    first, last = asked.removeprefix("bytes=").split("-")
                    data = data[int(first) : int(last) + 1]
                if fault == "drop":
                    return self.connection.close()
                if fault == "stall":
                    server.ends.wait(60)
                    return self.connection.close()
                if fault == "wrong":
                    data = bytes([data[0] ^ 1]) + data[1:]
                self.send_response(503 if fault == "busy" else 206 if asked and ranges else 200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[:-100] if fault == "short" else data)
                return None

            def log_message(self, *_: Any) -> None:
                """Nothing is logged."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def of_shards(self) -> int:
        """Requests for embeddings so far."""
        return sum("image_embeddings/c/" in path for path in self.asked)


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(folder: Path, **options: Any) -> Server:
        servers.append(Server(folder, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.ends.set()
        server.http.shutdown()
        server.http.server_close()


@pytest.mark.parametrize("form", ["float16", "int8"])
def test_a_store_in_an_object_store_reads_like_the_one_that_was_put_there(tmp_path: Path, form: str) -> None:
    local = make_store(tmp_path / "there", spec=spec(store_dtype=form))
    commit(local, 0, 1)
    commit(local, 2)
    store = EmbeddingStore.open(in_memory(local, f"objects-{form}"))
    assert isinstance(store, RemoteStore)
    assert store.fingerprint == local.fingerprint
    assert np.array_equal(store.committed, local.committed)
    assert np.array_equal(store.table, local.table)
    for check in ("always", "once", "never"):
        reader = EmbeddingReader(store, check=check, threads=2)  # type: ignore[arg-type]
        assert torch.equal(reader.read([2, 0, 1, 0]), local.reader().read([2, 0, 1, 0]))
    assert store.decoder_state().keys() == local.decoder_state().keys()
    again = pickle.loads(pickle.dumps(store))
    assert torch.equal(again[1], local[1])


def test_the_second_epoch_fetches_nothing(local: EmbeddingStore, serve: Callable[..., Server]) -> None:
    server = serve(local.path)
    store = EmbeddingStore.open(server.url)
    assert server.of_shards() == 0
    first = store.reader().read([0, 1, 2])
    fetched = server.of_shards()
    assert fetched == 5  # three embeddings and two indexes
    assert torch.equal(store.reader().read([2, 1, 0]), first.flip(0))
    assert torch.equal(EmbeddingStore.open(server.url).reader().read([0, 1, 2]), first)
    assert server.of_shards() == fetched


@pytest.mark.parametrize("fault", ["drop", "stall", "short", "wrong", "busy"])
def test_a_connection_that_fails_twice_is_asked_again_and_nothing_wrong_is_accepted(
    local: EmbeddingStore, serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    if fault == "stall":
        monkeypatch.setattr(sources, "TIMEOUT_SECONDS", (30.0, 1.0))
    server = serve(local.path)
    store = EmbeddingStore.open(server.url)
    server.faults = [fault, fault, "fine", fault, "fine"]
    if fault != "stall":  # each costs its time limit
        server.faults += [fault, fault, "fine"]
    found = store.reader().read_half([0, 1])
    for row, tile in zip(found, (0, 1), strict=True):
        assert np.array_equal(row.numpy(), embedding(tile))
    assert server.faults == []


@pytest.mark.parametrize(
    ("fault", "error"), [("drop", StorageError), ("short", StorageError), ("wrong", CorruptionError)]
)
def test_one_that_goes_on_failing_is_an_error_that_names_it(
    local: EmbeddingStore, serve: Callable[..., Server], fault: str, error: type[Exception]
) -> None:
    server = serve(local.path)
    store = EmbeddingStore.open(server.url)
    store[1]
    server.faults = [fault] * 20
    with pytest.raises(error, match=r"image_embeddings/c/0"):
        store[0]
    server.faults = []
    assert np.array_equal(store[0].half().numpy(), embedding(0))


def test_whole_bytes_that_are_not_the_recorded_ones_are_refused_and_not_kept(
    local: EmbeddingStore, tmp_path: Path, serve: Callable[..., Server]
) -> None:
    server = serve(local.path)
    store = EmbeddingStore.open(server.url)
    shutil.copytree(local.path, tmp_path / "other")
    commit(EmbeddingStore.open(tmp_path / "other"), 0, 1, seed=30)
    shutil.copy(shard_path(tmp_path / "other", 0), shard_path(local.path, 0))
    for check in CHECKS:
        with pytest.raises(CorruptionError, match=r"tile 0(.|\n)*open it again"):
            EmbeddingReader(store, check=check).read([0])
    assert isinstance(store, RemoteStore)
    assert store.kept.bytes == 0


def test_what_breaks_in_the_mirror_is_fetched_again(
    local: EmbeddingStore, serve: Callable[..., Server]
) -> None:
    server = serve(local.path)
    store = EmbeddingStore.open(server.url)
    store[0]
    (kept,) = (store.path / remote.KEPT).iterdir()
    for broken in (b"", kept.read_bytes()[:-9], b"x" + kept.read_bytes()[1:]):
        kept.write_bytes(broken)
        assert np.array_equal(store[0].half().numpy(), embedding(0))


def test_the_mirror_keeps_no_more_bytes_than_it_may(tmp_path: Path, local: EmbeddingStore) -> None:
    url = in_memory(local, "small")
    store = open_remote(url, cache_bytes=2 * CHUNK)
    assert isinstance(store, RemoteStore)
    for tile in (0, 1, 2, 0, 1, 2):
        assert np.array_equal(store[tile].half().numpy(), embedding(tile))
        on_disk = sum(path.stat().st_size for path in (store.path / remote.KEPT).iterdir())
        assert on_disk == store.kept.bytes <= 2 * CHUNK
    smaller = open_remote(url, cache_bytes=CHUNK)
    assert isinstance(smaller, RemoteStore)
    assert smaller.kept.bytes == CHUNK
    assert np.array_equal(smaller[0].half().numpy(), embedding(0))
    none = open_remote(url, cache_bytes=0)
    assert np.array_equal(none[0].half().numpy(), embedding(0))


def test_the_longest_unused_go_first(local: EmbeddingStore, serve: Callable[..., Server]) -> None:
    server = serve(local.path)
    store = open_remote(server.url, cache_bytes=2 * CHUNK)
    for tile in (0, 1, 0, 2):
        store[tile]
    before = server.of_shards()
    store[0], store[2]
    assert server.of_shards() == before
    store[1]
    assert server.of_shards() == before + 1


def test_what_was_encoded_since_is_there_when_it_is_opened_again(local: EmbeddingStore) -> None:
    store = EmbeddingStore.open(in_memory(local, "growing"))
    assert not store.committed[3]
    commit(local, 3)
    commit(local, 0, 1, seed=40)
    later = EmbeddingStore.open(in_memory(local, "growing"))
    assert np.array_equal(later[3].half().numpy(), embedding(3))
    assert np.array_equal(later[0].half().numpy(), embedding(40))


def test_another_store_at_the_same_address_is_refused_and_the_mirror_stays(
    tmp_path: Path, local: EmbeddingStore
) -> None:
    url = in_memory(local, "changed")
    store = EmbeddingStore.open(url)
    store[0]
    other = make_store(tmp_path / "other", spec=spec(precision="bf16"))
    before = {path: path.read_bytes() for path in store.path.rglob("*") if path.is_file()}
    in_memory(other, "changed")
    with pytest.raises(MismatchError, match="fingerprint"):
        EmbeddingStore.open(url)
    assert before == {path: path.read_bytes() for path in store.path.rglob("*") if path.is_file()}


def test_a_store_over_there_is_not_written_to(local: EmbeddingStore) -> None:
    store = EmbeddingStore.open(in_memory(local, "read-only"))
    with pytest.raises(InputError, match="only read"), store.writer():
        pass
    with pytest.raises(InputError, match="only read"):
        store.add_certificate({})


def test_what_is_no_store_or_cannot_be_opened_is_named(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve(tmp_path)
    with pytest.raises(InputError, match="is no store of embeddings"):
        EmbeddingStore.open(server.url)
    (tmp_path / "zarr.json").write_text('{"attributes": {}}')
    with pytest.raises(InputError, match="is a Zarr group, but no store"):
        EmbeddingStore.open(server.url)
    with pytest.raises(InputError, match=r"nosuch://a.*\n.*embedcache\[remote\]"):
        EmbeddingStore.open("nosuch://a/b")
    with pytest.raises(StorageError, match="cannot be read"):
        EmbeddingStore.open("http://127.0.0.1:1/s")


def test_a_server_without_ranges_is_refused(local: EmbeddingStore, serve: Callable[..., Server]) -> None:
    store = EmbeddingStore.open(serve(local.path, ranges=False).url)
    with pytest.raises(InputError, match="whole files only"):
        store[0]


def test_a_journal_that_needs_listing_is_refused_where_nothing_can_be_listed(
    tmp_path: Path, serve: Callable[..., Server]
) -> None:
    local = make_store(tmp_path / "there")
    with local.writer() as writer:
        writer.add_selection({"z_range": None}, np.ones(5, np.bool_))
    with local.writer(range(1, 2)) as writer:
        writer.commit_shard(
            1, embeddings={2: embedding(2), 3: embedding(3)}, input_digests={2: "0" * 64, 3: "0" * 64}
        )
    assert EmbeddingStore.open(in_memory(local, "listed")).committed[2]
    with pytest.raises(InputError, match=r"cannot be listed.*\nCopy it"):
        EmbeddingStore.open(serve(local.path).url)


def test_a_stranger_names_no_file_outside_of_the_mirror(
    local: EmbeddingStore, tmp_path: Path, mirrors: Path, serve: Callable[..., Server]
) -> None:
    victim = tmp_path / "victim" / "main.jsonl"
    victim.parent.mkdir()
    victim.write_text("mine")
    evil = encode_line({"kind": "snapshot", "seq": 0, "file": "../../../victim/main.jsonl", "bytes": 1})
    created = local.path / "journal" / "created.jsonl"
    created.write_text(created.read_text() + evil + "\n")
    with pytest.raises(EmbedcacheError):
        EmbeddingStore.open(serve(tmp_path / "there").url)
    assert victim.read_text() == "mine"
    made = EmbeddingStore.open(in_memory(make_store(tmp_path / "fine"), "linked")).path
    shutil.rmtree(made / "tiles")
    (made / "tiles").symlink_to(victim.parent)
    with pytest.raises(CorruptionError, match="link"):
        EmbeddingStore.open("memory://linked")
    assert [path.name for path in victim.parent.iterdir()] == ["main.jsonl"]


def test_a_mirror_is_not_opened_as_if_it_were_the_store(local: EmbeddingStore) -> None:
    url = in_memory(local, "mirrored")
    store = EmbeddingStore.open(url)
    assert store.address == url
    assert local.address == str(local.path)
    with pytest.raises(InputError, match=f"Open {url} instead"):
        EmbeddingStore.open(store.path)


def test_a_password_in_an_address_is_used_and_never_written_or_shown(
    local: EmbeddingStore, mirrors: Path, serve: Callable[..., Server]
) -> None:
    server = serve(local.path)
    store = EmbeddingStore.open(server.url.replace("//", "//me:secret%21@"))
    assert np.array_equal(store[0].half().numpy(), embedding(0))
    assert server.users == {"Basic " + b64encode(b"me:secret!").decode()}
    assert store.address == server.url
    assert not any(b"secret" in path.read_bytes() for path in mirrors.rglob("*") if path.is_file())
    server.faults = ["drop"] * 9
    with pytest.raises(StorageError) as caught:
        store[1]
    assert "secret" not in f"{caught.value!r} {store!r}"


def test_several_may_open_one_address_at_once(local: EmbeddingStore) -> None:
    url = in_memory(local, "busy")
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(EmbeddingStore.open, [url] * 8))
    assert all(np.array_equal(store[0].half().numpy(), embedding(0)) for store in stores)


def test_scales_are_fetched_once_and_missed_by_name(tmp_path: Path, serve: Callable[..., Server]) -> None:
    local = make_store(tmp_path / "there", spec=spec(store_dtype="int8"))
    commit(local, 0, 1)
    server = serve(local.path)
    store = EmbeddingStore.open(server.url)
    for _ in range(3):
        assert torch.equal(store.reader().read([0]), local.reader().read([0]))
    assert sum("/scales/c/" in path for path in server.asked) == 1
    scales_path(local.path, 0).unlink()
    shutil.rmtree(store.path)
    with pytest.raises(CorruptionError, match=r"tile 0(.|\n)*scales"):
        EmbeddingStore.open(server.url)[0]


def test_addresses_are_told_from_paths() -> None:
    assert is_remote("s3://bucket/a.zarr")
    assert not is_remote("/data/a.zarr")
    assert not is_remote("a.zarr")
