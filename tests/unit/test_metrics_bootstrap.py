"""The bootstrap against scipy's, a slow loop, and the normal interval of a mean."""

import time

import numpy as np
import pytest
from scipy import stats

from medray.metrics import bootstrap, overlap, ranking

RNG = np.random.default_rng(0)


def test_one_case_a_patient_equals_scipys_percentile_interval():
    values = RNG.gamma(2, size=150)
    ours = bootstrap.bootstrap_mean(values, np.arange(150), num=20_000)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", random_state=1
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs), abs=0.01)


def test_fast_mean_equals_the_general_way():
    values, patients = RNG.random(60), RNG.integers(0, 20, 60)
    fast = bootstrap.bootstrap_mean(values, patients, num=200, seed=3)
    slow = bootstrap.bootstrap(lambda i: values[i].mean(), patients, num=200, seed=3)
    assert (fast.low, fast.high) == pytest.approx((slow.low, slow.high))


def test_fast_sums_equal_the_general_way():
    counts = RNG.integers(0, 50, (40, 3))
    patients = [f"p{n % 15}" for n in range(40)]
    fast = bootstrap.bootstrap_sums(overlap.dice, counts, patients, num=200)
    slow = bootstrap.bootstrap(lambda i: overlap.pooled(counts[i])["f1"], patients, num=200)
    assert (fast.low, fast.high) == pytest.approx((slow.low, slow.high))
    parts = pytest.MonkeyPatch()
    parts.setattr(bootstrap, "_DRAWS_AT_ONCE", 100)
    again = bootstrap.bootstrap_sums(overlap.dice, counts, patients, num=200)
    general = bootstrap.bootstrap(lambda i: overlap.pooled(counts[i])["f1"], patients, num=200)
    parts.undo()
    assert again == fast
    assert general == slow


def test_whole_patients_are_drawn():
    patients = np.array(["a", "b", "a", "c", "a", "b"])

    def only_whole(indices):
        times = np.bincount(indices, minlength=6)
        for one in "abc":
            assert len(set(times[patients == one])) == 1
        assert sum(times[[0, 1, 3]]) == 3  # as many patients as there are
        return 0.0

    bootstrap.bootstrap(only_whole, patients, num=50)


def test_cases_of_one_patient_widen_the_interval():
    effect = RNG.normal(size=30)
    values = np.repeat(effect, 10) + 0.1 * RNG.normal(size=300)
    patients = np.repeat(np.arange(30), 10)
    grouped = bootstrap.bootstrap_mean(values, patients)
    loose = bootstrap.bootstrap_mean(values, np.arange(300))
    assert grouped.high - grouped.low > 2.5 * (loose.high - loose.low)


def test_same_seed_same_interval_and_the_rows_order_does_not_matter():
    values, patients = RNG.random(50), RNG.integers(0, 12, 50)
    one = bootstrap.bootstrap_mean(values, patients)
    order = RNG.permutation(50)
    other = bootstrap.bootstrap_mean(values[order], patients[order])
    assert (one.low, one.high) == pytest.approx((other.low, other.high), abs=1e-12)
    assert bootstrap.bootstrap_mean(values, patients) == one
    assert bootstrap.bootstrap_mean(values, patients, seed=1) != one


def test_undefined_resamples_are_left_out_and_counted():
    scores, positive = np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1])
    seen = []

    def value(indices):
        seen.append(ranking.auroc(scores[indices], positive[indices]))
        return seen[-1]

    interval = bootstrap.bootstrap(value, ["a", "b", "c", "d"], num=400)
    undefined = int(np.isnan(seen).sum())
    # chance of one class only: 2 * (1/2)**4
    assert undefined == pytest.approx(400 / 8, abs=25)
    assert (interval.num_resamples, interval.num_undefined) == (400, undefined)
    assert interval.low == pytest.approx(np.nanpercentile(seen, 2.5))
    assert interval.high == pytest.approx(np.nanpercentile(seen, 97.5))


def test_named_metrics_share_the_resamples():
    values, patients = RNG.random(30), np.arange(30) // 2

    def both(indices):
        drawn = values[indices]
        named = {"mean": drawn.mean()}
        return {**named, "top": drawn.max()} if drawn[0] > 0.2 else named

    named = bootstrap.bootstrap_named(both, patients, num=200)
    assert list(named) == ["mean", "top"]
    assert named["mean"] == bootstrap.bootstrap(lambda i: values[i].mean(), patients, num=200)
    assert 0 < named["top"].num_undefined < 200


def test_nan_values_are_not_in_the_mean():
    values = np.array([1.0, np.nan, 3.0, np.nan])
    interval = bootstrap.bootstrap_mean(values, [0, 1, 2, 3], num=300)
    slow = bootstrap.bootstrap(
        lambda i: np.nan if np.isnan(values[i]).all() else np.nanmean(values[i]), range(4), num=300
    )
    assert interval == slow
    assert interval.num_undefined > 0
    nothing = bootstrap.bootstrap_mean(np.full(3, np.nan), [0, 1, 2])
    assert np.isnan(nothing.low)
    assert nothing.num_undefined == nothing.num_resamples == 1000


def test_one_patient_and_narrower_levels():
    one = bootstrap.bootstrap_mean(np.array([1.0, 2.0]), ["a", "a"])
    assert (one.low, one.high) == (1.5, 1.5)
    values = RNG.random(40)
    wide, narrow = (bootstrap.bootstrap_mean(values, range(40), level=x) for x in (0.95, 0.5))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_a_thousand_resamples_of_many_patients_are_quick():
    start = time.perf_counter()
    bootstrap.bootstrap_mean(RNG.random(20_000), np.arange(20_000) // 2)
    assert time.perf_counter() - start < 3


def test_wrong_input_raises():
    with pytest.raises(ValueError, match="at least one case"):
        bootstrap.bootstrap_mean(np.zeros(0), [])
    with pytest.raises(ValueError, match="num must be >= 1, got 0"):
        bootstrap.bootstrap_mean(np.ones(2), [1, 2], num=0)
    with pytest.raises(ValueError, match=r"within \(0, 1\), got 95"):
        bootstrap.bootstrap_mean(np.ones(2), [1, 2], level=95)
    with pytest.raises(ValueError, match="a row a case"):
        bootstrap.bootstrap_sums(overlap.dice, np.ones((3, 3), int), [1, 2])
