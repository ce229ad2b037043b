"""The holder of a lock on an output, as both kinds of lock record it."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

BEAT_S = 10.0
"""Seconds between two heartbeats of a holder."""
DEAD_AFTER_S = 60.0
"""Seconds without a heartbeat after which a holder that cannot be looked up counts as dead."""


@dataclass(frozen=True, slots=True)
class Holder:
    """The holder of a lock: a process on a host.

    `boot` identifies the boot of the host. `space` identifies the PID namespace in which `pid` is
    valid: each container has its own. `started` is when the process started, so that a later
    process with the same number is not mistaken for it. `space` and `started` are empty if the
    system does not provide them.
    """

    host: str
    boot: str
    pid: int
    since: str
    space: str = ""
    started: str = ""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


def myself() -> Holder:
    """Return this process as a holder, from now on."""
    boot = space = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        space = str(Path("/proc/self/ns/pid").readlink())
    since, pid = f"{datetime.now(UTC):%Y-%m-%d %H:%MZ}", os.getpid()
    return Holder(socket.gethostname(), boot, pid, since, space, _started(pid) or "")


def in_use(out: object, holder: Holder | None) -> str:
    """Return the message for a lock that another run holds."""
    return (
        f"{out}: another run is writing there: {holder or 'just started'}; "
        "rerun the same command when it has ended"
    )


def read_holder(content: Mapping[str, Any]) -> Holder | None:
    """Return the holder in the content of a lock; None if there is none."""
    try:
        host, boot, since = (str(content[name]) for name in ("host", "boot", "since"))
        space, started = (str(content.get(name, "")) for name in ("space", "started"))
        return Holder(host, boot, int(content["pid"]), since, space, started)
    except (KeyError, TypeError, ValueError):
        return None


def is_alive(holder: Holder, age_s: float) -> bool:
    """Say whether a holder may be alive whose last heartbeat is `age_s` old.

    If this process can see the holder, it looks it up by its PID and start time. Any other holder
    counts as alive while its heartbeats go on.
    """
    here = myself()
    if (holder.host, holder.boot, holder.space) != (here.host, here.boot, here.space):
        return age_s < DEAD_AFTER_S
    if not _exists(holder.pid):
        return False
    started = _started(holder.pid)
    if holder.started and started is not None:
        return holder.started == started
    return age_s < DEAD_AFTER_S


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # a process of another user
        pass
    return True


def _started(pid: int) -> str | None:
    """Return when a process started, in clock ticks of the kernel; None if that is unknown.

    Return "" for a process that has ended but was not waited for: it holds nothing any more.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may contain any character
    return "" if fields[0] in "ZX" else fields[19]  # proc(5): state and starttime
