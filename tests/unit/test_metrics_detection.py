"""Detection metrics against slow loops that follow the published definitions step by step."""

import itertools
import json
import time

import numpy as np
import pytest

from medray.metrics import detection, froc
from medray.metrics.box_matching import IOU_LEVELS, box_row


def iou_of(one: np.ndarray, other: np.ndarray) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)


def images(seed: int, *, num: int = 12, num_classes: int = 1) -> list[dict]:
    """Return images with true boxes and found ones near them, some wrong, scores rounded."""
    rng = np.random.default_rng(seed)
    out = []
    for number in range(num):
        truth = _boxes(rng, int(rng.integers(0, 4)))
        near = np.repeat(truth, 3, axis=0) + rng.normal(0, 3, (3 * len(truth), 4))
        found = np.concatenate([near, _boxes(rng, int(rng.integers(0, 5)))])
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        out.append(
            {
                "truth": truth,
                "true_classes": rng.integers(0, num_classes, len(truth)),
                "found": found,
                "classes": rng.integers(0, num_classes, len(found)),
                "scores": rng.permutation(np.arange(1, len(found) + 1)) / 40 + number / 2000,
            }
        )
    return out


def _boxes(rng: np.random.Generator, number: int) -> np.ndarray:
    corner = rng.uniform(0, 80, (number, 2))
    return np.concatenate([corner, corner + rng.uniform(8, 60, (number, 2))], axis=1)


def rows_of(given: list[dict], *, levels: tuple[float, ...] = IOU_LEVELS) -> list[dict]:
    return [
        box_row(one["found"], one["scores"], one["truth"], classes=one["classes"],
                true_classes=one["true_classes"], levels=levels)
        | {"patient_id": f"p{n // 3}", "key": f"k{n}"}
        for n, one in enumerate(given)
    ]  # fmt: skip


def slow_hits(one: dict, level: float, rule: str) -> dict[int, bool]:
    """Return whether each found box is right, by the rule's own words."""
    by_score = sorted(range(len(one["scores"])), key=lambda n: -one["scores"][n])
    taken: set[int] = set()
    right = {}
    for n in by_score:
        overlaps = [
            iou_of(one["found"][n], box) if one["classes"][n] == kind else 0.0
            for box, kind in zip(one["truth"], one["true_classes"], strict=True)
        ]
        if rule == "coco":
            overlaps = [0.0 if m in taken else value for m, value in enumerate(overlaps)]
        best = int(np.argmax(overlaps)) if overlaps else -1
        right[n] = best >= 0 and overlaps[best] >= level and best not in taken
        if right[n]:
            taken.add(best)
    return right


def slow_ap(given: list[dict], level: float, rule: str, kind: int) -> float:
    total = sum(int((one["true_classes"] == kind).sum()) for one in given)
    pairs = []
    for one in given:
        right = slow_hits(one, level, rule)
        pairs += [(one["scores"][n], right[n]) for n in right if one["classes"][n] == kind]
    pairs.sort(key=lambda pair: -pair[0])
    points, hits = [], 0
    for rank, (_, right) in enumerate(pairs, 1):
        hits += right
        points.append((hits / total, hits / rank))
    if rule == "coco":
        values = [max([p for r, p in points if r >= at], default=0.0)
                  for at in np.linspace(0, 1, 101)]  # fmt: skip
        return float(np.mean(values))
    curve = [(0.0, 1.0), *points, (1.0, 0.0)]
    envelope = [max(p for _, p in curve[n:]) for n in range(len(curve))]
    heights = []
    for at in np.linspace(0, 1, 101):
        n = max(m for m, (r, _) in enumerate(curve) if r <= at)
        if n == len(curve) - 1:
            heights.append(envelope[n])
            continue
        low, high = curve[n][0], curve[n + 1][0]
        share = (at - low) / (high - low)
        heights.append(envelope[n] + share * (envelope[n + 1] - envelope[n]))
    return float(sum((a + b) / 200 for a, b in itertools.pairwise(heights)))


