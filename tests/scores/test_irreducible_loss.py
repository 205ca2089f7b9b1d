"""The negative irreducible loss."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reducible import scores


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hand_worked(dtype: torch.dtype) -> None:
    given_losses = torch.tensor([0.1, 0.4, 2.9], dtype=dtype)
    score = scores.irreducible_loss(irreducible_loss=given_losses)
    assert score.dtype == dtype
    torch.testing.assert_close(score, torch.tensor([-0.1, -0.4, -2.9], dtype=dtype))
    assert int(score.argmax()) == 0  # what the holdout model finds easiest


@pytest.mark.parametrize("value", [0.0, 1e30, 1e-30])
def test_one_example_at_the_extremes(value: float) -> None:
    one = torch.tensor([value], dtype=torch.float64)
    assert scores.irreducible_loss(irreducible_loss=one).tolist() == [-value]


@given(st.lists(st.floats(0, 1e30), min_size=1, max_size=20))
def test_low_irreducible_losses_come_first(losses: list[float]) -> None:
    score = scores.irreducible_loss(irreducible_loss=torch.tensor(losses, dtype=torch.float64))
    assert losses[int(score.argmax())] == min(losses)
