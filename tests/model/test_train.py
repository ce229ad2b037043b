"""Losses, targets, metrics, and that training learns."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torchvision.ops import sigmoid_focal_loss

from model.assign import BACKGROUND, IGNORED, assign_max_iou
from model.detector import Detector
from model.evaluate import PointSample, best_points, match_points, point_samples, score_points
from model.losses import LossSettings, detection_losses
from model.retinanet import anchors, build
from model.settings import DetectorSettings, Recipe
from model.train import Epoch, TrainingSet, band_statistics, train, turn
from tests.rasters import make_card, paint_squares


@pytest.mark.parametrize(("p", "expected"), [(0.9, 0.00026), (0.1, 0.4667), (0.99, 2.5e-7)])
def test_focal_loss_has_the_published_values(p: float, expected: float) -> None:
    """The worked example that goes with the paper, alpha 0.25 and gamma 2, as it is rounded."""
    logit = torch.tensor([math.log(p / (1 - p))])
    loss = sigmoid_focal_loss(
        logit, torch.ones(1), alpha=LossSettings().alpha, gamma=LossSettings().gamma
    )
    assert float(loss) == pytest.approx(expected, rel=0.02)


def test_anchors_get_box_background_or_nothing() -> None:
    grid = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 22], [0, 0, 10, 25], [50, 50, 60, 60]])
    boxes = torch.tensor([[0.0, 0, 10, 10]])
    assert assign_max_iou(grid, boxes).tolist() == [0, IGNORED, IGNORED, BACKGROUND]
    assert assign_max_iou(grid, torch.zeros(0, 4)).tolist() == [BACKGROUND] * 4
    far = torch.tensor([[48.0, 48, 52, 52]])
    assert assign_max_iou(grid, far).tolist() == [BACKGROUND] * 3 + [0]


def test_ignored_anchors_and_confident_truths_cost_nothing() -> None:
    card = make_card()
    grid = torch.cat(anchors(card.architecture, 64))
    aside = torch.tensor([1.0, 0, 1, 0])
    truth = [(grid[37:38] + aside, torch.zeros(1, dtype=torch.int64))]
    match = assign_max_iou(grid, truth[0][0])
    logits = torch.full((1, len(grid), 1), -12.0)
    logits[0, match >= 0] = 12.0
    deltas = torch.zeros(1, len(grid), 4)
    losses = detection_losses(logits, deltas, grid, truth, LossSettings())
    assert float(losses.classification) < 1e-4
    ignored = torch.nonzero(match == IGNORED)
    assert len(ignored) > 0
    logits[0, ignored] = 12.0
    again = detection_losses(logits, deltas, grid, truth, LossSettings())
    assert float(again.total) == float(losses.total)
    empty = [(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))]
    nothing = detection_losses(torch.full_like(logits, -12.0), deltas, grid, empty, LossSettings())
    assert float(nothing.total) < 1e-4


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
    sample = PointSample(
        np.array([[0.0, 0], [10, 0], [50, 50]]),
        np.array([0.9, 0.8, 0.3], np.float32),
        np.array([[1.0, 0], [10, 3], [90, 90]]),
    )
    scores = score_points([sample], radius=5, threshold=0.2)
    counts = scores.true_positives, scores.false_positives, scores.false_negatives
    assert counts == (2, 1, 1)
    assert scores.rmse == pytest.approx(math.sqrt(5))
    assert scores.precision == scores.recall == scores.f_score == pytest.approx(2 / 3)
    best = best_points([sample], radius=5)
    assert best.threshold == 0.32
    assert best.f_score == pytest.approx(0.8)
    nothing = PointSample(np.zeros((0, 2)), np.zeros(0, np.float32), np.zeros((0, 2)))
    assert score_points([nothing], radius=5, threshold=0.5).f_score == 0


@pytest.mark.parametrize("quarter", range(8))
def test_boxes_follow_their_pixels_when_turned(quarter: int) -> None:
    chip = np.zeros((1, 32, 32), np.uint8)
    chip[0, 3:9, 20:25] = 255
    boxes = np.array([[20, 3, 25, 9]], np.float32)
    turned, moved = turn(chip, boxes, quarter=quarter)
    x0, y0, x1, y1 = moved[0].astype(int)
    assert (turned[0, y0:y1, x0:x1] == 255).all()
    assert turned.sum() == 255 * (x1 - x0) * (y1 - y0)


def test_training_learns_to_find_squares() -> None:
    card = make_card(inference={"score_threshold": 0.05, "nms_iou": 0.3})
    chips, boxes = [], []
    for seed in range(24):
        pixels, truth = paint_squares(64, 64, largest=14, seed=seed, count=6)
        big = truth[:, 2] - truth[:, 0] >= 8
        for x0, y0, x1, y1 in truth[~big].astype(int):
            pixels[0, y0:y1, x0:x1] = 1
        chips.append(pixels)
        boxes.append(truth[big].astype(np.float32))
    labels = [np.zeros(len(b), np.int64) for b in boxes]
    data = TrainingSet(np.stack(chips), boxes, labels)
    mean, std = band_statistics(data.chips)
    scaling = card.scaling.model_copy(update={"mean": mean, "std": std})
    card = card.model_copy(update={"scaling": scaling})
    centres = [((b[:, :2] + b[:, 2:]) / 2).astype(np.float64) for b in boxes]
    log: list[Epoch] = []

    def judge(weights: dict[str, torch.Tensor]) -> float:
        network = build(card)
        network.load_state_dict(weights)
        detector = Detector(network, card, DetectorSettings(device="cpu"), chip_px=64)
        return best_points(point_samples(detector, data.chips, centres), radius=3).f_score

    recipe = Recipe(epochs=14, batch=4, learning_rate=4e-3, ema_decay=0.8)
    weights = train(card, data, recipe, judge=judge, on_epoch=log.append)
    assert log[-1].classification_loss < log[0].classification_loss / 3
    assert judge(weights) == max(epoch.metric for epoch in log)
    assert judge(weights) > 0.9
