"""Who holds an output, as both kinds of lock say it."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

BEAT_S = 10.0
DEAD_AFTER_S = 60.0


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lock: a process on a host. `boot` names the host's kernel since its start."""

    host: str
    boot: str
    pid: int
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


def myself() -> Holder:
    """Return this process as a holder from now on."""
    boot = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return Holder(socket.gethostname(), boot, os.getpid(), f"{datetime.now(UTC):%Y-%m-%d %H:%MZ}")
