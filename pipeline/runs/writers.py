"""The runs that write one output at the same time.

    OUT/.work/writers/<key>     who the run is; it exists while the run does

A run begins and ends under the lock of the output (`pipeline.runs.lock`). Several sweeps may write
at once: each claims its scenes (`pipeline.runs.claims`). A run that reads or writes results of many
scenes, such as `compact`, writes alone. A run that was killed leaves its file, which counts no
longer: `pipeline.runs.writer_files` decides who is alive.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from scenesweep.pipeline.errors import OutputInUse
from scenesweep.pipeline.runs.lock import WAIT_S, LockState, lock_state, output_lock
from scenesweep.pipeline.runs.lock_holder import Holder, in_use, myself
from scenesweep.pipeline.runs.writer_files import Entry, read_entry, registered
from scenesweep.pipeline.storage.commit import drop_leftovers, remove
from scenesweep.pipeline.storage.location import Location, list_matching, map_at_once
from scenesweep.pipeline.storage.paths import Output

_KEY = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class Writer:
    """A run that writes an output: its key, and the runs of before that were killed."""

    key: str
    killed: tuple[Holder, ...] = ()


@contextmanager
def writing(out: Location, *, alone: bool = False) -> Iterator[Writer]:
    """Register this run as a writer of the output during the block.

    Raises:
        OutputInUse: if another run writes alone, or this one must and another run writes. The
            message names that run.
        OutputError: if nothing can be written to the output.
        UsageError: if the output is not a folder.
    """
    key = secrets.token_hex(8)
    with output_lock(out, wait_s=WAIT_S) as killed:
        entries = _entries(out)
        others = [entry for entry in entries if entry.alive]
        for other in others:
            if alone or other.alone:
                raise OutputInUse(in_use(out, other.holder))
        dead = [entry for entry in entries if not entry.alive]
        for entry in dead:
            remove(entry.path)
        if not others:
            drop_leftovers(Output(out).aside)
        own = registered(Output(out).writers / key, myself(), alone=alone)
    holders = (killed, *(entry.holder for entry in dead))
    try:
        yield Writer(key, tuple(holder for holder in holders if holder is not None))
    finally:
        own.end()


@contextmanager
def shared_files(out: Location, writer: str) -> Iterator[None]:
    """Keep other writers from files that all runs share during the block, such as the catalog.

    Without a `writer` there are no other runs, and nothing is locked.

    Raises:
        OutputInUse: if another run does not leave them for `WAIT_S`.
    """
    if not writer:
        yield
        return
    with output_lock(out, wait_s=WAIT_S):
        yield


def living_keys(out: Location) -> set[str]:
    """Return the keys of the runs that are writing an output."""
    return {entry.path.name for entry in _entries(out) if entry.alive}


def writer_of(out: Location, key: str) -> Holder | None:
    """Return the run with this key; None if it has ended or was killed."""
    entry = read_entry(Output(out).writers / key)
    return entry.holder if entry.alive else None


def output_state(out: Location) -> LockState:
    """Look who writes an output, without a lock: a run may begin at the same moment.

    If the mark differs from an earlier one, a run has begun since then.
    """
    state = lock_state(out)
    entries = _entries(out)
    holders = [entry.holder for entry in entries if entry.alive]
    return replace(state, holder=state.holder or next(iter(holders), None))


def _entries(out: Location) -> list[Entry]:
    folder = Output(out).writers
    paths = [path for path in list_matching(folder, "*") if _KEY.fullmatch(path.name)]
    return map_at_once(read_entry, paths, where=out)
