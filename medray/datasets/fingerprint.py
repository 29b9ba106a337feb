"""What a data set looks like, as numbers a later image can be compared with (fingerprint.json).

Each example gives a small JSON-plain part while its native image is in memory; parts merge in any
order to the same result.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from medray.datasets.profile import image_profile
from medray.datasets.profile_reference import make_reference
from medray.datasets.record import Sample
from medray.volume import Volume

# 16 HU a bin over the range of 12 bit CT; other modalities are binned over their own range.
HU_LOW, HU_HIGH, HU_BIN = -1024, 3072, 16
_NUM_BINS = (HU_HIGH - HU_LOW) // HU_BIN
_PERCENTILES = (0.5, 1, 5, 25, 50, 75, 95, 99, 99.5)
_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def partial_fingerprint(sample: Sample) -> dict[str, Any]:
    """Return one example's part: modality, contrast, spacing, size, histogram and profile."""
    image = sample.image
    modality = str(sample.meta.get("modality", "") or "unknown")
    spacing = image.spacing_zyx_mm if isinstance(image, Volume) else (image.spacing_yx_mm or ())
    size = image.array.shape if isinstance(image, Volume) else image.array.shape[:2]
    counts = _histogram(image.array) if modality == "CT" else {}
    return {
        "modality": modality,
        "contrast": bool(sample.meta.get("contrast", False)),
        "spacing_mm": [round(float(value), 6) for value in spacing],
        "size": [int(value) for value in size],
        "hu_counts": counts,
        "value_range": [float(image.array.min()), float(image.array.max())],
        "profile": image_profile(sample),
    }


def merge_fingerprints(
    parts: Iterable[Mapping[str, Any]], *, groups: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the content of fingerprint.json, whatever the order of the parts.

    Args:
        parts: of `partial_fingerprint`; those that an older version made have no profile, and
            `conformity` then knows nothing of them.
        groups: the patient of each part, so that slices of one patient are not taken for what
            patients have in common; not kept. Without it each part is one patient.
    """
    items = list(parts)
    patients = list(groups) or [""] * len(items)
    profiled = [pair for pair in zip(items, patients, strict=True) if "profile" in pair[0]]
    total: Counter[int] = Counter()
    for item in items:
        total.update({int(index): int(count) for index, count in item["hu_counts"].items()})
    counts = np.zeros(_NUM_BINS, dtype=np.int64)
    for index, count in total.items():
        counts[index] = count
    return {
        "num_examples": len(items),
        "modalities": _tally(item["modality"] for item in items),
        "contrast": _tally("yes" if item["contrast"] else "no" for item in items),
        "spacing_quantiles_mm": _quantiles([item["spacing_mm"] for item in items]),
        "size_quantiles": _quantiles([item["size"] for item in items]),
        "hu_histogram": {"low": HU_LOW, "bin": HU_BIN, "counts": counts.tolist()},
        "hu_percentiles": _percentiles(counts),
        "value_range": _range([item["value_range"] for item in items]),
        "conformity": make_reference(
            [item["profile"] for item, _ in profiled], [patient for _, patient in profiled]
        ),
    }


def _histogram(array: np.ndarray) -> dict[str, int]:
    """Count HU by bin; values beyond the range fall into the end bins."""
    if array.dtype == np.int16:
        # A table of 65,536 is faster than arithmetic on every voxel.
        values = np.bincount(array.ravel().view(np.uint16), minlength=1 << 16)
        levels = np.arange(1 << 16, dtype=np.uint16).view(np.int16).astype(np.int64)
    else:
        levels, values = np.unique(np.floor(array).astype(np.int64), return_counts=True)
    bins = np.clip((levels - HU_LOW) // HU_BIN, 0, _NUM_BINS - 1)
    counts = np.bincount(bins, weights=values, minlength=_NUM_BINS).astype(np.int64)
    return {str(index): int(counts[index]) for index in np.flatnonzero(counts)}


def _tally(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _quantiles(rows: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    """Return quantiles per axis over the examples that have the usual number of axes."""
    lengths = Counter(len(row) for row in rows if row)
    if not lengths:
        return {}
    length = max(sorted(lengths), key=lambda n: lengths[n])
    table = np.sort(np.array([row for row in rows if len(row) == length], dtype=np.float64), axis=0)
    return {
        f"{quantile:g}": [round(float(value), 6) for value in np.quantile(table, quantile, axis=0)]
        for quantile in _QUANTILES
    }


def _percentiles(counts: np.ndarray) -> dict[str, float]:
    """Return the lower edge of the bin in which each percentile falls."""
    if not counts.any():
        return {}
    cumulative = np.cumsum(counts) / counts.sum()
    return {
        f"{percent:g}": float(HU_LOW + HU_BIN * int(np.searchsorted(cumulative, percent / 100)))
        for percent in _PERCENTILES
    }


def _range(ranges: Sequence[Sequence[float]]) -> list[float]:
    return [min(pair[0] for pair in ranges), max(pair[1] for pair in ranges)] if ranges else []
