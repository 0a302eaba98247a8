"""A web server of a volume's files: it lists nothing, counts what it is asked, and misbehaves by a schedule."""

from __future__ import annotations

import gzip
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

Files = Path | Mapping[str, bytes] | Callable[[str], bytes | None]


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Clients go when they have had enough."""


class VolumeServer:
    """Serves files by name, whole or in ranges; folders are 404.

    Parameters
    ----------
    files : Path, mapping or callable
        A folder, names to bytes, or a function from a name to bytes (None: 404).
    schedule : iterable of str
        What happens to the next requests for chunks: fine, drop, stall, short, long, busy (503), many (429), or a
        status such as 403.
    tls : Path, optional
        A certificate and key in one file: https is served.
    user : str, optional
        ``Basic …`` that every request must carry; else 401.
    missing : int
        Status of what is not there.
    moved : str, optional
        The region that every request is sent on to, as Amazon does it.
    encoding : str, optional
        ``gzip``: what is sent whole is compressed on the way, whatever was asked for.
    """

    def __init__(
        self,
        files: Files,
        schedule: Iterable[str] = (),
        *,
        tls: Path | None = None,
        user: str | None = None,
        missing: int = 404,
        moved: str | None = None,
        encoding: str | None = None,
    ) -> None:
        self.files, self.schedule, self.user, self.missing = files, list(schedule), user, missing
        self.asked: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.seen: list[dict[str, str]] = []
        self.now = self.most = 0
        self.retry_after: str | None = None
        self.send_on: str | None = None
        self.moved, self.encoding = moved, encoding
        self.wait = 0.0
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.answer(self)

            def log_message(self, *_: Any) -> None:
                """Nothing is logged."""

        self.http = _Quiet(("127.0.0.1", 0), Handler)
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls)
            self.http.socket = context.wrap_socket(self.http.socket, server_side=True)
        scheme = "http" if tls is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def __enter__(self) -> VolumeServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.shutdown()
        self.http.server_close()

    @property
    def chunks_asked(self) -> Counter[str]:
        """Requests for what is no metadata."""
        return Counter({name: times for name, times in self.asked.items() if _is_chunk(name)})

    @property
    def chunk_bytes(self) -> int:
        """Bytes sent of what is no metadata."""
        return sum(size for name, size in self.bytes.items() if _is_chunk(name))

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        name = request.path.partition("?")[0].lstrip("/")
        with self._lock:
            self.asked[name] += 1
            self.seen.append({"path": request.path, **dict(request.headers)})
            fault = self.schedule.pop(0) if self.schedule and _is_chunk(name) else "fine"
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            time.sleep(self.wait)
            self._answer(request, name, fault)
        finally:
            with self._lock:
                self.now -= 1

    def _answer(self, request: BaseHTTPRequestHandler, name: str, fault: str) -> None:
        data = self._find(name)
        if self.user is not None and request.headers.get("Authorization") != self.user:
            return self._say(request, 401)
        if self.moved is not None:
            return self._say(request, 301, **{"x-amz-bucket-region": self.moved})
        if self.send_on is not None:
            return self._say(request, 302, Location=f"{self.send_on}/{name}")
        if fault == "drop":
            request.close_connection = True
            return None
        if fault == "stall":
            time.sleep(1.5)
            request.close_connection = True
            return None
        if fault in ("busy", "many"):
            return self._say(request, 503 if fault == "busy" else 429)
        if fault.isdigit():
            return self._say(request, int(fault))
        if data is None:
            return self._say(request, self.missing)
        return self._send(request, name, data, fault)

    def _send(self, request: BaseHTTPRequestHandler, name: str, data: bytes, fault: str) -> None:
        asked, total = request.headers.get("Range"), len(data)
        if asked is not None:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            data = data[int(first) : int(last) + 1] if first else data[-int(last) :]
        if fault == "long":
            data += b"x" * (3 << 20)
        request.send_response(200 if asked is None else 206)
        if self.encoding == "gzip" and asked is None:
            data = gzip.compress(data)
            request.send_header("Content-Encoding", "gzip")
        if asked is not None:
            request.send_header("Content-Range", f"bytes */{total}")
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data[: len(data) // 2] if fault == "short" else data)
        if fault == "short":
            request.close_connection = True
        with self._lock:
            self.bytes[name] += len(data)

    def _say(self, request: BaseHTTPRequestHandler, status: int, **headers: str) -> None:
        request.send_response(status)
        for header, value in headers.items():
            request.send_header(header, value)
        if self.retry_after is not None and status in (429, 503):
            request.send_header("Retry-After", self.retry_after)
        request.send_header("Content-Length", "0")
        request.end_headers()

    def _find(self, name: str) -> bytes | None:
        if isinstance(self.files, Path):
            path = self.files / name
            return path.read_bytes() if path.is_file() else None
        return self.files.get(name) if isinstance(self.files, Mapping) else self.files(name)


def _is_chunk(name: str) -> bool:
    return name.rpartition("/")[2] not in (".zarray", ".zattrs", ".zgroup", ".zmetadata", "zarr.json")


def write_certificate(folder: Path) -> Path:
    """A self-signed certificate for 127.0.0.1, with its key, in one file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = folder / "server.pem"
    path.write_bytes(certificate.public_bytes(pem) + private)
    return path
