"""Scores that hand a measured loss on: train_loss and irreducible_loss."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reducible import scores

DTYPES = [torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
def test_train_loss_is_the_loss(dtype: torch.dtype) -> None:
    loss = torch.tensor([2.0, 0.5, 1e30, 1e-30, 0.0], dtype=dtype)
    score = scores.train_loss(loss=loss)
    assert score.dtype == dtype
    assert score.tolist() == loss.tolist()


def test_train_loss_of_one_example() -> None:
    assert scores.train_loss(loss=torch.tensor([0.25])).tolist() == [0.25]


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_train_loss_ranks_high_losses_first(losses: list[float]) -> None:
    score = scores.train_loss(loss=torch.tensor(losses, dtype=torch.float64))
    assert losses[int(score.argmax())] == max(losses)