@pytest.mark.parametrize("rule", ["yolo", "coco"])
@pytest.mark.parametrize("num_classes", [1, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_average_precision_is_that_of_the_slow_loop(rule: str, num_classes: int, seed: int) -> None:
    given = images(seed, num_classes=num_classes)
    rows = rows_of(given)
    boxes = detection.ranked(rows, rule=rule)  # type: ignore[arg-type]
    fast = detection.average_precisions(boxes)
    kinds = {int(kind) for one in given for kind in one["true_classes"]}
    for column, level in enumerate(IOU_LEVELS):
        slow = np.mean([slow_ap(given, level, rule, kind) for kind in kinds])
        assert fast[column] == pytest.approx(slow, abs=1e-9), level
    numbers = detection.precision_numbers(boxes)
    assert numbers["map50"] == pytest.approx(fast[0])
    assert numbers["map75"] == pytest.approx(fast[5])
    assert numbers["map50_95"] == pytest.approx(fast.mean())


def test_the_two_rules_differ_where_a_second_truth_is_free() -> None:
    """Two boxes nearest to one of two truths: COCO gives the second to the other truth."""
    truth = np.array([[0, 0, 10, 10], [2, 0, 12, 10]])
    found = np.array([[0, 0, 10, 10], [0.5, 0, 10.5, 10]])
    row = box_row(found, np.array([0.9, 0.8]), truth)
    assert row["hits"] == [1023, 0]
    assert row["hits_coco"][1] & 1
    assert row["hit_truth"] == [0, 1]


def test_at_a_high_level_the_less_confident_box_may_be_the_right_one() -> None:
    truth = np.array([[0, 0, 10, 10]])
    row = box_row(np.array([[0, 0, 10, 6], [0, 0, 10, 10]]), np.array([0.9, 0.8]), truth)
    assert row["hits"][0] == 0b111, "IoU 0.6 holds at 0.50, 0.55 and 0.60"
    assert row["hits"][1] == 1023 - 0b111


def test_rows_are_plain_sorted_and_without_padding() -> None:
    row = box_row(np.zeros((3, 4)), np.array([0.1, 0.0, 0.3]), np.zeros((0, 4)))
    assert row["box_scores"] == [0.3, 0.1]
    assert json.loads(json.dumps(row)) == row
    assert row["hit_truth"] == [-1, -1]


def test_perfect_and_empty_answers() -> None:
    truth = np.array([[0.0, 0, 10, 10]])
    perfect = [box_row(truth, np.array([0.9]), truth)] * 2
    wrong = [box_row(truth + 50, np.array([0.9]), truth)]
    nothing = [box_row(truth[:0], np.zeros(0), truth)]
    # the published curve ends in (1, 0)
    for rule, best in (("yolo", 0.995), ("coco", 1.0)):
        assert _numbers(perfect, rule)["map50_95"] == pytest.approx(best)
        assert _numbers(wrong, rule)["map50"] == 0.0
        assert _numbers(nothing, rule)["map50"] == 0.0
    assert np.isnan(_numbers([box_row(truth, np.array([0.9]), truth[:0])], "yolo")["map50"])
    assert np.isnan(_numbers([], "yolo")["map50_95"])


def _numbers(rows: list[dict], rule: str) -> dict[str, float]:
    return detection.precision_numbers(detection.ranked(rows, rule=rule))  # type: ignore[arg-type]


def test_numbers_at_a_threshold() -> None:
    given = images(4)
    rows = rows_of(given)
    threshold = 0.2
    right = found = 0
    for one in given:
        hits = slow_hits(one, 0.5, "yolo")
        above = [n for n in hits if one["scores"][n] >= threshold]
        right, found = right + sum(hits[n] for n in above), found + len(above)
    total = sum(len(one["truth"]) for one in given)
    numbers = detection.threshold_numbers(detection.ranked(rows), threshold)
    assert numbers["precision"] == pytest.approx(right / found)
    assert numbers["recall"] == pytest.approx(right / total)
    assert numbers["f1"] == pytest.approx(2 * right / (found + total))
    assert numbers["false_positives"] == pytest.approx((found - right) / len(given))
    empty = detection.threshold_numbers(detection.ranked(rows), 2.0)
    assert np.isnan(empty["precision"])
    assert empty["recall"] == 0.0


def test_best_f1_separates_right_from_wrong() -> None:
    truth = np.array([[0.0, 0, 10, 10]])
    found = np.array([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    rows = [box_row(found, np.array([0.8, 0.3]), truth)] * 4
    best = detection.best_f1(detection.ranked(rows))
    assert 0.3 < best.threshold < 0.8
    numbers = detection.threshold_numbers(detection.ranked(rows), best.threshold)
    assert numbers["f1"] == numbers["precision"] == 1.0
    assert best.recall == pytest.approx(1.0, abs=0.3)
    healthy = detection.ranked([box_row(found, np.array([0.8, 0.3]), truth[:0])])
    assert detection.best_f1(healthy).threshold == 0.5


def slow_froc(given: list[dict], rate: float, level: str) -> float:
    scores = sorted({float(s) for one in given for s in one["scores"]})
    best = 0.0
    patients = sorted({n // 3 for n in range(len(given))})
    with_lesion = {n // 3 for n, one in enumerate(given) if len(one["truth"])}
    for threshold in scores:
        found, false, true = set(), 0, 0
        for n, one in enumerate(given):
            hits = slow_hits(one, 0.5, "yolo")
            for m, right in hits.items():
                if one["scores"][m] >= threshold:
                    false, true = false + (not right), true + right
                    if right:
                        found.add(n // 3)
        if level == "slice" and false <= rate * len(given):
            best = max(best, true / sum(len(one["truth"]) for one in given))
        if level == "patient" and false <= rate * len(patients):
            best = max(best, len(found) / len(with_lesion))
    return best


def sensitivity(rows: list[dict], level: str) -> np.ndarray:
    return froc.froc(detection.ranked(rows), rows, level=level)  # type: ignore[arg-type]


@pytest.mark.parametrize("level", ["slice", "patient"])
@pytest.mark.parametrize("seed", [2, 3])
def test_froc_is_that_of_the_slow_loop(level: str, seed: int) -> None:
    given = images(seed, num=10)
    values = sensitivity(rows_of(given), level)
    slow = [slow_froc(given, rate, level) for rate in froc.RATES]
    assert values.tolist() == pytest.approx(slow)
    numbers = froc.froc_numbers(detection.ranked(rows_of(given)), rows_of(given))
    assert numbers[f"froc_{level}"] == pytest.approx(np.mean(slow))
    assert numbers[f"froc_{level}_0.125"] == pytest.approx(slow[0])


def test_froc_of_a_patient_drawn_twice_counts_two_patients() -> None:
    rows = rows_of(images(2, num=9))
    once, twice = sensitivity(rows, "patient"), sensitivity([*rows, *rows], "patient")
    assert once.tolist() == pytest.approx(twice.tolist())


def test_froc_without_any_box() -> None:
    truth = np.array([[0.0, 0, 10, 10]])
    missed = [box_row(truth[:0], np.zeros(0), truth) | {"patient_id": "a"}]
    assert sensitivity(missed, "slice").tolist() == [0.0] * 7
    healthy = [box_row(truth[:0], np.zeros(0), truth[:0]) | {"patient_id": "a"}]
    assert np.isnan(sensitivity(healthy, "patient")).all()


def test_sizes_are_judged_by_themselves() -> None:
    truth = np.array([[0.0, 0, 10, 10], [20, 20, 70, 70]])
    found = np.array([[20.0, 20, 70, 70], [80, 80, 90, 90]])
    lines = detection.size_table([box_row(found, np.array([0.9, 0.8]), truth)], 0.5)
    assert [line["size"] for line in lines] == ["small", "medium", "large"]
    assert [line["num_true"] for line in lines] == [1, 1, 0]
    assert lines[0]["recall"] == 0.0
    assert lines[1]["recall"] == lines[1]["ap"] == 1.0
    assert np.isnan(lines[2]["ap"])


def test_rows_of_other_levels_do_not_add_up() -> None:
    given = images(0, num=2)
    mixed = [*rows_of(given), *rows_of(given, levels=(0.4, 0.5))]
    with pytest.raises(ValueError, match="different IoU levels"):
        detection.ranked(mixed)
    with pytest.raises(ValueError, match="not at 0.5"):
        detection.threshold_numbers(detection.ranked(rows_of(given, levels=(0.4,))), 0.5)


def test_a_hundred_rows_take_milliseconds() -> None:
    """Metrics are computed 1,000 times for the intervals."""
    rng = np.random.default_rng(0)
    rows = []
    for n in range(100):
        truth = _boxes(rng, 2)
        found = np.concatenate([truth + rng.normal(0, 2, (2, 4)), _boxes(rng, 60)])
        rows.append(box_row(found, rng.uniform(0.001, 1, 62), truth)
                    | {"patient_id": str(n // 4), "key": str(n)})  # fmt: skip
    took = []
    for _ in range(5):
        began = time.perf_counter()
        boxes = detection.ranked(rows)
        detection.precision_numbers(boxes)
        froc.froc_numbers(boxes, rows)
        took.append(time.perf_counter() - began)
    assert min(took) < 0.05, "about 4 ms where nothing else runs"
