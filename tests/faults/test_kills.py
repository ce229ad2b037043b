"""Runs that are killed end in the bytes of a run that was not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.kills import DETECTORS, KINDS, do_rounds

pytest.importorskip("ray")
ROUNDS = 25


def test_a_killed_run_is_resumed_to_the_same_bytes(tmp_path: Path) -> None:
    """One round without its driver; the long test has the others."""
    (done,) = do_rounds(tmp_path, [("driver", 1)])
    assert done.redone <= DETECTORS


@pytest.mark.faults
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_runs_killed_at_random_are_resumed_to_the_same_bytes(tmp_path: Path, kind: str) -> None:
    done = list(do_rounds(tmp_path, [(kind, seed) for seed in range(ROUNDS)]))
    killed_midway = sum(0 < each.staged < 80 for each in done)
    print(f"{kind}: {len(done)} rounds, {killed_midway} in the middle of the shards")
    assert len(done) == ROUNDS
