"""Matching of points, the recipe's parts against their formulas, resuming, and learning."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from scenesweep.model.card import ModelCard
from scenesweep.model.errors import ModelError
from scenesweep.model.evaluate import (
    PointComparison,
    best_point_scores,
    match_chips,
    match_points,
    score_points,
)
from scenesweep.model.files.checkpoint import Weights
from scenesweep.model.inference.detector import Detector
from scenesweep.model.labelled_chips import LabelledChips
from scenesweep.model.networks.network import build
from scenesweep.model.settings import DetectorSettings, Recipe
from scenesweep.model.training.batches import (
    band_statistics,
    class_counts,
    worker_batches,
)
from scenesweep.model.training.optimise import (
    average_decay,
    average_of,
    make_optimiser,
    make_schedule,
)
from scenesweep.model.training.train import Epoch, EpochProgress, Trainer, read_state
from tests.rasters import SMALL, make_card, paint_squares

STILL = {"turns": False, "band_jitter": 0.0}


@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 2**32 - 1))
def test_points_are_matched_optimally(predicted: int, true: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.random((predicted, 2)) * 30, rng.random((true, 2)) * 30
    left, right, distances = match_points(a, b, 10.0)
    assert len(set(left)) == len(left) == len(set(right))
    cost = np.linalg.norm(a[:, None] - b[None], axis=2)
    out = 1e4
    rows, columns = linear_sum_assignment(np.where(cost <= 10, cost, out))
    optimal = cost[rows, columns][cost[rows, columns] <= 10]
    assert len(distances) == len(optimal)
    assert distances.sum() == pytest.approx(optimal.sum(), abs=1e-6)
    assert (distances <= 10).all()


def test_figures_of_a_comparison() -> None:
    sample = PointComparison(
        np.array([[0.0, 0], [10, 0], [50, 50]]),
        np.array([0.9, 0.8, 0.3], np.float32),
        np.array([[1.0, 0], [10, 3], [90, 90]]),
    )
    scores = score_points([sample], radius=5, threshold=0.2)
    counts = scores.true_positives, scores.false_positives, scores.false_negatives
    assert counts == (2, 1, 1)
    assert scores.rmse == pytest.approx(math.sqrt(5))
    assert scores.precision == scores.recall == scores.f_score == pytest.approx(2 / 3)
    best = best_point_scores([sample], radius=5)
    assert best.threshold == 0.32
    assert best.f_score == pytest.approx(0.8)
    nothing = PointComparison(np.zeros((0, 2)), np.zeros(0, np.float32), np.zeros((0, 2)))
    assert score_points([nothing], radius=5, threshold=0.5).f_score == 0


@given(
    count=st.integers(1, 60),
    per_worker=st.integers(1, 5),
    world=st.integers(1, 4),
    seed=st.integers(0, 2**63),
)
def test_workers_share_every_batch_of_one(
    count: int, per_worker: int, world: int, seed: int
) -> None:
    batch = per_worker * world
    alone = worker_batches(count, batch=batch, seed=seed)
    together = [
        worker_batches(count, batch=batch, seed=seed, rank=r, world=world) for r in range(world)
    ]
    assert sorted(np.concatenate(alone).tolist()) == list(range(count))
    for number, whole in enumerate(alone):
        parts = [share[number] for share in together]
        assert len({len(part) for part in parts}) == 1
        joined = np.concatenate(parts).tolist()
        assert set(whole) <= set(joined)
        assert len(joined) - len(whole) < world


def test_statistics_of_a_training_set() -> None:
    data = squares(6, bands=3)
    mean, std = band_statistics(data.chips)
    assert mean == pytest.approx((data.chips / 255).mean(axis=(0, 2, 3)), abs=1e-4)
    assert std == pytest.approx((data.chips / 255).std(axis=(0, 2, 3)), abs=1e-4)
    assert class_counts(data, classes=3) == (data.objects, 0, 0)


def rates(steps: int, **recipe: Any) -> list[float]:
    settings = Recipe(learning_rate=0.01, **recipe)
    optimiser = make_optimiser(nn.Linear(2, 2), settings)
    schedule = make_schedule(optimiser, settings, steps=steps)
    seen = []
    for _ in range(steps):
        seen.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step() if len(seen) < steps else None
    return seen


def test_the_papers_schedule_falls_after_two_thirds_and_eight_ninths() -> None:
    seen = rates(90, optimiser="sgd", warmup=0.1)
    assert seen[:9] == pytest.approx([0.01 * (0.001 + 0.999 * step / 9) for step in range(9)])
    assert seen[9:60] == [0.01] * 51
    assert seen[60:80] == pytest.approx([0.001] * 20)
    assert seen[80:] == pytest.approx([0.0001] * 10)
    assert rates(9, optimiser="sgd", warmup=0)[0] == 0.01


def test_one_cycle_rises_and_falls_as_a_cosine() -> None:
    seen, peak = rates(101, warmup=0.21), 0.21 * 101 - 1
    first, last = 0.01 / 25, 0.01 / 25 / 1e4
    for step, rate in enumerate(seen):
        if step <= peak:
            expected = first + (0.01 - first) * (1 - math.cos(math.pi * step / peak)) / 2
        else:
            share = (step - peak) / (100 - peak)
            expected = last + (0.01 - last) * (1 + math.cos(math.pi * share)) / 2
        assert rate == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.1, 0.5])
@pytest.mark.parametrize("steps", [2, 10, 20])
def test_one_cycle_stands_short_runs_and_no_warm_up(warmup: float, steps: int) -> None:
    seen = rates(steps, warmup=warmup)
    assert all(0 < rate <= 0.01 * (1 + 1e-9) for rate in seen)
    assert seen[-1] < max(seen)


def test_weights_are_averaged_with_a_decay_that_warms_up() -> None:
    network = nn.BatchNorm1d(3)
    average = average_of(network, 0.5)
    assert average is not None
    expected = torch.zeros(3)
    for step in range(12):
        with torch.no_grad():
            network.weight.add_(torch.randn(3))
        network.running_mean = torch.full((3,), float(step))
        average.update_parameters(network)
        decay = average_decay(step, 0.5)
        assert decay == min(0.5, (1 + step) / (10 + step))
        weight = network.weight.detach()
        expected = torch.lerp(weight, expected, decay) if step else weight.clone()
    averaged = average.module.state_dict()
    assert torch.allclose(averaged["weight"], expected, atol=1e-6)
    assert 8 < float(averaged["running_mean"][0]) < 11  # buffers too
    assert average_of(network, 0) is None


def squares(chips: int, *, bands: int = 1, size: int = 64) -> LabelledChips:
    """Chips with bright squares of 8 to 14 px, painted over where smaller."""
    pixels, boxes = [], []
    for seed in range(chips):
        chip, truth = paint_squares(size, size, largest=14, seed=seed, count=6)
        big = truth[:, 2] - truth[:, 0] >= 8
        for x0, y0, x1, y1 in truth[~big].astype(int):
            chip[0, y0:y1, x0:x1] = 1
        pixels.append(np.repeat(chip, bands, axis=0))
        boxes.append(truth[big].astype(np.float32))
    return LabelledChips(
        tuple(f"chip{i}" for i in range(chips)),
        np.stack(pixels),
        tuple(boxes),
        tuple(np.zeros(len(b), np.int64) for b in boxes),
    )


def square_card(data: LabelledChips, **changes: Any) -> ModelCard:
    mean, std = band_statistics(data.chips)
    inference = {"score_threshold": 0.05, "nms_iou": 0.3}
    return make_card(scaling={"mean": mean, "std": std}, inference=inference, **changes)


def by_f_score(card: ModelCard, data: LabelledChips, weights: dict[str, Tensor]) -> float:
    network = build(card)
    network.load_state_dict(weights)
    detector = Detector(network, card, DetectorSettings(device="cpu"))
    return match_chips(detector, data, radius_px=3).best().f_score


def short(metric: Callable[[dict[str, Tensor]], float], **recipe: Any) -> Trainer:
    """A trainer on six chips of two squares, for runs whose quality does not matter."""
    data = squares(6)
    settings = Recipe(**({"epochs": 4, "batch": 3, "learning_rate": 1e-3} | recipe))
    return Trainer(square_card(data), data, settings, validate=metric)


def zero(_: dict[str, Tensor]) -> float:
    return 0.0


def test_training_learns_to_find_squares() -> None:
    data = squares(24)
    card = square_card(data)
    recipe = Recipe(epochs=14, batch=4, learning_rate=4e-3, ema_decay=0.8)
    trainer = Trainer(card, data, recipe, validate=partial(by_f_score, card, data))
    log = list(trainer.epochs())
    assert [epoch.number for epoch in log] == list(range(1, 15))
    assert log[-1].losses["classification"] < log[0].losses["classification"] / 3
    assert by_f_score(card, data, trainer.best) == max(epoch.metric or 0 for epoch in log)
    assert by_f_score(card, data, trainer.best) > 0.9


@pytest.mark.parametrize(
    "recipe",
    [
        {},
        {"optimiser": "sgd", "ema_decay": 0.0, "accumulate": 2},
    ],
    ids=["adamw", "sgd"],
)
def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Path, recipe: dict[str, Any]) -> None:
    metrics = {"count": 0.0}

    def rising(_: dict[str, Tensor]) -> float:
        metrics["count"] += 1
        return metrics["count"]

    whole = short(rising, **recipe)
    straight = [epoch.losses for epoch in whole.epochs()]
    begun = short(rising, **recipe)
    for epoch in begun.epochs():
        begun.save(tmp_path / "state.pt")
        if epoch.number == 2:
            break
    torch.rand(7)
    resumed = short(rising, **recipe)
    resumed.resume(read_state(tmp_path / "state.pt"))
    assert [epoch.number for epoch in resumed.epochs()] == [3, 4]
    assert [epoch.losses for epoch in resumed.history] == straight
    assert resumed.best.keys() == whole.best.keys()
    for name, value in whole.best.items():
        assert torch.equal(value, resumed.best[name]), name
    assert not list(tmp_path.glob(".*"))


def test_another_run_is_not_resumed(tmp_path: Path) -> None:
    begun = short(zero)
    begun.save(tmp_path / "state.pt")
    other = short(zero, epochs=5)
    with pytest.raises(ModelError, match=r"another recipe.*new folder"):
        other.resume(read_state(tmp_path / "state.pt"))
    (tmp_path / "broken.pt").write_bytes(b"PK no")
    with pytest.raises(ModelError, match=r"broken.pt: expected a checkpoint"):
        read_state(tmp_path / "broken.pt")


def test_a_run_is_resumed_whatever_the_card_says_about_results() -> None:
    """A checkpoint from before the card had these fields is of the same run."""
    data, recipe = squares(6), Recipe(epochs=4, batch=3)
    state = Trainer(square_card(data), data, recipe, validate=zero).state()
    fields = json.loads(state["run"]["card"])
    assert not {"sizes_meaningful", "calibration"} & fields.keys()
    knots = {"square": {"score": [0.5], "probability": [0.5]}}
    later = square_card(data, sizes_meaningful=False, calibration=knots)
    resumed = Trainer(later, data, recipe, validate=zero)
    resumed.resume(state)
    assert not resumed.history


def test_accumulated_batches_equal_a_big_one() -> None:
    """Chips with equal numbers of positive anchors, and no statistics over a batch."""
    chip = np.full((1, 64, 64), 1, np.uint8)
    chips = np.stack([np.roll(chip, 0)] * 4)
    boxes = []
    for number, (x, y) in enumerate([(10, 14), (26, 14), (14, 30), (34, 38)]):
        chips[number, 0, y : y + 12, x : x + 12] = 200
        boxes.append(np.array([[x, y, x + 12, y + 12]], np.float32))
    labels = tuple(np.zeros(1, np.int64) for _ in boxes)
    data = LabelledChips(tuple("abcd"), chips, tuple(boxes), labels)
    card = square_card(data, architecture=SMALL.model_copy(update={"backbone_norm": "frozen"}))
    ends = []
    for batch, accumulate in ((4, 1), (2, 2), (1, 4)):
        recipe = Recipe(
            epochs=2,
            batch=batch,
            accumulate=accumulate,
            optimiser="sgd",
            precision="float32",
            warmup=0,
            augmentation=STILL,
        )
        trainer = Trainer(card, data, recipe, validate=zero)
        log = list(trainer.epochs())
        ends.append((trainer.learner.weights(), log[-1].losses))
    for weights, losses in ends[1:]:
        assert losses == pytest.approx(ends[0][1], rel=1e-4)
        for name, value in weights.items():
            assert torch.allclose(value, ends[0][0][name], atol=1e-5), name


def test_the_best_weights_are_kept_and_a_stalled_run_stops() -> None:
    metrics = iter([0.3, 0.5, 0.4, 0.5, 0.2, 0.9])
    seen: list[dict[str, Tensor]] = []

    def given(weights: dict[str, Tensor]) -> float:
        seen.append(weights)
        return next(metrics)

    trainer = short(given, epochs=6, early_stop=3, batch=6)
    assert [epoch.metric for epoch in trainer.epochs()] == [0.3, 0.5, 0.4, 0.5, 0.2]
    assert trainer.done
    assert all(torch.equal(value, trainer.best[name]) for name, value in seen[1].items())


def test_criterion_that_explode_are_an_error_that_says_where() -> None:
    trainer = short(zero, learning_rate=1e30, clip_norm=1e30, warmup=0, optimiser="sgd")
    with pytest.raises(ModelError, match=r"epoch \d+, \d+% done: the losses are no longer finite"):
        list(trainer.epochs())


def test_training_begins_with_given_weights_and_says_what_stays_random() -> None:
    data = squares(6)
    card = square_card(data)
    source = build(card)
    given = {k: v for k, v in source.state_dict().items() if not k.startswith("head")}
    recipe = Recipe(epochs=1, batch=6)
    trainer = Trainer(card, data, recipe, validate=zero, initial=Weights(given, ("1",)))
    begun = trainer.learner.network.state_dict()
    assert all(torch.equal(value, begun[name]) for name, value in given.items())
    assert trainer.learner.left_random
    assert all(name.startswith("head") for name in trainer.learner.left_random)


def test_bfloat16_is_an_option() -> None:
    (epoch,) = short(zero, epochs=1, batch=6, precision="bfloat16").epochs()
    assert all(math.isfinite(value) and value > 0 for value in epoch.losses.values())


def test_progress_goes_through_an_epoch_and_figures_are_told() -> None:
    told: list[EpochProgress] = []
    trainer = short(zero, epochs=1, batch=2)
    (epoch,) = trainer.epochs(told.append)
    assert [progress.number for progress in told] == [1, 1, 1]
    assert [progress.share for progress in told] == pytest.approx([1 / 3, 2 / 3, 1])
    assert told[-1].losses == pytest.approx(epoch.losses)
    assert isinstance(epoch, Epoch)
    assert epoch.chips_per_second > 0
    assert epoch.losses.keys() == {"classification", "boxes"}


def test_impossible_runs_are_refused() -> None:
    data = squares(2)
    none = LabelledChips((), data.chips[:0], (), ())
    with pytest.raises(ModelError, match="at least one chip"):
        Trainer(square_card(data), none, Recipe(), validate=zero)
