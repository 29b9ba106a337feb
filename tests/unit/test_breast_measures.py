"""Focal losses, pF1, aggregation to breasts, submissions."""

import math

import numpy as np
import pytest
import torch

from medray.datasets.submission import mammography_csv, pneumonia_csv
from medray.errors import ConfigError
from medray.losses.classification import binary_sums, mean_value
from medray.losses.focal import focal_batch_value, focal_sums
from medray.metrics.breast_rows import (
    aggregate,
    breast_numbers,
    choose_aggregation,
)
from medray.metrics.pf1 import best_f1, f1_at, probabilistic_f1


def logits_and_labels(count=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, 1, generator=generator, dtype=torch.float64) * 3
    return logits, torch.randint(0, 2, (count,), generator=generator)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.0, 1.0), (0.5, 0.0)])
def test_focal_is_the_published_formula_and_adds_over_parts(alpha, gamma):
    logits, labels = logits_and_labels()
    p = torch.sigmoid(logits[:, 0])
    of_truth = torch.where(labels == 1, p, 1 - p)
    weight = torch.where(labels == 1, alpha, 1 - alpha) if alpha else 1.0
    wanted = (weight * (1 - of_truth) ** gamma * -of_truth.log()).sum()
    sums = focal_sums(logits, labels, alpha=alpha, gamma=gamma)
    assert sums.tolist() == pytest.approx([float(wanted), 40.0], rel=1e-5)
    halves = focal_sums(logits[:13], labels[:13], alpha=alpha, gamma=gamma) + focal_sums(
        logits[13:], labels[13:], alpha=alpha, gamma=gamma
    )
    assert torch.allclose(sums, halves, rtol=1e-6)


def test_focal_without_discount_is_the_cross_entropy_and_unlabelled_count_nothing():
    logits, labels = logits_and_labels()
    labels[3] = -1
    plain = focal_sums(logits, labels, alpha=0.0, gamma=0.0)
    assert torch.allclose(plain, binary_sums(logits, labels))
    assert plain[1] == 39
    assert mean_value(focal_sums(logits[3:4], labels[3:4])) == 0


def test_focal_stays_finite_where_the_sigmoid_saturates():
    logits = torch.tensor([[300.0], [-300.0], [0.0]], requires_grad=True)
    total = focal_sums(logits, torch.tensor([0, 1, 1]))[0]
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(logits.grad).all()
    assert float(total.detach()) == pytest.approx(
        0.75 * 300 + 0.25 * 300 + 0.25 * 0.25 * math.log(2)
    )


def test_focal_batch_is_the_original_on_the_whole_step():
    logits, labels = logits_and_labels()
    mean = torch.nn.functional.binary_cross_entropy(
        torch.sigmoid(logits[:, 0]), labels.double(), reduction="mean"
    )
    wanted = 1.0 * (1 - torch.exp(-mean)) ** 1.0 * mean
    found = focal_batch_value(binary_sums(logits, labels))
    assert float(found) == pytest.approx(float(wanted), rel=1e-6)
    halves = binary_sums(logits[:9], labels[:9]) + binary_sums(logits[9:], labels[9:])
    assert float(focal_batch_value(halves)) == pytest.approx(float(wanted), rel=1e-6)


def test_losses_refuse_what_does_not_fit():
    logits, labels = logits_and_labels(4)
    with pytest.raises(ValueError, match="alpha must lie below 1"):
        focal_sums(logits, labels, alpha=1.0)
    with pytest.raises(ValueError, match="gamma must be >= 0"):
        focal_sums(logits, labels, gamma=-1.0)
    with pytest.raises(ValueError, match=r"logits must be \(batch, 1\)"):
        focal_sums(logits[:, 0], labels)


def test_pf1_by_hand_and_by_the_challenges_loop():
    assert probabilistic_f1(np.array([1.0, 0.0, 1.0]), np.array([1, 0, 0])) == pytest.approx(2 / 3)
    scores, truth = np.array([0.9, 0.4, 0.3, 1.4, -0.2]), np.array([1, 0, 1, 0, 1])
    cut = np.clip(scores, 0, 1)
    tp, fp = cut[truth == 1].sum(), cut[truth == 0].sum()
    precision, recall = tp / (tp + fp), tp / 3
    for beta in (0.5, 1.0, 2.0):
        wanted = (1 + beta**2) * precision * recall / (beta**2 * precision + recall)
        assert probabilistic_f1(scores, truth, beta=beta) == pytest.approx(wanted)
    assert math.isnan(probabilistic_f1(scores, np.zeros(5)))
    assert probabilistic_f1(np.zeros(5), truth) == 0.0


def test_calling_every_breast_ill_gives_the_published_value():
    truth = np.zeros(23_826)
    truth[:492] = 1
    assert probabilistic_f1(np.ones(23_826), truth) == pytest.approx(0.0405, abs=1e-4)


