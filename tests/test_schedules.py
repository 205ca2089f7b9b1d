"""Schedules at their ends and beyond."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reducible.schedules import cosine, every, linear

STEPS = st.integers(-5, 50)


@given(STEPS, STEPS, STEPS)
def test_linear_and_cosine_stay_inside_and_mirror(step: int, start: int, end: int) -> None:
    up, down = linear(step, start=start, end=end), cosine(step, start=start, end=end)
    assert 0.0 <= up <= 1.0
    assert down == pytest.approx(0.5 + 0.5 * math.cos(math.pi * up))


def test_a_ramp_without_length_is_a_step() -> None:
    assert [linear(s, start=3, end=3) for s in (2, 3, 4)] == [0.0, 1.0, 1.0]
    assert [cosine(s, start=3, end=3) for s in (2, 3, 4)] == [1.0, 0.0, 0.0]


@given(st.integers(0, 30), st.integers(1, 5))
def test_linear_climbs_in_equal_steps(start: int, length: int) -> None:
    values = [linear(start + i, start=start, end=start + length) for i in range(length + 1)]
    assert values == pytest.approx([i / length for i in range(length + 1)])


def test_every() -> None:
    assert [s for s in range(10) if every(s, n=4)] == [0, 4, 8]
    assert [s for s in range(10) if every(s, n=1, start=8)] == [8, 9]
