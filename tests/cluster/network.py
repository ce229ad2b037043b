"""Several hosts on one machine: Linux namespaces that a bridge connects.

Each host has its own network, processes and host name. Its first process reads a pipe, so the
kernel ends everything in it when the pipe closes, even if the tests are killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_UNSHARE = ("unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--uts")
# The first process of a host must reap those that lost their parent: it ignores their signal.
_FIRST = 'hostname "$0" && ip link set lo up && exec env --ignore-signal=CHLD cat'


def missing() -> str:
    """Say why this machine cannot have such hosts; empty if it can."""
    probe = "ip link add ssprobe type veth peer name ssprobe1"
    try:
        subprocess.run(
            [*_UNSHARE, "sh", "-c", probe], check=True, capture_output=True, text=True, timeout=20
        )
    except FileNotFoundError as error:
        return f"no program {error.filename}"
    except subprocess.CalledProcessError as error:
        return str(error.stderr).strip().splitlines()[-1]
    return ""


@dataclass(frozen=True)
class Host:
    """A host: its name, its address on the bridge, and its first process."""

    name: str
    address: str
    first: int
    cable: str

    def command(self, words: Sequence[str], folder: Path) -> list[str]:
        """Return the command that runs `words` on this host, in a folder."""
        enter = ["nsenter", f"--target={self.first}", "--net", "--pid", "--mount", "--uts"]
        return [*enter, "env", "-C", str(folder), *words]

    def processes(self) -> list[psutil.Process]:
        """Return the processes that run on this host, without the first one."""
        space = _pid_space(self.first)
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if _pid_space(process.pid) == space:
                    found.append(process)
        return [process for process in found if process.pid != self.first]

    def kill(self, *, only: str = "") -> None:
        """Kill -9 everything on this host, or the processes of one name."""
        for process in self.processes():
            with suppress(psutil.Error):
                if not only or process.name() == only:
                    process.send_signal(signal.SIGKILL)

    @contextmanager
    def cable_pulled(self) -> Iterator[None]:
        """Take this host from the network during the block."""
        _ip("link", "set", self.cable, "down")
        try:
            yield
        finally:
            _ip("link", "set", self.cable, "up")


@dataclass
class Network:
    """A bridge, on which this machine has the address `address`, and its hosts."""

    bridge: str
    prefix: str
    cables: list[str] = field(default_factory=list)
    holders: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"{self.prefix}.1"

    def add_host(self, name: str) -> Host:
        """Add a host and connect it to the bridge."""
        number = len(self.holders) + 2
        cable, address = f"{self.bridge}n{number}", f"{self.prefix}.{number}"
        holder = subprocess.Popen(
            [*_UNSHARE, "sh", "-c", _FIRST, name], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        self.holders.append(holder)
        first = _first_process(holder.pid)
        _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", str(first))
        self.cables.append(cable)
        _ip("link", "set", cable, "master", self.bridge, "up")
        inside = ("nsenter", f"--target={first}", "--net")
        _run(*inside, "ip", "address", "add", f"{address}/24", "dev", "eth0")
        _run(*inside, "ip", "link", "set", "eth0", "up")
        return Host(name, address, first, cable)


@contextmanager
def network() -> Iterator[Network]:
    """Make a bridge without hosts; in the end remove it, with all hosts and their processes."""
    pid = os.getpid()
    net = Network(f"ss{pid}", f"10.{100 + pid % 100}.{pid // 100 % 250}")
    _ip("link", "add", net.bridge, "type", "bridge")
    try:
        _ip("address", "add", f"{net.address}/24", "dev", net.bridge)
        _ip("link", "set", net.bridge, "up")
        yield net
    finally:
        for holder in net.holders:
            holder.kill()  # and with it, all processes of its host
            holder.wait(10)
            if holder.stdin:
                holder.stdin.close()
        for cable in net.cables:  # connections that were cut keep the network of a host for minutes
            with suppress(subprocess.CalledProcessError):
                subprocess.run(["ip", "link", "delete", cable], check=True, capture_output=True)
        _ip("link", "delete", net.bridge)


def _pid_space(pid: int) -> Path:
    """Return what names the processes among which a process is."""
    return Path(f"/proc/{pid}/ns/pid").readlink()


def _first_process(parent: int) -> int:
    """Return the first process of a host as soon as it runs `cat`: then the host is complete."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        with suppress(psutil.Error):
            for process in psutil.Process(parent).children():
                if process.name() == "cat":
                    return process.pid
        time.sleep(0.01)
    raise TimeoutError("the first process of a host did not start within 10 s")


def _ip(*words: str) -> None:
    _run("ip", *words)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=20)
