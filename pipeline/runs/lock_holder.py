"""Who holds an output, as both kinds of lock say it."""

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
DEAD_AFTER_S = 60.0


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lock: a process on a host. `boot` names the host's kernel since its start.

    `space` is the namespace of processes in which `pid` means something: each container has its
    own. `started` is when the kernel started the process, so that a later process with the same
    number is not taken for it. Both are empty where the system does not say it.
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
    """Return this process as a holder from now on."""
    boot = space = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        space = str(Path("/proc/self/ns/pid").readlink())
    since, pid = f"{datetime.now(UTC):%Y-%m-%d %H:%MZ}", os.getpid()
    return Holder(socket.gethostname(), boot, pid, since, space, _started(pid) or "")


def read_holder(said: Mapping[str, Any]) -> Holder | None:
    """Return the holder that a lock names; None when it names none."""
    try:
        host, boot, since = (str(said[name]) for name in ("host", "boot", "since"))
        space, started = (str(said.get(name, "")) for name in ("space", "started"))
        return Holder(host, boot, int(said["pid"]), since, space, started)
    except (KeyError, TypeError, ValueError):
        return None


def is_alive(holder: Holder, age_s: float) -> bool:
    """Say whether a holder may be alive, whose last beat is `age_s` old.

    A process that this one can see is looked up by its number and start; any other one is
    believed alive while it beats.
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
    except OSError:  # another user's
        pass
    return True


def _started(pid: int) -> str | None:
    """Return when a process started, in clock ticks of its kernel; None where nobody says it.

    Of one that ended and was not waited for it is empty: it holds nothing any more.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    return "" if fields[0] in "ZX" else fields[19]  # proc(5): state and starttime
