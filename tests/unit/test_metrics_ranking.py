"""Ranking against all pairs, scipy's Mann-Whitney, and torch's and MONAI's values."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from medray.metrics import ranking

SMALL = settings(max_examples=60, deadline=None)
# few distinct scores: ties are the rule
CASES = st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=40)


def split(cases):
    return np.array([s for s, _ in cases], float), np.array([p for _, p in cases])


def slow_auroc(scores, positive):
    wins = [
        1.0 if a > b else 0.5 if a == b else 0.0
        for a in scores[positive]
        for b in scores[~positive]
    ]
    return float(np.mean(wins))


def slow_average_precision(scores, positive):
    area, before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        found = scores >= threshold
        recall = positive[found].sum() / positive.sum()
        area += (recall - before) * positive[found].mean()
        before = recall
    return area


@SMALL
@given(CASES)
def test_areas_equal_slow_ones_and_any_order_gives_them(cases):
    scores, positive = split(cases)
    if positive.all() or not positive.any():
        assert np.isnan(ranking.auroc(scores, positive))
        assert np.isnan(ranking.average_precision(scores, positive))
        return
    assert ranking.auroc(scores, positive) == pytest.approx(slow_auroc(scores, positive))
    expected = slow_average_precision(scores, positive)
    assert ranking.average_precision(scores, positive) == pytest.approx(expected)
    turned = scores[::-1], positive[::-1]
    assert ranking.auroc(*turned) == pytest.approx(ranking.auroc(scores, positive))
    assert ranking.average_precision(*turned) == pytest.approx(expected)
    assert ranking.auroc(-scores, positive) == pytest.approx(1 - ranking.auroc(scores, positive))


def test_auroc_equals_scipy_and_monai():
    from monai.metrics import compute_roc_auc

    rng = np.random.default_rng(0)
    scores, positive = np.round(rng.normal(size=300), 1), rng.random(300) < 0.3
    scores[positive] += 0.7
    u = stats.mannwhitneyu(scores[positive], scores[~positive]).statistic
    value = ranking.auroc(scores, positive)
    assert value == pytest.approx(u / (positive.sum() * (~positive).sum()))
    monai = compute_roc_auc(torch.from_numpy(scores), torch.from_numpy(positive.astype(int)))
    assert value == pytest.approx(float(monai))


def test_small_examples():
    assert ranking.auroc([1, 2, 3], [0, 1, 1]) == 1
    assert ranking.auroc([3, 2, 1], [0, 1, 1]) == 0
    assert ranking.auroc([1, 1, 1, 1], [0, 1, 1, 0]) == 0.5
    # the documented example of scikit-learn's average_precision_score
    assert ranking.average_precision([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]) == pytest.approx(5 / 6)
    assert ranking.auroc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]) == 0.75


@SMALL
@given(CASES)
def test_curves_hold_the_rates_at_their_thresholds(cases):
    scores, positive = split(cases)
    if positive.all() or not positive.any():
        return
    roc, pr = ranking.roc_curve(scores, positive), ranking.pr_curve(scores, positive)
    for threshold, fpr, tpr in zip(
        roc.thresholds, roc.false_positive_rate, roc.true_positive_rate, strict=True
    ):
        assert tpr == pytest.approx((scores[positive] >= threshold).mean())
        assert fpr == pytest.approx((scores[~positive] >= threshold).mean())
    for threshold, recall, precision in zip(pr.thresholds, pr.recall, pr.precision, strict=True):
        assert recall == pytest.approx((scores[positive] >= threshold).mean())
        assert precision == pytest.approx(positive[scores >= threshold].mean())
    area = np.trapezoid(roc.true_positive_rate, roc.false_positive_rate)
    assert area == pytest.approx(ranking.auroc(scores, positive))
    assert (roc.false_positive_rate[0], roc.true_positive_rate[0]) == (0, 0)
    assert (roc.false_positive_rate[-1], roc.true_positive_rate[-1]) == (1, 1)


def test_one_vs_rest_and_macro():
    from monai.metrics import compute_roc_auc

    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 90)
    scores = rng.random((90, 3)) + 0.5 * np.eye(3)[labels]
    each = ranking.one_vs_rest(ranking.auroc, scores, labels)
    assert each == pytest.approx([slow_auroc(scores[:, c], labels == c) for c in range(3)])
    onehot = torch.from_numpy(np.eye(3)[labels])
    monai = compute_roc_auc(torch.from_numpy(scores), onehot, average="macro")
    assert ranking.macro_auroc(scores, labels) == pytest.approx(float(monai))
    ap = [slow_average_precision(scores[:, c], labels == c) for c in range(3)]
    assert ranking.macro_average_precision(scores, labels) == pytest.approx(np.mean(ap))


def test_a_class_that_is_missing():
    scores = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.6, 0.3, 0.1], [0.1, 0.6, 0.3]])
    labels = np.array([0, 1, 0, 1])
    assert np.isnan(ranking.one_vs_rest(ranking.auroc, scores, labels)[2])
    assert ranking.macro_auroc(scores, labels) == 1
    assert np.isnan(ranking.macro_auroc(scores, labels, classes=[0, 1, 2]))
    assert np.isnan(ranking.macro_auroc(scores, np.zeros(4, int)))


def test_wrong_input_raises():
    with pytest.raises(ValueError, match="one score a case"):
        ranking.auroc([1.0, 2.0], [1])
    with pytest.raises(ValueError, match="1 of 2 scores not finite"):
        ranking.auroc([1.0, np.nan], [1, 0])
    with pytest.raises(ValueError, match="truth must be 0 or 1"):
        ranking.auroc([1.0, 2.0], [2, 0])
    with pytest.raises(ValueError, match="positive and negative cases"):
        ranking.roc_curve([1.0, 2.0], [1, 1])
    with pytest.raises(ValueError, match="needs positive cases"):
        ranking.pr_curve([1.0, 2.0], [0, 0])
    with pytest.raises(ValueError, match="class indices below 2"):
        ranking.macro_auroc(np.ones((2, 2)), np.array([0, 2]))
    with pytest.raises(ValueError, match=r"\(cases, classes\) scores"):
        ranking.macro_auroc(np.ones(2), np.array([0, 1]))
