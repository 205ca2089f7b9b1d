"""Remembered losses: the last one of each id, found by id, saved and restored."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import reducible as rd
from reducible.stores import LossMemory

IDS = torch.tensor([7, 2**53 + 1, 3, 2**24 + 1, 0])


def _some() -> LossMemory:
    memory = LossMemory(IDS)
    memory.remember(torch.tensor([3, 7]), torch.tensor([0.5, 1.5]), step=4)
    memory.remember(torch.tensor([2**53 + 1, 3]), torch.tensor([2.5, 0.25]), step=9)
    return memory


def test_the_last_loss_of_each_id() -> None:
    memory = _some()
    assert memory.lookup(torch.tensor([3, 2**53 + 1, 7])).tolist() == [0.25, 2.5, 1.5]
    assert bool(memory.lookup(torch.tensor([0, 2**24 + 1])).isnan().all())


def test_in_data_order_is_the_order_of_the_ids_given() -> None:
    found = _some().in_data_order.tolist()
    assert found[:3] == [1.5, 2.5, 0.25]
    assert all(math.isnan(v) for v in found[3:])


def test_age_counts_steps_since_an_id_was_seen() -> None:
    ages = _some().age(torch.tensor([7, 3, 0]), step=10)
    assert ages.tolist() == [6, 1, 2**62]


def test_empty_until_the_first_loss() -> None:
    memory = LossMemory(IDS)
    assert memory.empty
    memory.remember(IDS[:1], torch.tensor([1.0]), step=0)
    assert not memory.empty


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_refused_and_nothing_kept(bad: float) -> None:
    memory = _some()
    before = memory.in_data_order.clone()
    with pytest.raises(rd.SelectionError, match=f"1 of 2 candidates, ids {int(IDS[1])}"):
        memory.remember(IDS[:2], torch.tensor([9.0, bad]), step=9)
    torch.testing.assert_close(memory.in_data_order, before, equal_nan=True, rtol=0, atol=0)


@settings(deadline=None)
@given(
    n=st.integers(1, 30),
    calls=st.lists(st.lists(st.integers(0, 29), unique=True, min_size=1), max_size=8),
)
def test_it_is_a_dictionary(n: int, calls: list[list[int]]) -> None:
    ids = torch.randperm(n, generator=torch.Generator().manual_seed(n)) * 5 + 2
    memory, known = LossMemory(ids), dict[int, float]()
    for step, rows in enumerate(calls):
        here = ids[[r for r in rows if r < n]]
        loss = torch.arange(len(here)) + 100.0 * step
        memory.remember(here, loss, step)
        known |= dict(zip(here.tolist(), loss.tolist(), strict=True))
    expected = torch.tensor([known.get(i, math.nan) for i in ids.tolist()])
    torch.testing.assert_close(memory.in_data_order, expected, equal_nan=True)
    torch.testing.assert_close(memory.lookup(ids), expected, equal_nan=True)


def test_it_holds_no_graph_and_takes_losses_of_any_precision() -> None:
    memory = LossMemory(IDS)
    memory.remember(IDS[:2], torch.tensor([1.0, 2.0], requires_grad=True), step=0)
    memory.remember(IDS[2:3], torch.tensor([0.1], dtype=torch.float64), step=0)
    memory.remember(IDS[3:4], torch.tensor([4.0], dtype=torch.bfloat16), step=0)
    found = memory.lookup(IDS[:4])
    assert not found.requires_grad
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx([1.0, 2.0, 0.1, 4.0])


@pytest.mark.parametrize(
    ("ids", "loss", "message"),
    [
        (torch.tensor([3, 5]), torch.zeros(2), "ids 5 are not of this data set"),
        (torch.tensor([2**53]), torch.zeros(1), f"ids {2**53} are not of this data set"),
        (torch.tensor([3, 7]), torch.tensor(0.5), r"losses of shape \(\) for 2 ids: compute them"),
        (torch.tensor([3, 7]), torch.zeros(3), r"losses of shape \(3,\) for 2 ids"),
    ],
)
def test_losses_that_fit_nothing(ids: Tensor, loss: Tensor, message: str) -> None:
    memory = _some()
    before = memory.in_data_order
    with pytest.raises(rd.DataError, match=message):
        memory.remember(ids, loss, step=0)
    torch.testing.assert_close(memory.in_data_order, before, equal_nan=True)


def test_unknown_ids_are_not_looked_up() -> None:
    for ask in (lambda ids: _some().lookup(ids), lambda ids: _some().age(ids, 3)):
        with pytest.raises(rd.DataError, match="ids 4, 9 are not of this data set"):
            ask(torch.tensor([3, 4, 9]))


def test_ids_that_are_no_ids() -> None:
    with pytest.raises(rd.DataError, match="ids 1 occur more than once"):
        LossMemory(torch.tensor([1, 1, 2]))
    with pytest.raises(rd.DataError, match=r"got torch\.float32"):
        LossMemory(torch.tensor([1.0]))


def test_saved_and_loaded_is_the_same_and_does_not_move_along() -> None:
    memory, again = _some(), LossMemory(IDS)
    state = memory.state_dict()
    memory.remember(IDS[:1], torch.tensor([9.0]), step=20)
    again.load_state_dict(state)
    torch.testing.assert_close(again.in_data_order, _some().in_data_order, equal_nan=True)
    assert again.age(IDS, 30).tolist() == _some().age(IDS, 30).tolist()
    again.remember(IDS[1:2], torch.tensor([8.0]), step=21)
    third = LossMemory(IDS)
    third.load_state_dict(state)
    torch.testing.assert_close(third.in_data_order, _some().in_data_order, equal_nan=True)


def test_a_state_of_another_data_set() -> None:
    with pytest.raises(rd.DataError, match="losses of 5 examples for a data set of 3"):
        LossMemory(IDS[:3]).load_state_dict(_some().state_dict())
