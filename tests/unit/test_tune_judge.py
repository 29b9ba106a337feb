"""A planted optimum is found on cached rows; folds keep patients together; the choice is honest."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from medray.boxes import class_nms, scale_boxes
from medray.engine.tune_judge import (
    best_of,
    fold_values,
    held_out_value,
    interval,
    judge_points,
    patient_folds,
    refined,
)
from medray.engine.tune_space import grid_points
from medray.errors import ConfigError
from medray.learning import Choice, Objective
from medray.metrics import mask_rows
from medray.metrics.box_matching import box_row
from medray.preprocess.components import largest_component
from medray.tasks import get_recipe

LUNG = get_recipe("lung_detection")
MASKS = get_recipe("pancreas_segmentation")
HP = SimpleNamespace(nms_iou=0.6, most_boxes=100)


def planted_rows(rng, *, num=10, threshold=0.4, scale=0.9):
    """Boxes too large by 1 / scale, doubles that overlap by half, noise below the threshold."""
    rows = []
    for number in range(num):
        truth = np.array([[30.0, 40.0, 70.0, 100.0], [110.0, 30.0, 150.0, 80.0]])
        found = scale_boxes(truth, 1 / scale)
        doubles = found + np.array([8.0, 0, 8.0, 0])  # IoU 0.69 and more
        noise = rng.uniform(0, 100, (6, 2))
        noise = np.concatenate([noise, noise + rng.uniform(20, 50, (6, 2))], axis=1)
        boxes = np.concatenate([found, doubles, noise])
        scores = np.concatenate(
            [
                rng.uniform(threshold + 0.03, 1, 2),
                rng.uniform(threshold + 0.01, threshold + 0.03, 2),
                rng.uniform(0.01, threshold - 0.01, 6),
            ]
        )
        row = box_row(boxes, scores, truth)
        rows.append({"key": f"{number}", "patient_id": f"P{number // 2}", "label": -1, **row})
    return rows


def judged_of(recipe, rows, space, metric, hp=HP):
    points = grid_points(space)
    folds = patient_folds(rows, 5)
    return judge_points(recipe.learning, hp, rows, folds, metric, points), folds


def test_a_planted_optimum_of_boxes_is_found_within_a_grid_step():
    rows = planted_rows(np.random.default_rng(0))
    space = {**LUNG.learning.sweep.space, "threshold": Choice((0.2, 0.3, 0.35, 0.4, 0.45, 0.6))}
    objective = LUNG.learning.sweep.objective
    judged, _ = judged_of(LUNG, rows, space, objective.metric)
    chosen = judged[best_of(judged, objective, space)]
    assert chosen["params"]["threshold"] == pytest.approx(0.4, abs=0.051)
    assert chosen["params"]["box_scale"] == pytest.approx(0.9, abs=0.051)
    assert chosen["params"]["nms_iou"] <= 0.6
    assert chosen["value"] > 0.95
    as_trained = [j for j in judged if j["params"]["box_scale"] == 1.0]
    assert chosen["value"] > max(j["value"] for j in as_trained) + 0.1


def test_refining_raw_boxes_is_what_the_model_does():
    rng = np.random.default_rng(1)
    boxes = rng.uniform(0, 100, (40, 2))
    boxes = np.round(np.concatenate([boxes, boxes + rng.uniform(20, 60, (40, 2))], axis=1), 2)
    scores = np.round(rng.uniform(0, 1, 40), 6)
    truth = boxes[:3] + 1
    raw = {"patient_id": "a", **box_row(boxes, scores, truth)}
    kept = class_nms(boxes, scores, np.zeros(40), iou_threshold=0.4)
    direct = box_row(scale_boxes(boxes[kept], 0.9), scores[kept], truth)
    made = refined(LUNG.learning, [raw], {"nms_iou": 0.4, "box_scale": 0.9}, HP)[0]
    assert {name: made[name] for name in direct} == direct


def test_classes_leave_one_another_alone():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 9, 10.0]])
    kept = class_nms(boxes, np.array([0.5, 0.9, 0.8]), np.array([0, 1, 0]), iou_threshold=0.5)
    assert kept.tolist() == [1, 2]


def mask_row(number, *, threshold):
    """Return the columns of one case: a ball of low probabilities, a second one far away."""
    grid = np.stack(np.meshgrid(*[np.arange(24)] * 3, indexing="ij"), axis=-1)
    distance = np.linalg.norm(grid - 8, axis=-1)
    probs = np.clip(threshold + (6 - distance) * 0.05, 0, 0.99)
    far = np.linalg.norm(grid - 20, axis=-1) <= 2
    probs[far] = 0.95
    truth = distance <= 6
    levels = np.minimum(probs * 128, 127).astype(np.uint8)
    counts = mask_rows.level_counts(levels, truth, largest_component)
    return {
        "key": f"{number}",
        "patient_id": f"P{number}",
        "label": -1,
        "found_true": counts["native_true"],
        "found_false": counts["native_false"],
        **counts,
        "voxel_ml": 0.001,
    }


def test_a_planted_threshold_and_stray_part_are_found_on_the_original_grid():
    rows = [mask_row(n, threshold=0.3125) for n in range(6)]
    space = dict(MASKS.learning.sweep.space)
    objective = MASKS.learning.sweep.objective
    judged, _ = judged_of(MASKS, rows, space, objective.metric, None)
    chosen = judged[best_of(judged, objective, space)]
    assert chosen["params"]["threshold"] == pytest.approx(0.3125, abs=1 / 32)
    assert chosen["params"]["parts"] == "largest"
    assert chosen["value"] == pytest.approx(1.0, abs=0.02)
    assert abs(chosen["metrics"]["native_volume_error_ml"]) < 0.05


def test_counts_by_level_are_those_of_masks():
    rng = np.random.default_rng(2)
    probs = rng.random((6, 7, 8)).astype(np.float32)
    truth = rng.random((6, 7, 8)) > 0.5
    levels = np.minimum(probs * 128, 127).astype(np.uint8)
    row = mask_rows.level_counts(levels, truth, largest_component)
    for threshold in (0.25, 0.5, 0.875):
        mask = probs >= threshold
        counts = mask_rows.native_counts(row, threshold)
        assert counts.tolist() == [
            int((mask & truth).sum()),
            int((mask & ~truth).sum()),
            int((~mask & truth).sum()),
        ]
        part = largest_component(mask.astype(np.uint8)) > 0
        counts = mask_rows.native_counts(row, threshold, largest_alone=True)
        assert counts[:2].tolist() == [int((part & truth).sum()), int((part & ~truth).sum())]


def test_the_largest_part_is_kept():
    mask = np.zeros((4, 8, 8), np.uint8)
    mask[1, 1:3, 1:3] = 1
    mask[2, 5, 5] = 1
    kept = largest_component(mask)
    assert kept.sum() == 4
    assert kept[1, 1, 1]
    assert largest_component(np.zeros_like(mask)).sum() == 0


def test_patients_stay_in_one_fold_and_labels_are_dealt_out():
    rows = [{"patient_id": f"P{n // 2}", "label": n // 2 % 2} for n in range(40)]
    folds = patient_folds(rows, 5)
    assert set(folds) == set(range(5))
    for n in range(0, 40, 2):
        assert folds[n] == folds[n + 1]
    for fold in range(5):
        labels = [r["label"] for r, f in zip(rows, folds, strict=True) if f == fold]
        assert set(labels) == {0, 1}
    assert patient_folds(rows[:2], 5) == [0, 0]


def point(value, folds, **params):
    return {"params": params, "value": value, "folds": folds}


def test_of_a_plateau_the_middle_is_chosen():
    space = {"t": Choice((1, 2, 3, 4, 5, 6))}
    values = [0.1, 0.9, 0.9, 0.9, 0.2, None]
    judged = [point(v, [v], t=n + 1) for n, v in enumerate(values)]
    assert judged[best_of(judged, Objective("x"), space)]["params"] == {"t": 3}
    assert judged[best_of(judged, Objective("x", "min"), space)]["params"] == {"t": 1}
    with pytest.raises(ConfigError, match="x is undefined"):
        best_of([point(None, [None], t=1)], Objective("x"), space)


def test_the_held_out_value_is_below_what_noise_gives():
    """Where every point is noise, the best one looks good, held out it does not."""
    rng = np.random.default_rng(0)
    space = {"t": Choice(tuple(range(200)))}
    judged = []
    for t in range(200):
        folds = rng.normal(0.5, 0.1, 5).tolist()
        judged.append(point(float(np.mean(folds)), folds, t=t))
    best = judged[best_of(judged, Objective("x"), space)]["value"]
    held_out = held_out_value(judged, Objective("x"), space)
    assert best > 0.6
    assert held_out == pytest.approx(0.5, abs=0.08)
    assert held_out_value([point(0.5, [0.5], t=1)], Objective("x"), space) is None


def test_the_interval_holds_the_value_and_undefined_folds_are_left_out():
    rows = planted_rows(np.random.default_rng(3), num=12)
    folds = patient_folds(rows, 5)
    point_ = {"threshold": 0.2, "nms_iou": 0.6, "box_scale": 1.0}
    low, high = interval(LUNG.learning, rows, folds, "f1", point_)
    each = fold_values(LUNG.learning, rows, folds, "f1", point_)
    assert low <= np.mean(each) <= high
    empty = [{**row, **box_row(np.zeros((0, 4)), [], np.zeros((0, 4)))} for row in rows]
    assert all(math.isnan(v) for v in fold_values(LUNG.learning, empty, folds, "f1", point_))
