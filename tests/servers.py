"""Servers on the loopback: files with ranges of bytes and faults on request, and an S3."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import requests


class FileServer(ThreadingHTTPServer):
    """Serves the files of a folder, or `pages` made in memory, and counts what it sends.

    `failures` answers are 503, `hanging` paths are answered never, `tagless` takes ETag and
    Last-Modified away, `whole` ignores ranges. `signature` must be the query where it is given.
    `tokens` has the header Authorization of each request, `keys` X-Key. `redirects` says where
    paths are instead. `delay_s` passes before each answer;
    `most_at_once` counts the requests that waited together.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.pages: dict[str, Any] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.tokens: list[str | None] = []
        self.keys: list[str | None] = []
        self.redirects: dict[str, str] = {}
        self.bytes_sent = 0
        self.failures = 0
        self.hanging: tuple[str, ...] = ()
        self.tagless = self.whole = False
        self.signature = ""
        self.delay_s = 0.0
        self.waiting = self.most_at_once = 0
        self.counting = threading.Lock()
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def delay(self) -> None:
        """Wait before an answer."""
        with self.counting:
            self.waiting += 1
            self.most_at_once = max(self.most_at_once, self.waiting)
        time.sleep(self.delay_s)
        with self.counting:
            self.waiting -= 1

    def forget(self) -> None:
        """Begin to count again."""
        self.requests.clear()
        self.bytes_sent = 0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FileServer
    modified: ClassVar[str] = "Sat, 21 Nov 2026 10:00:00 GMT"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        server, (path, _, query) = self.server, self.path.partition("?")
        wanted = self.headers.get("Range")
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        server.requests.append((self.command, self.path, wanted))
        server.tokens.append(self.headers.get("Authorization"))
        server.keys.append(self.headers.get("X-Key"))
        server.delay()
        if path in server.hanging:
            server.closing.wait(20)
            self.close_connection = True
            return
        if server.failures > 0:
            server.failures -= 1
            self._send(503)
        elif server.signature and query != server.signature:
            self._send(403)
        elif path in server.redirects:
            self._send(302, headers={"Location": server.redirects[path]})
        elif path in server.pages:
            page = server.pages[path]
            body = page(self.command, query, sent) if callable(page) else page
            self._send(200, body, {"Content-Type": "application/json"})
        elif (server.root / path.lstrip("/")).is_file():
            self._send_file((server.root / path.lstrip("/")).read_bytes(), wanted)
        else:
            self._send(404)

    def _send_file(self, whole: bytes, wanted: str | None) -> None:
        headers = {}
        if not self.server.tagless:
            headers = {"ETag": f'"{hashlib.md5(whole).hexdigest()}"'}
        match = re.match(r"bytes=(\d+)-(\d*)", wanted or "")
        if self.server.whole or match is None:
            self._send(200, whole, headers)
            return
        start, stop = int(match[1]), min(int(match[2] or len(whole)), len(whole) - 1) + 1
        headers |= {"Content-Range": f"bytes {start}-{stop - 1}/{len(whole)}"}
        self._send(206, whole[start:stop], headers | {"Accept-Ranges": "bytes"})

    def _send(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        try:
            for start in range(0, len(body), 4096):  # who hangs up has not had the rest
                self.wfile.write(body[start : start + 4096])
                self.server.bytes_sent += len(body[start : start + 4096])
        except OSError:
            self.close_connection = True


@contextmanager
def files_served(root: Path) -> Iterator[FileServer]:
    """Serve a folder over HTTP."""
    server = FileServer(root)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def s3_served(address: str = "127.0.0.1") -> Iterator[str]:
    """Serve an empty S3 and give its `host:port`."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address=address, port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        # All its servers in a process share their buckets.
        requests.post(f"http://{host}:{port}/moto-api/reset", timeout=10)
        yield f"{host}:{port}"
    finally:
        server.stop()
