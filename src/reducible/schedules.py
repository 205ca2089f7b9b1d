"""Schedules: pure functions from a step to a value in [0, 1]."""

from __future__ import annotations

import math


def every(step: int, *, n: int, start: int = 0) -> bool:
    """True at ``start`` and every ``n`` steps after it.

    >>> [s for s in range(8) if every(s, n=3, start=1)]
    [1, 4, 7]
    """
    return step >= start and (step - start) % n == 0


def linear(step: int, *, start: int, end: int) -> float:
    """0 up to ``start``, 1 from ``end`` on, straight between.

    >>> [linear(s, start=1, end=3) for s in range(5)]
    [0.0, 0.0, 0.5, 1.0, 1.0]
    """
    if step >= end:
        return 1.0
    return max(0.0, (step - start) / (end - start)) if end > start else 0.0


def cosine(step: int, *, start: int, end: int) -> float:
    """1 up to ``start``, 0 from ``end`` on, half a cosine between (learning-rate decay).

    >>> [round(cosine(s, start=0, end=4), 3) for s in range(5)]
    [1.0, 0.854, 0.5, 0.146, 0.0]
    """
    return (1.0 + math.cos(math.pi * linear(step, start=start, end=end))) / 2.0
