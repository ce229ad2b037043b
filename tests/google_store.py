"""A Google Cloud Storage on the loopback: the XML API that obstore and GDAL use.

gcp-storage-emulator and fake-gcs-server have the JSON API only: HEAD and PUT of the XML API fail
there. This server follows Google's reference of the XML API (cloud.google.com/storage/docs/xml-api)
in what we use: objects with generations, conditions, ranges and metadata, and listings in pages.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


@dataclass
class Stored:
    content: bytes
    generation: int
    headers: dict[str, str]
    changed: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def tag(self) -> str:
        return f'"{hashlib.md5(self.content).hexdigest()}"'


class GoogleStore(ThreadingHTTPServer):
    """`public` buckets are read without a token; with `payer`, requests must name a project."""

    daemon_threads = True
    request_queue_size = 64
    token = "TOPSECRET"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.buckets: dict[str, dict[str, Stored]] = {}
        self.public: set[str] = set()
        self.payer = ""
        self.generation = 1_700_000_000_000_000
        self.changing = threading.Lock()
        self.page = 1000

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: GoogleStore

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        bucket, _, key = parts.path.lstrip("/").partition("/")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        refused = self._refusal(bucket)
        if refused:
            self._send(*refused)
        elif not key:
            self._list(self.server.buckets[bucket], parse_qs(parts.query))
        else:
            with self.server.changing:
                self._object(self.server.buckets[bucket], unquote(key), body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer  # noqa: N815

    def _refusal(self, bucket: str) -> tuple[int, bytes] | None:
        server, given = self.server, self.headers.get("Authorization")
        is_open = bucket in server.public and self.command in ("GET", "HEAD")
        if given != f"Bearer {server.token}" and not is_open:
            if given is None:
                return 401, _error("AuthenticationRequired", "Authentication required.")
            return 403, _error("AccessDenied", "Access denied.")
        if bucket not in server.buckets:
            return 404, _error("NoSuchBucket", "The specified bucket does not exist.")
        if server.payer and self.headers.get("x-goog-user-project") != server.payer:
            return 400, _error("UserProjectMissing", "Bucket is requester pays bucket.")
        return None

    def _object(self, bucket: dict[str, Stored], key: str, body: bytes) -> None:
        stored = bucket.get(key)
        if self.command == "PUT":
            self._put(bucket, key, body)
        elif stored is None:
            self._send(404, _error("NoSuchKey", "The specified key does not exist."))
        elif self.command == "DELETE":
            del bucket[key]
            self._send(204)
        elif self.headers.get("If-Match", stored.tag) != stored.tag:
            self._send(412, _error("PreconditionFailed", "A precondition did not hold."))
        else:
            self._get(stored)

    def _put(self, bucket: dict[str, Stored], key: str, body: bytes) -> None:
        wanted = self.headers.get("x-goog-if-generation-match")
        generation = bucket[key].generation if key in bucket else 0
        if wanted is not None and int(wanted) != generation:
            self._send(412, _error("PreconditionFailed", "A precondition did not hold."))
            return
        kept = {
            name: value
            for name, value in self.headers.items()
            if name.lower() == "content-type" or name.lower().startswith("x-goog-meta-")
        }
        self.server.generation += 1
        stored = bucket[key] = Stored(body, self.server.generation, kept)
        self._send(200, b"", {"ETag": stored.tag, "x-goog-generation": str(stored.generation)})

    def _get(self, stored: Stored) -> None:
        headers = stored.headers | {
            "ETag": stored.tag,
            "Last-Modified": format_datetime(stored.changed, usegmt=True),
            "x-goog-generation": str(stored.generation),
            "Accept-Ranges": "bytes",
        }
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if match is None:
            self._send(200, stored.content, headers)
            return
        size = len(stored.content)
        start, stop = int(match[1]), min(int(match[2] or size), size - 1) + 1
        if start >= size:
            self._send(416, _error("InvalidRange", "The requested range cannot be satisfied."))
            return
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        self._send(206, stored.content[start:stop], headers)

    def _list(self, bucket: dict[str, Stored], query: dict[str, list[str]]) -> None:
        asked = {name: values[0] for name, values in query.items()}
        prefix, delimiter = asked.get("prefix", ""), asked.get("delimiter", "")
        after = asked.get("continuation-token") or asked.get("start-after") or ""
        names: dict[str, None] = {}
        for key in sorted(key for key in bucket if key.startswith(prefix)):
            head, mark, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
            name = prefix + head + mark if mark else key
            if name > after:
                names[name] = None
        page, more = list(names)[: self.server.page], len(names) > self.server.page
        text = "".join(
            _listed(name, bucket.get(name) if not (delimiter and name.endswith("/")) else None)
            for name in page
        )
        if more:
            text += f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>"
        text += f"<IsTruncated>{str(more).lower()}</IsTruncated>"
        self._send(200, f"<ListBucketResult>{text}</ListBucketResult>".encode())

    def _send(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)  # with a Date, as Google's answers have
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _listed(name: str, stored: Stored | None) -> str:
    if stored is None:
        return f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>"
    time = stored.changed.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return (
        f"<Contents><Key>{escape(name)}</Key><LastModified>{time}</LastModified>"
        f"<ETag>{escape(stored.tag)}</ETag><Size>{len(stored.content)}</Size></Contents>"
    )


def _error(code: str, message: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()


@contextmanager
def google_served() -> Iterator[GoogleStore]:
    """Serve an empty Google Cloud Storage."""
    server = GoogleStore()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
