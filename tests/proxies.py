"""A server between a program and a store, which fails on request."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import requests

_HOP = ("host", "content-length", "transfer-encoding", "connection", "expect")


class Proxy(ThreadingHTTPServer):
    """Passes requests on to `target`, and answers back.

    The next `busy` answers are 503, and `always_busy` ones all. Of the next `cut` answers with a
    body, half of the body is sent. With `slow`, the body of a PUT is read in steps with pauses.
    `paths` are those of all requests.
    """

    daemon_threads = True

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = target
        self.busy = self.cut = 0
        self.status = 503
        self.slow = False
        self.uploading = threading.Event()
        self.paths: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def log_message(self, *_: Any) -> None:
        pass

    def _pass_on(self) -> None:
        proxy = self.server
        proxy.paths.append(f"{self.command} {self.path}")
        body = self._body()
        if body is None:
            self.close_connection = True
            return
        if proxy.busy > 0:
            proxy.busy -= 1
            self._send(
                proxy.status, b"<Error><Code>SlowDown</Code><Message>Wait.</Message></Error>"
            )
            return
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP}
        answer = requests.request(
            self.command,
            f"{proxy.target}{self.path}",
            headers={"Accept-Encoding": "identity"} | headers,
            data=body,
            timeout=20,
        )
        kept = {k: v for k, v in answer.headers.items() if k.lower() not in _HOP}
        if self.command == "HEAD":
            self._head(answer.status_code, kept, answer.headers.get("Content-Length", "0"))
        else:
            self._send(answer.status_code, answer.content, kept)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on  # noqa: N815

    def _body(self) -> bytes | None:
        """Return the body of a request; None when the sender is gone before its end."""
        size = int(self.headers.get("Content-Length") or 0)
        if not (self.server.slow and self.command == "PUT" and size > 1 << 20):
            return self.rfile.read(size)
        read = bytearray(self.rfile.read(1 << 16))
        self.server.uploading.set()
        while len(read) < size:
            time.sleep(0.05)
            more = self.rfile.read(min(1 << 16, size - len(read)))
            if not more:
                return None
            read += more
        return bytes(read)

    def _head(self, status: int, headers: dict[str, str], length: str) -> None:
        self.send_response_only(status)
        for name, value in (headers | {"Content-Length": length}).items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self._head(status, headers or {}, str(len(body)))
        if self.server.cut > 0 and len(body) > 1:
            self.server.cut -= 1
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        else:
            self.wfile.write(body)


@contextmanager
def proxied(target: str) -> Iterator[Proxy]:
    """Serve a proxy for the server at an address."""
    server = Proxy(target)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
