"""Decisions against slow loops, MONAI, and confusion matrices worked by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medray.metrics import classes

MATRIX = np.array([[5, 1, 0], [2, 2, 0], [1, 0, 1]])


def test_a_matrix_by_hand():
    assert classes.accuracy(MATRIX) == pytest.approx(8 / 12)
    assert classes.class_recalls(MATRIX) == pytest.approx([5 / 6, 1 / 2, 1 / 2])
    assert classes.class_precisions(MATRIX) == pytest.approx([5 / 8, 2 / 3, 1])
    assert classes.balanced_accuracy(MATRIX) == pytest.approx((5 / 6 + 1) / 3)
    f1 = [2 * 5 / 14, 2 * 2 / 7, 2 * 1 / 3]
    assert classes.class_f1(MATRIX) == pytest.approx(f1)
    assert classes.macro_f1(MATRIX) == pytest.approx(np.mean(f1))


def test_confusion_matrix_equals_a_loop_and_monai():
    from monai.metrics import get_confusion_matrix

    rng = np.random.default_rng(0)
    labels, found = rng.integers(0, 4, 200), rng.integers(0, 4, 200)
    expected = np.zeros((4, 4), int)
    for true, given_ in zip(labels, found, strict=True):
        expected[true, given_] += 1
    matrix = classes.confusion_matrix(labels, found, num_classes=4)
    assert (matrix == expected).all()
    onehot = [torch.from_numpy(np.eye(4)[x]) for x in (found, labels)]
    tp = get_confusion_matrix(*onehot).numpy()[..., 0].sum(axis=0)
    assert (np.diag(matrix) == tp).all()


def test_absent_classes_do_not_count():
    matrix = np.array([[3, 1, 0], [0, 0, 0], [0, 0, 0]])
    assert classes.balanced_accuracy(matrix) == pytest.approx(3 / 4)
    assert classes.macro_f1(matrix) == pytest.approx((6 / 7 + 0) / 2)
    assert np.isnan(classes.class_f1(matrix)[2])
    empty = np.zeros((2, 2), int)
    assert all(
        np.isnan(one(empty))
        for one in (classes.accuracy, classes.balanced_accuracy, classes.macro_f1)
    )


def test_majority_baseline():
    labels, known = np.array([0, 0, 1, 2]), np.array([1, 1, 0])
    base = classes.majority_baseline(labels, known=known, num_classes=3)
    assert base["accuracy"] == 0.25
    assert base["balanced_accuracy"] == pytest.approx(1 / 3)
    assert base["macro_f1"] == pytest.approx((0 + 2 / 5 + 0) / 3)
    tie = classes.majority_baseline(labels, known=np.array([2, 0]), num_classes=3)
    assert tie["accuracy"] == 0.5


def test_operating_point_takes_the_middle_of_the_gap():
    point = classes.operating_point([0.1, 0.2, 0.6, 0.9], [0, 0, 1, 1])
    assert point.threshold == pytest.approx(0.4)
    assert (point.sensitivity, point.specificity, point.balanced_accuracy) == (1, 1, 1)


def test_operating_point_takes_the_widest_of_equal_gaps_then_the_lowest():
    # negatives 1, 3; positives 2, 5: cuts at (1, 2) and (3, 5) both give 0.75
    point = classes.operating_point([1, 2, 3, 5], [0, 1, 0, 1])
    assert point.threshold == 4
    assert classes.operating_point([1, 2, 3, 4], [0, 1, 0, 1]).threshold == 1.5


def test_operating_point_of_scores_that_mislead_or_say_nothing():
    backwards = classes.operating_point([1, 2, 3], [1, 0, 0])
    assert backwards.threshold == 1
    assert backwards.balanced_accuracy == 0.5
    flat = classes.operating_point([0.5, 0.5], [1, 0])
    assert flat.balanced_accuracy == 0.5


def test_operating_point_between_neighbouring_floats():
    high = float(np.nextafter(0.3, 1))
    point = classes.operating_point([0.3, high], [0, 1])
    assert point.threshold == high
    assert point.balanced_accuracy == 1


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=2, max_size=30))
def test_no_threshold_beats_the_operating_point(cases):
    scores = np.array([s for s, _ in cases], float)
    positive = np.array([p for _, p in cases])
    if positive.all() or not positive.any():
        with pytest.raises(ValueError, match="positive and negative"):
            classes.operating_point(scores, positive)
        return
    point = classes.operating_point(scores, positive)
    reached = [
        ((scores[positive] >= t).mean() + (scores[~positive] < t).mean()) / 2
        for t in np.arange(-0.5, 11, 0.5)
    ]
    assert point.balanced_accuracy == pytest.approx(max(reached))
    again = classes.sensitivity_specificity(scores, positive, threshold=point.threshold)
    assert again == (point.sensitivity, point.specificity)


def test_rates_without_cases_are_undefined():
    sensitivity, specificity = classes.sensitivity_specificity([0.2, 0.7], [0, 0], threshold=0.5)
    assert np.isnan(sensitivity)
    assert specificity == 0.5


def test_wrong_input_raises():
    with pytest.raises(ValueError, match="one decision a case"):
        classes.confusion_matrix([0, 1], [0], num_classes=2)
    with pytest.raises(ValueError, match=r"within 0 \.\. 1"):
        classes.confusion_matrix([0, 1], [0, 2], num_classes=2)
    with pytest.raises(ValueError, match="needs known labels"):
        classes.majority_baseline([0], known=[], num_classes=2)
