"""Free-response operating characteristic: how many lesions are found at how many false alarms.

Two levels stand side by side. At `slice` level each true box of each image must be found, and false
positives are counted an image. At `patient` level a lesion that spreads over slices is one finding:
a patient counts as found when any of its true boxes is, in any of its slices, and false positives
are counted a patient, over all of its slices. Second boxes on one lesion are false positives.

Sensitivity at a rate is the greatest at any threshold whose false positives do not exceed the rate;
nothing is interpolated.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float64

from medray.metrics.detection import Ranked, Rows

RATES: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
Level = Literal["slice", "patient"]


def froc(
    boxes: Ranked,
    rows: Rows,
    *,
    level: Level,
    rates: Sequence[float] = RATES,
    iou: float = 0.5,
    scan_field: str = "patient_id",
) -> Float64[np.ndarray, "rates"]:
    """Return the sensitivity at each rate of false positives; NaN without a true box.

    Args:
        boxes: of `detection.ranked(rows)`.
        rows: of `box_matching`, with the field that names the scan.
        level: what is one lesion, and what false positives are counted by.
        rates: false positives an image (`slice`) or a scan (`patient`).
        iou: from which overlap a box is right.
        scan_field: what the patient level groups rows by, `patient_id` or `series_key`.
    """
    if not boxes.num_true:
        return np.full(len(rates), np.nan)
    hits = boxes.hits_at(iou)
    if level == "slice":
        return _sensitivities(boxes, hits, hits, rates, whole=(boxes.total_true, len(rows)))
    scans, num_scans = _scans(rows, scan_field)
    with_lesion = {scan for scan, row in zip(scans, rows, strict=True) if row["true_classes"]}
    right = np.flatnonzero(hits)
    _, first = np.unique(scans[boxes.row_of[right]], return_index=True)
    found = np.zeros_like(hits)
    found[right[first]] = True
    return _sensitivities(boxes, hits, found, rates, whole=(len(with_lesion), num_scans))


def froc_numbers(
    boxes: Ranked, rows: Rows, *, iou: float = 0.5, scan_field: str = "patient_id"
) -> dict[str, float]:
    """Return `froc_slice` and `froc_patient`, means over the rates, and each rate's own.

    The latter are `froc_slice_0.125` .. `froc_slice_8` and `froc_patient_0.125` ...
    """
    numbers: dict[str, float] = {}
    levels: tuple[Level, ...] = ("slice", "patient")
    for level in levels:
        values = froc(boxes, rows, level=level, iou=iou, scan_field=scan_field)
        numbers[f"froc_{level}"] = float(values.mean())
        for rate, value in zip(RATES, values, strict=True):
            numbers[f"froc_{level}_{rate:g}"] = float(value)
    return numbers


def _sensitivities(
    boxes: Ranked,
    hits: np.ndarray,
    found: np.ndarray,
    rates: Sequence[float],
    *,
    whole: tuple[int, int],
) -> np.ndarray:
    """Return the sensitivities; `whole` is how many can be found, and in how many units."""
    num_lesions, num_units = whole
    # a threshold takes all boxes of one score or none
    ends = np.append(np.diff(boxes.scores) != 0, True)[: len(hits)]
    false = np.concatenate([[0], np.cumsum(~hits)[ends]])
    share = np.concatenate([[0.0], np.cumsum(found)[ends] / max(num_lesions, 1)])
    place = np.searchsorted(false, np.asarray(rates) * num_units + 1e-9, side="right") - 1
    return np.asarray(share[place], dtype=np.float64)


def _scans(rows: Rows, field: str) -> tuple[np.ndarray, int]:
    """Return the number of each row's scan; a scan that a resample drew twice is two scans."""
    times: Counter[Hashable] = Counter()
    numbers: dict[Hashable, int] = {}
    scans = np.zeros(len(rows), dtype=np.int64)
    for place, row in enumerate(rows):
        own: Hashable = row.get("key", id(row))
        times[own] += 1
        name = (row.get(field, own), times[own])
        scans[place] = numbers.setdefault(name, len(numbers))
    return scans, len(numbers)
