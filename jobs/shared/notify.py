"""Post the summary of a run to an address as JSON. A failed post never changes the exit code."""

from __future__ import annotations

import logging
from typing import Any, get_args
from urllib.parse import urlsplit

import requests

from scenesweep.pipeline.errors import ScenesweepError, exit_for
from scenesweep.pipeline.runs.report import Run, Status, failure

log = logging.getLogger(__name__)

_TIMEOUT_S = 10.0
_REASONS = 10


def message_of(run: Run, text: str, report: str) -> dict[str, Any]:
    """Return what is posted: the counts of a run, its checks, and the first reasons of failures.

    `text` is the summary that the command prints; services for chat show this key.
    """
    failed = [failure(result) for result in run.results if result.status == "failed"]
    states = get_args(Status)
    return {
        "text": f"scenesweep {run.night}: exit code {int(run.exit_code)}\n{text}",
        "name": run.night,
        "run_id": run.run_id,
        "exit_code": int(run.exit_code),
        "scenes": {state: sum(r.status == state for r in run.results) for state in states}
        | {"unfinished": run.unfinished},
        "detections": run.detections,
        "megapixels": round(run.megapixels, 3),
        "seconds": round(run.seconds, 3),
        "cut_short": run.cut_short.why if run.cut_short else "",
        "unusual": [str(one) for one in run.unusual],
        "canary": run.canary.state if run.canary else "",
        "expected": run.expected.counts() if run.expected else {},
        "failed": failed[:_REASONS],
        "report": report,
    }


def message_of_error(error: ScenesweepError, name: str) -> dict[str, Any]:
    """Return what is posted if there is no report, because the run could not start."""
    code = int(exit_for(error))
    text = f"scenesweep {name}: exit code {code}\n{error}"
    return {"text": text, "name": name, "exit_code": code, "error": str(error)}


def notify(url: str | None, message: dict[str, Any]) -> None:
    """Post a message; log if that fails, without the address, which may be secret."""
    if not url:
        return
    try:
        answer = requests.post(url, json=message, timeout=_TIMEOUT_S, allow_redirects=False)
    except (requests.RequestException, ValueError) as error:
        log.warning("notify: %s: %s", _host(url), type(error).__name__)
        return
    if not 200 <= answer.status_code < 300:
        log.warning("notify: %s answered with %s", _host(url), answer.status_code)


def _host(url: str) -> str:
    """Return the host of an address: the path of many services is the secret."""
    try:
        return urlsplit(url).hostname or "?"
    except ValueError:
        return "?"
