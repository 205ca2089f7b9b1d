"""Sums up several seeds: medians with quartiles, paired differences with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from reducible.lab.records import record_error


class MedianIQR(NamedTuple):
    """A median with the quartiles around it."""

    median: float
    low: float
    """The 25 % quantile, linearly interpolated."""
    high: float
    """The 75 % quantile."""


class Difference(NamedTuple):
    """A difference of means with its 95 % interval; claim it only if that excludes zero."""

    mean: float
    low: float
    high: float


def median_iqr(values: Sequence[float]) -> MedianIQR:
    """The median of ``values`` [n] and their quartiles; raises ReducibleError on None and NaN.

    >>> median_iqr([4, 1, 2, 3, 10])
    MedianIQR(median=3.0, low=2.0, high=4.0)
    """
    low, median, high = np.quantile(_numbers("values", values, at_least=1), (0.25, 0.5, 0.75))
    return MedianIQR(float(median), float(low), float(high))


def paired_bootstrap(
    a: Sequence[float], b: Sequence[float], *, draws: int = 10_000, seed: int = 0
) -> Difference:
    """mean(a) − mean(b) with its 95 % percentile bootstrap interval, paired by position.

    ``a[i]`` and ``b[i]`` [n] belong to the same seed: pairs are redrawn together, so what a seed
    does to both methods cancels. Efron, "Bootstrap methods: another look at the jackknife", 1979.
    Raises ReducibleError on None and NaN, on unequal lengths and for fewer than two pairs.

    >>> paired_bootstrap([3.0, 5.0, 4.0], [2.0, 4.0, 3.0])
    Difference(mean=1.0, low=1.0, high=1.0)
    """
    first, second = _numbers("a", a, at_least=2), _numbers("b", b, at_least=2)
    if len(first) != len(second):
        raise record_error(
            f"a has {len(first)} values and b {len(second)}, so they do not pair. A run is "
            "missing: give both methods the same seeds, in the same order."
        )
    if draws < 1:
        raise record_error(f"draws must be at least 1, got {draws}: the default is 10,000.")
    difference = first - second  # [n]
    rows = np.random.default_rng(seed).integers(len(difference), size=(draws, len(difference)))
    low, high = np.quantile(difference[rows].mean(axis=1), (0.025, 0.975))
    return Difference(float(difference.mean()), float(low), float(high))


def _numbers(name: str, values: Sequence[float], *, at_least: int) -> np.ndarray:
    for i, value in enumerate(values):
        if value is None or not math.isfinite(value):
            raise record_error(
                f"{name}[{i}] is {value}: a run that never reached its target has no steps to it, "
                "and leaving it out would flatter the method. Decide first, e.g. count it at the "
                "run's full length, or compare final accuracies."
            )
    if len(values) < at_least:
        raise record_error(
            f"{name} has {len(values)} values, at least {at_least} are needed. Run more seeds."
        )
    return np.asarray(values, dtype=np.float64)
