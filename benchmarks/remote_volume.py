"""A volume behind http that is larger than this disk: bytes fetched, requests, and memory, by real commands.

    python benchmarks/remote_volume.py

``once``: a grid of 10^5 chunks of 16³ px; a few tiles of it are encoded. Bytes fetched ÷ bytes of the chunks
touched, requests per chunk, and the same for the same command again, which must fetch no chunk.

``memory``: a volume of 256 × 32,693 × 32,693 px in chunks of 128³, of which the server has 17 × 17 × 2; four tiles
of 1,024 px are encoded with --read-memory 64 MiB. The peak of that process beyond the peak of one that encodes
four tiles of a local image of 2,048² px, beside what is stated: --read-memory + 16 × 2 MiB in flight + 96 MiB.
(The encoder's own peak hides the reader's: tests/test_remote_memory.py measures the reader's alone.)

The server is a process of its own that computes every chunk from a formula and lists nothing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

MEBI = 1 << 20
STATED = (64 + 16 * 2 + 96) * MEBI
COMMAND = """
import sys
from embedcache.cli.app import run
from embedcache.heap import keep_freed_memory
from embedcache.peak import peak_memory
import torch
keep_freed_memory()
code = run(sys.argv[1:])
print(f"peak {peak_memory(torch.device('cpu'))}", file=sys.stderr)
sys.exit(code)
"""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=("once", "memory", "all"), default="all")
    return parser.parse_args()


def serve(shape: tuple[int, int, int], side: int, there: range | None, talk: Connection) -> None:
    """Serve an array of uint8 until told to end; on any other word, send what was asked and sent so far."""
    asked: Counter[str] = Counter()
    sent: Counter[str] = Counter()
    metadata = json.dumps({
        "zarr_format": 2, "shape": shape, "chunks": [side] * 3, "dtype": "|u1", "order": "C",
        "compressor": None, "filters": None, "fill_value": 0, "dimension_separator": "/",
    }).encode()  # fmt: skip

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = metadata if self.path == "/v.zarr/.zarray" else chunk(self.path)
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")
            if self.path != "/v.zarr/.zarray" and "/." not in self.path and "json" not in self.path:
                asked[self.path] += 1
                sent[self.path] += len(body or b"")

        def log_message(self, *_: Any) -> None:
            """Nothing is logged."""

    def chunk(path: str) -> bytes | None:
        found = re.fullmatch(r"/v\.zarr/(\d+)/(\d+)/(\d+)", path)
        if found is None:
            return None
        z, y, x = (int(place) for place in found.groups())
        if there is not None and (y not in there or x not in there):
            return None
        return bytes([1 + (7 * z + 3 * y + x) % 255]) * side**3

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    talk.send(f"http://127.0.0.1:{server.server_address[1]}/v.zarr")
    while talk.recv() != "end":
        talk.send((dict(asked), dict(sent)))


class Server:
    """The server's process."""

    def __init__(self, shape: tuple[int, int, int], side: int, there: range | None = None) -> None:
        self._talk, other = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("spawn").Process(
            target=serve, args=(shape, side, there, other), daemon=True
        )
        self._process.start()
        self.url = str(self._talk.recv())

    def figures(self) -> tuple[dict[str, int], dict[str, int]]:
        self._talk.send("figures")
        asked, sent = self._talk.recv()
        return asked, sent

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._talk.send("end")
        self._process.join(10)


def encode(volume: str, folder: Path, *words: str) -> dict[str, Any]:
    """One command in a process of its own; its result, seconds, and peak."""
    fixed = ["--model", "vit_tiny", "--checkpoint", "random:0", "--store", str(folder / "s.zarr"), "--json"]
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "encode", "--volume", volume, *fixed, *words],
        capture_output=True, text=True, check=False,
        env={**os.environ, "EMBEDCACHE_CHUNKS": str(folder / "chunks")},
    )  # fmt: skip
    if done.returncode:
        sys.exit(done.stderr)
    peak = re.search(r"peak (\d+)", done.stderr)
    assert peak is not None
    return {**json.loads(done.stdout), "wall": time.perf_counter() - started, "peak": int(peak[1])}


def once(folder: Path) -> dict[str, Any]:
    words = ("--tile", "64", "--z-range", "100:104", "--bbox", "200:392,300:492")
    with Server((752, 752, 752), 16) as server:
        first = encode(server.url, folder, *words)
        asked, sent = server.figures()
        encode(server.url, folder, *words)
        later, _ = server.figures()
    return {
        "chunks_of_the_volume": 47**3,
        "tiles": first["tiles_encoded"],
        "chunks_touched": len(asked),
        "requests_per_chunk": sum(asked.values()) / len(asked),
        "bytes_fetched_over_bytes_of_chunks": sum(sent.values()) / (len(asked) * 16**3),
        "chunk_requests_of_the_same_command_again": sum(later.values()) - sum(asked.values()),
        "seconds": round(first["wall"], 1),
    }


def memory(folder: Path) -> dict[str, Any]:
    (folder / "local").mkdir()
    np.save(folder / "local" / "image.npy", np.ones((1, 2048, 2048), np.uint8))
    words = ("--read-memory", "64MiB")
    base = encode(str(folder / "local" / "image.npy"), folder / "local", *words)
    with Server((256, 32_693, 32_693), 128, range(95, 112)) as server:
        far = encode(server.url, folder, *words, "--z-range", "7:8", "--bbox", "12500:14000,12500:14000")
        asked, sent = server.figures()
    return {
        "tiles": far["tiles_encoded"],
        "chunks_asked": len(asked),
        "requests_per_chunk": sum(asked.values()) / len(asked),
        "fetched_mib": round(sum(sent.values()) / MEBI, 1),
        "peak_beyond_local_mib": round((far["peak"] - base["peak"]) / MEBI, 1),
        "stated_mib": STATED / MEBI,
        "seconds": round(far["wall"], 1),
        "seconds_local": round(base["wall"], 1),
    }


def main() -> None:
    arguments = parse()
    for name, part in (("once", once), ("memory", memory)):
        if arguments.part in (name, "all"):
            with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
                print(json.dumps({name: part(Path(folder))}, indent=2), flush=True)


if __name__ == "__main__":
    main()
