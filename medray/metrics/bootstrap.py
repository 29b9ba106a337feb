"""Intervals from resampling patients: cases of one patient are alike and come or stay together.

Percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13).
Patients are taken in sorted order, so that the rows' order does not matter and one seed gives the
same resamples to every metric. Resamples where the metric is undefined (NaN: one class only) are
left out and counted.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, Real

NUM_RESAMPLES = 1000
LEVEL = 0.95
# 1000 resamples of 100,000 patients would be 800 MB of draws at once.
_DRAWS_AT_ONCE = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A percentile interval; `low` and `high` are NaN where no resample was defined.

    Attributes:
        low: lower end.
        high: upper end.
        num_resamples: how many resamples were drawn.
        num_undefined: how many of them were left out.
    """

    low: float
    high: float
    num_resamples: int
    num_undefined: int


def bootstrap(
    values_fn: Callable[[Int64[np.ndarray, "drawn"]], float],
    patient_ids: Sequence[Hashable] | np.ndarray,
    *,
    num: int = NUM_RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Interval:
    """Return the interval of any metric.

    Args:
        values_fn: the metric of the cases with these indices (a case occurs as often as its
            patient was drawn); NaN where undefined.
        patient_ids: the patient of each case.
        num: number of resamples.
        seed: of `numpy.random.default_rng`.
        level: share of the resamples within the interval.

    Raises:
        ValueError: no case, `num` below 1, or `level` not within (0, 1).
    """
    named = bootstrap_named(
        lambda indices: {"value": values_fn(indices)}, patient_ids, num=num, seed=seed, level=level
    )
    return named["value"]


def bootstrap_named(
    values_fn: Callable[[Int64[np.ndarray, "drawn"]], Mapping[str, float]],
    patient_ids: Sequence[Hashable] | np.ndarray,
    *,
    num: int = NUM_RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> dict[str, Interval]:
    """Return the intervals of several metrics that are computed together, by their names.

    A name that a resample lacks is undefined there. Arguments and errors are those of `bootstrap`.
    """
    group_of, num_patients = _groups(patient_ids)
    order = np.argsort(group_of, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(group_of, minlength=num_patients))[:-1])
    values = [
        values_fn(np.concatenate([members[one] for one in draw]))
        for part in _draws(num_patients, num, seed)
        for draw in part
    ]
    names = {name: None for row in values for name in row}
    return {
        name: _percentiles(np.array([row.get(name, np.nan) for row in values], float), level)
        for name in names
    }


def bootstrap_sums(
    value_fn: Callable[[np.ndarray], np.ndarray],
    sums: Real[np.ndarray, "cases k"],
    patient_ids: Sequence[Hashable] | np.ndarray,
    *,
    num: int = NUM_RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Interval:
    """Return the interval of a metric of sums over cases, without a loop over resamples.

    Args:
        value_fn: (num, k) summed columns to (num,) values, such as `overlap.dice` for [TP, FP, FN].
        sums: what each case adds.

    The other arguments and the errors are those of `bootstrap`, whose draws these are.
    """
    group_of, num_patients = _groups(patient_ids)
    table = np.asarray(sums)
    if table.ndim != 2 or len(table) != len(group_of):
        raise ValueError(f"need a row a case: {table.shape} sums for {len(group_of)} cases")
    per_patient = np.zeros((num_patients, table.shape[1]), dtype=np.result_type(table, np.int64))
    np.add.at(per_patient, group_of, table)
    values = [
        value_fn(_times_drawn(part, num_patients) @ per_patient)
        for part in _draws(num_patients, num, seed)
    ]
    return _percentiles(np.concatenate(values).astype(np.float64), level)


def bootstrap_mean(
    values: Real[np.ndarray, "cases"],
    patient_ids: Sequence[Hashable] | np.ndarray,
    *,
    num: int = NUM_RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Interval:
    """Return the interval of a mean over cases; cases whose value is NaN are not in the mean.

    Arguments and errors are those of `bootstrap`, whose draws these are.
    """
    given = np.asarray(values, dtype=np.float64)
    defined = ~np.isnan(given)
    table = np.stack([np.where(defined, given, 0.0), defined.astype(np.float64)], axis=1)
    return bootstrap_sums(_mean_of_sums, table, patient_ids, num=num, seed=seed, level=level)


def _mean_of_sums(sums: np.ndarray) -> np.ndarray:
    start = np.full(len(sums), np.nan)
    return np.asarray(np.divide(sums[:, 0], sums[:, 1], out=start, where=sums[:, 1] > 0))


def _groups(patient_ids: Sequence[Hashable] | np.ndarray) -> tuple[np.ndarray, int]:
    """Return the patient's number of each case, by sorted id, and how many patients there are."""
    ids = np.asarray([str(one) for one in patient_ids])
    if not ids.size:
        raise ValueError("a bootstrap needs at least one case")
    known, group_of = np.unique(ids, return_inverse=True)
    return group_of, len(known)


def _draws(num_patients: int, num: int, seed: int) -> Iterator[np.ndarray]:
    """Yield (resamples, patients) draws with replacement, in parts that fit in memory."""
    if num < 1:
        raise ValueError(f"num must be >= 1, got {num}")
    rng = np.random.default_rng(seed)
    rows = max(1, _DRAWS_AT_ONCE // num_patients)
    for start in range(0, num, rows):
        yield rng.integers(0, num_patients, (min(rows, num - start), num_patients))


def _times_drawn(draws: np.ndarray, num_patients: int) -> np.ndarray:
    """Return (resamples, patients): how often each patient was drawn."""
    flat = draws + num_patients * np.arange(len(draws))[:, None]
    times = np.bincount(flat.ravel(), minlength=len(draws) * num_patients)
    return times.reshape(len(draws), num_patients)


def _percentiles(values: np.ndarray, level: float) -> Interval:
    if not 0 < level < 1:
        raise ValueError(f"level must be within (0, 1), got {level}")
    defined = values[~np.isnan(values)]
    low, high = float("nan"), float("nan")
    if defined.size:
        tail = 50 * (1 - level)
        low, high = (float(one) for one in np.percentile(defined, [tail, 100 - tail]))
    return Interval(
        low=low, high=high, num_resamples=values.size, num_undefined=values.size - defined.size
    )
