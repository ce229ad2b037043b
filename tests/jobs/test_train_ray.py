"""Training on Ray: two workers share the work, and the loss of one costs an epoch at most."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

pytest.importorskip("ray")
import torch
from ray.train.torch import TorchTrainer

from scenesweep.jobs.training.ray import (
    _last_state,
    _work,
    check_shared,
    cpus_beside_gpu,
    sees,
    train_on_ray,
)
from scenesweep.jobs.training.run import LOG, TrainingRun
from scenesweep.model.evaluate import Rule
from scenesweep.model.settings import Recipe
from scenesweep.model.training.train import Trainer
from scenesweep.pipeline.engine.ray import ray_session
from scenesweep.pipeline.errors import ModelError, OutputError, UsageError
from tests.model.training.test_train import square_card, squares

# Ray Train makes a context of Ray Data, which warns of its own fields.
pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning:ray.*")

EPOCHS = 4


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with ray_session("local"):
        yield


class LabelRows:
    """Called on every worker after every epoch: notes who is there, and kills one once.

    Each worker writes the sum of its weights and its process id to a file of its own.
    """

    def __init__(self, folder: Path, *, kill_after: int) -> None:
        self.folder, self.kill_after = folder, kill_after

    def __call__(self, trainer: Trainer) -> None:
        epoch = len(trainer.history)
        weights = [p.detach().double() for p in trainer.learner.network.parameters()]
        digest = [float(w.sum()) for w in weights] + [float(w.abs().sum()) for w in weights]
        note = {"epoch": epoch, "world": trainer.world, "pid": os.getpid(), "weights": digest}
        with (self.folder / f"rank{trainer.rank}.jsonl").open("a") as file:
            file.write(json.dumps(note) + "\n")
        killed = self.folder / "killed"
        if trainer.rank == 1 and epoch == self.kill_after and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def make_run(folder: Path, **recipe: Any) -> TrainingRun:
    data = squares(8)
    settings = Recipe(**({"epochs": EPOCHS, "batch": 4, "precision": "float32"} | recipe))
    return TrainingRun(square_card(data), settings, folder, Rule(0.5, None))


def read_notes(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_killed_worker_costs_an_epoch_at_most(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    run = make_run(tmp_path / "run")
    marks = LabelRows(tmp_path, kill_after=2)
    state = train_on_ray(run, squares(8), squares(4), workers=2, after_epoch=marks)
    assert (tmp_path / "killed").exists()
    assert [epoch["number"] for epoch in state["history"]] == list(range(1, EPOCHS + 1))
    logged = read_notes(run.folder / LOG)
    assert logged == state["history"]
    for number in range(1, EPOCHS + 1):  # the log of the first worker is the command's
        assert any(f"epoch {number} of {EPOCHS}: class" in line for line in caplog.messages)
    first, second = (read_notes(tmp_path / f"rank{rank}.jsonl") for rank in range(2))
    assert {note["world"] for note in first + second} == {2}
    assert len({note["pid"] for note in first}) == len({note["pid"] for note in second}) == 2
    # The first worker may not have kept the last epoch yet: then it is done again.
    done = [note["epoch"] for note in second]
    assert done in ([1, 2, 3, 4], [1, 2, 2, 3, 4])
    weights = {note["epoch"]: note["weights"] for note in first}
    for note in first + second:  # workers agree, and so do an epoch and its repetition
        assert note["weights"] == weights[note["epoch"]]
    assert all(torch.isfinite(value).all() for value in state["best"].values())


def test_what_the_user_has_to_mend_ends_a_run_at_once(tmp_path: Path) -> None:
    """A worker that raised would be started again, to no end."""

    class Trained:
        def fit(self) -> None:
            _work({"run": run, "threads": 1, "after_epoch": None})

    run = make_run(tmp_path)
    with pytest.raises(ModelError, match="expected labelled chips"):
        _last_state(cast(TorchTrainer, Trained()), run)


def test_a_full_disk_on_a_worker_ends_a_run_as_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Trained:
        def fit(self) -> None:
            _work({"run": run, "threads": 1, "after_epoch": None})

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run = make_run(tmp_path)
    monkeypatch.setattr("scenesweep.jobs.training.ray.fit", refuse)
    monkeypatch.setattr("scenesweep.jobs.training.ray.open_chips", lambda _: squares(2))
    with pytest.raises(OutputError, match=r"No space left on device; no epoch was saved"):
        _last_state(cast(TorchTrainer, Trained()), run)


def test_more_workers_than_the_cluster_has_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path, batch=1000)
    with pytest.raises(UsageError, match=r"--workers 1000: expected at most"):
        train_on_ray(run, squares(2), squares(2), workers=1000)


def test_a_node_that_does_not_see_the_folder_is_named_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_shared(tmp_path / "run")  # the node of this test sees it
    assert list((tmp_path / "run").iterdir()) == []
    answers = [("10.0.0.1", True), ("10.0.0.2", False)]
    monkeypatch.setattr("scenesweep.jobs.training.ray._ask_nodes", lambda *_: answers)
    with pytest.raises(UsageError, match=r"every node of the cluster sees; 10\.0\.0\.2 cannot"):
        check_shared(tmp_path / "run")
    assert not sees(tmp_path / "none", "token")


def test_a_gpu_gets_the_cpus_that_every_node_has_for_it() -> None:
    assert cpus_beside_gpu([{"CPU": 64, "GPU": 8}, {"CPU": 16, "GPU": 4}, {"CPU": 64}]) == 4
    assert cpus_beside_gpu([{"CPU": 64, "GPU": 1}]) == 9
    assert cpus_beside_gpu([{"CPU": 1, "GPU": 2}]) == 1
