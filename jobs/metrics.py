"""`scenesweep metrics`: the figures of the last runs in OUT, in Prometheus's text format.

They survive the cluster of a run: the files lie in OUT, and this command can serve them.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from scenesweep.jobs.cli import run_job
from scenesweep.pipeline.errors import Exit, UsageError
from scenesweep.pipeline.runs.night_metrics import figures_of
from scenesweep.pipeline.storage.location import Location, location_of

log = logging.getLogger(__name__)

_CONTENT = "text/plain; version=0.0.4; charset=utf-8"
_ADDRESS = re.compile(r"(?P<host>[^\s:]+|\[[0-9a-fA-F:]+\]):(?P<port>\d{1,5})")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument(
        "out",
        metavar="OUT",
        help="the --out of scenesweep detect: a folder, s3://..., gs://... or az://...",
    )
    parser.add_argument(
        "--listen",
        metavar="HOST:PORT",
        help="serve the figures at http://HOST:PORT/metrics, and read them again for each request",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print or serve the figures and return the exit code."""
    out = location_of(arguments.out)
    if arguments.listen is None:
        print(figures_of(out), end="")
        return Exit.DONE
    with server(out, arguments.listen) as serving:
        log.info("serving the figures of %s at http://%s/metrics", out, arguments.listen)
        serving.serve_forever()
    return Exit.DONE


def server(out: Location, address: str) -> ThreadingHTTPServer:
    """Return a server of the figures that listens already.

    Raises:
        UsageError: if the address has another form, or cannot be used.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None or int(match["port"]) > 65535:
        raise UsageError(f"--listen {address}: expected HOST:PORT, such as 127.0.0.1:9100")
    where = (match["host"].strip("[]"), int(match["port"]))
    try:
        return ThreadingHTTPServer(where, partial(_Handler, out))
    except OSError as error:
        raise UsageError(f"--listen {address}: {error.strerror or error}") from error


class _Handler(BaseHTTPRequestHandler):
    """Answers GET /metrics."""

    def __init__(self, out: Location, *arguments: object) -> None:
        self._out = out
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(404)
            return
        try:
            body = figures_of(self._out).encode()
        except OSError as error:
            log.warning("%s cannot be read: %s", self._out, error)
            self.send_error(503)
            return
        self.send_response(200)
        self.send_header("Content-Type", _CONTENT)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        log.debug(format, *args)


if __name__ == "__main__":
    sys.exit(run_job("metrics"))