def test_best_f1_is_the_best_of_all_thresholds():
    rng = np.random.default_rng(0)
    for _ in range(20):
        truth = rng.random(30) < 0.3
        truth[0] = True
        scores = np.round(rng.random(30) * 0.6 + 0.4 * truth, 1)
        point = best_f1(scores, truth)
        tried = [f1_at(scores, truth, t) for t in np.linspace(-0.05, 1.05, 221)]
        assert point.f1 == pytest.approx(max(tried))
        assert f1_at(scores, truth, point.threshold) == pytest.approx(point.f1)
    assert best_f1(np.array([0.2, 0.8]), np.array([0, 1])).threshold == pytest.approx(0.5)
    with pytest.raises(ValueError, match="needs positive"):
        best_f1(np.array([0.2]), np.array([0]))


def row(key, patient, side, score, label, **more):
    ids = {"key": key, "patient_id": patient, "laterality": side}
    return {**ids, "score": score, "label": label, **more}


ROWS = [
    row("a", "p", "L", 0.9, 1, site=1, machine=49),
    row("b", "p", "L", 0.3, 1, site=1, machine=49),
    row("c", "p", "L", 0.6, 1, site=1, machine=49),
    row("d", "p", "R", 0.2, 0, site=1, machine=49),
    row("e", "q", "L", 0.5, 0, site=2, machine=21),
    row("f", "q", "R", 0.7, 1, site=2, machine=21),
]


def test_images_become_breasts():
    assert aggregate(ROWS, "mean").scores.tolist() == pytest.approx([0.6, 0.2, 0.5, 0.7])
    assert aggregate(ROWS, "max").scores.tolist() == pytest.approx([0.9, 0.2, 0.5, 0.7])
    assert aggregate(ROWS, "top2").scores.tolist() == pytest.approx([0.75, 0.2, 0.5, 0.7])
    assert aggregate(ROWS, "mean").labels.tolist() == [1, 0, 0, 1]
    alone = [row("x", "p", "", 0.1, 0), row("y", "p", "", 0.2, 1)]
    assert len(aggregate(alone, "mean").scores) == 2
    with pytest.raises(ValueError, match="unknown aggregation 'median'"):
        aggregate(ROWS, "median")
    with pytest.raises(ValueError, match="several labels"):
        aggregate([*ROWS, row("z", "p", "R", 0.1, 1)], "mean")


def test_a_patient_drawn_twice_counts_twice():
    once = aggregate(ROWS, "mean")
    again = aggregate([*ROWS, *[r for r in ROWS if r["patient_id"] == "q"]], "mean")
    assert again.scores.tolist() == pytest.approx([*once.scores[:2], 0.5, 0.5, 0.7, 0.7])


def test_numbers_of_breasts_sites_and_machines():
    numbers = breast_numbers(aggregate(ROWS, "max"), threshold=0.6)
    assert numbers["pf1"] == 1.0
    assert numbers["pf1_raw"] == pytest.approx(2 * 1.6 / (2.3 + 2))
    assert numbers["pf1_site_2"] == 1.0
    assert numbers["auroc_machine_49"] == 1.0
    same = breast_numbers(aggregate(ROWS, "max"), threshold=None)
    assert same["pf1"] == 1.0
    one_site = breast_numbers(aggregate(ROWS[:4], "max"), threshold=0.5)
    assert not [name for name in one_site if "site" in name or "machine" in name]


def test_aggregation_and_threshold_are_those_of_the_best_f1():
    chosen = choose_aggregation(
        [
            row("a", "p", "L", 0.9, 1),
            row("b", "p", "L", 0.1, 1),
            row("c", "q", "L", 0.6, 0),
            row("d", "q", "L", 0.6, 0),
        ]
    )
    assert chosen["aggregation"] == "max"
    assert chosen["threshold"] == pytest.approx(0.75)
    assert choose_aggregation([row("a", "p", "L", 0.9, 0)])["threshold"] == 0.5


def test_submissions():
    assert mammography_csv({("77", "R"): 0.25, ("10", "L"): 1}) == (
        "prediction_id,cancer\n10_L,1\n77_R,0.25\n"
    )
    with pytest.raises(ConfigError, match="L or R"):
        mammography_csv({("1", "B"): 0.2})
    with pytest.raises(ConfigError, match=r"0\.\.1"):
        mammography_csv({("1", "L"): float("nan")})
    boxes = np.array([[10.0, 20, 30, 60], [0, 0, 5, 5]])
    assert pneumonia_csv({"b": (boxes, [0.5, 0.75]), "a": ([], [])}) == (
        "patientId,PredictionString\na,\nb,0.75 0.0 0.0 5.0 5.0 0.5 10.0 20.0 20.0 40.0\n"
    )
    with pytest.raises(ConfigError, match="2 boxes and 1 scores"):
        pneumonia_csv({"b": (boxes, [0.5])})
