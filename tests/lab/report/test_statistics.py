"""Statistics of several seeds: by hand, against SciPy, and what is refused."""

import math

import numpy as np
import pytest
from scipy import stats

from reducible.lab.report.statistics import median_iqr, paired_bootstrap
from reducible.types import ReducibleError


def test_median_and_quartiles_by_hand():
    assert median_iqr([7.0]) == (7.0, 7.0, 7.0)
    assert median_iqr([1, 2, 3, 4]) == (2.5, 1.75, 3.25)


def test_the_interval_is_of_the_pairs_not_of_the_groups():
    b = [10.0, 20.0, 30.0, 40.0, 50.0]
    mean, low, high = paired_bootstrap([11.0, 21.1, 30.9, 41.0, 51.0], b)
    assert mean == pytest.approx(1.0)
    assert 0.9 < low < mean < high < 1.1  # unpaired, the seeds' spread of 14 would drown it


def test_the_interval_agrees_with_scipy():
    a, b = np.random.default_rng(0).normal(size=(2, 12))
    ours = paired_bootstrap(a.tolist(), b.tolist(), draws=40_000)
    theirs = stats.bootstrap(
        (a - b,), np.mean, n_resamples=40_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert ours.mean == pytest.approx(a.mean() - b.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_swapping_the_methods_swaps_the_interval_and_a_seed_repeats_it():
    a, b = [1.0, 4.0, 2.0, 8.0], [0.5, 1.0, 3.0, 1.0]
    mean, low, high = paired_bootstrap(a, b, seed=3)
    assert paired_bootstrap(b, a, seed=3) == pytest.approx((-mean, -high, -low))
    assert paired_bootstrap(a, b, seed=3) == (mean, low, high)


@pytest.mark.parametrize("bad", [None, math.nan, math.inf])
def test_a_target_never_reached_is_the_callers_decision(bad):
    with pytest.raises(ReducibleError, match=rf"values\[1\] is {bad}: a run that never reached"):
        median_iqr([1.0, bad])
    with pytest.raises(ReducibleError, match=rf"b\[0\] is {bad}"):
        paired_bootstrap([1.0, 2.0], [bad, 2.0])


def test_errors():
    with pytest.raises(ReducibleError, match="a has 3 values and b 2, so they do not pair"):
        paired_bootstrap([1.0, 2.0, 3.0], [1.0, 2.0])
    with pytest.raises(ReducibleError, match="a has 1 values, at least 2 are needed"):
        paired_bootstrap([1.0], [1.0])
    with pytest.raises(ReducibleError, match="values has 0 values, at least 1"):
        median_iqr([])
    with pytest.raises(ReducibleError, match="draws must be at least 1, got 0"):
        paired_bootstrap([1.0, 2.0], [1.0, 2.0], draws=0)
