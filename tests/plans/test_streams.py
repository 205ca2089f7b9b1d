"""A threshold that follows a stream."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import reducible as rd


@given(
    st.lists(st.lists(st.integers(0, 50), max_size=7), max_size=12),
    st.integers(1, 9),
    st.sampled_from([0.2, 0.5, 1.0]),
)
def test_it_keeps_the_lowest_of_the_last(parts: list[list[int]], window: int, keep: float) -> None:
    window = max(window, math.ceil(1 / keep))
    keeps = rd.StreamFilter(keep, window=window)
    seen: list[int] = []
    for part in parts:
        seen = (seen + part)[-window:]
        got = keeps(torch.tensor(part, dtype=torch.float64))
        if part:
            cut = np.sort(seen)[max(1, round(keep * len(seen))) - 1]
            assert got == [loss <= cut for loss in part]
    assert keeps([]) == []


def test_its_share_of_a_long_stream_is_what_was_asked_and_follows_a_drift() -> None:
    g = torch.Generator().manual_seed(0)
    keeps = rd.StreamFilter(0.2, window=1000)
    kept = [keeps(torch.rand(100, generator=g) + step / 50) for step in range(100)]
    share = np.mean(kept[20:])
    assert 0.1 < share < 0.2  # losses rise, so the last window is lower
    kept = [keeps(torch.rand(100, generator=g)) for _ in range(100)]
    assert np.mean(kept[20:]) == pytest.approx(0.2, abs=0.01)


def test_it_begins_with_the_threshold_of_a_sample() -> None:
    plan = rd.Plan.toward(rd.IrreducibleLossStore.from_tensor(torch.arange(10.0)), range(10))
    keeps = rd.StreamFilter(0.2, window=5, threshold=plan.report["threshold"])
    assert keeps.threshold == 1.0
    assert keeps([0.5, 1.0, 1.5]) == [True, True, False]
    keeps([7.0, 8.0])
    assert keeps.threshold == 0.5  # of its own window from now on


def test_a_filter_that_was_stopped_goes_on() -> None:
    losses = torch.rand(40, generator=torch.Generator().manual_seed(1))
    whole, first, second = (rd.StreamFilter(0.3, window=16) for _ in range(3))
    expected = [whole(part) for part in losses.split(5)]
    begun = [first(part) for part in losses[:20].split(5)]
    second.load_state_dict(first.state_dict())
    assert begun + [second(part) for part in losses[20:].split(5)] == expected
    with pytest.raises(rd.ConfigurationError, match="another window"):
        rd.StreamFilter(0.3, window=8).load_state_dict(first.state_dict())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep": 0.0}, "keep"),
        ({"keep": 0.01, "window": 10}, "Raise window"),
        ({"threshold": math.nan}, "finite loss"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(rd.ConfigurationError, match=message):
        rd.StreamFilter(**settings)


def test_losses_that_are_not_finite() -> None:
    keeps = rd.StreamFilter(0.5)
    with pytest.raises(rd.DataError, match="not finite"):
        keeps([1.0, math.nan])
    assert keeps.threshold == math.inf  # and none of them was taken in
