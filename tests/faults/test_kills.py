"""Runs that are killed end in the bytes of a run that was not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.kills import KINDS, SHARDS, do_rounds

pytest.importorskip("ray")
ROUNDS = 25


def test_a_killed_run_is_resumed_to_the_same_bytes(tmp_path: Path) -> None:
    """One round without its driver; the long test has the others."""
    (done,) = do_rounds(tmp_path, [("driver", 1)])
    assert 0 < done.staged < SHARDS  # the kill came in the middle; `do_round` checks the rest


@pytest.mark.faults
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_runs_killed_at_random_are_resumed_to_the_same_bytes(tmp_path: Path, kind: str) -> None:
    done = list(do_rounds(tmp_path, [(kind, seed) for seed in range(ROUNDS)]))
    redone = max(each.redone for each in done)
    print(f"{kind}: {len(done)} rounds, {redone} shards detected twice at most")
    assert len(done) == ROUNDS
