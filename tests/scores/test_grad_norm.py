"""Gradient norms: against numbers worked by hand, literal loops, and autograd."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from reducible import scores
from reducible.scores.grad_norm import residual


def literal_residual(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """p_i − onehot(y_i), one number after the other; 1 − p_y summed from the other classes."""
    rows, classes = logits.shape
    out = np.zeros((rows, classes))
    for i in range(rows):
        top = max(logits[i])
        exponentials = [math.exp(z - top) for z in logits[i]]
        for c in range(classes):
            out[i, c] = exponentials[c] / sum(exponentials)
        out[i, targets[i]] = -sum(out[i, c] for c in range(classes) if c != targets[i])
    return out


def literal_grad_norm(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    h = literal_residual(logits, targets)
    return np.array([math.sqrt(math.fsum(x * x for x in row)) for row in h])


def literal_last_layer(logits: np.ndarray, targets: np.ndarray, features: np.ndarray) -> np.ndarray:
    """The Frobenius norm of [h ⊗ f, h], entry by entry."""
    h = literal_residual(logits, targets)
    out = []
    for i in range(len(h)):
        entries = [a * b for a in h[i] for b in features[i]] + list(h[i])
        largest = max(map(abs, entries)) or 1.0
        out.append(largest * math.sqrt(math.fsum((e / largest) ** 2 for e in entries)))
    return np.array(out)


def test_hand_worked_residual_and_norm() -> None:
    logits = torch.tensor([[2.0, 0.0, 0.0]], dtype=torch.float64)
    targets = torch.tensor([0])
    h = residual(logits=logits, targets=targets)
    expected = torch.tensor([[-0.213014, 0.106507, 0.106507]], dtype=torch.float64)
    torch.testing.assert_close(h, expected, atol=1e-6, rtol=0)
    norm = scores.grad_norm(logits=logits, targets=targets)
    assert norm.item() == pytest.approx(0.260888, abs=1e-6)


def test_hand_worked_last_layer() -> None:
    # Features (3, 4): √(3² + 4² + 1) = √26 times the norm above.
    norm = scores.grad_norm_last_layer(
        logits=torch.tensor([[2.0, 0.0, 0.0]], dtype=torch.float64),
        targets=torch.tensor([0]),
        features=torch.tensor([[3.0, 4.0]], dtype=torch.float64),
    )
    assert norm.item() == pytest.approx(0.260888 * math.sqrt(26), abs=1e-5)


def test_a_sure_and_right_prediction_keeps_its_digits() -> None:
    # 1 − p_y = e^−40/(1 + e^−40): far below the spacing of floats near one.
    logits = torch.tensor([[40.0, 0.0]], dtype=torch.float64)
    norm = scores.grad_norm(logits=logits, targets=torch.tensor([0]))
    assert norm.item() == pytest.approx(math.sqrt(2) * math.exp(-40), rel=1e-12, abs=0)


def _cases() -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    logits, features = rng.normal(size=(32, 5)) * 3, rng.normal(size=(32, 7))
    targets = rng.integers(0, 5, size=32)
    return {
        "random": (logits, targets, features),
        "tied": (np.tile(logits[:1], (6, 1)), np.full(6, 2), np.tile(features[:1], (6, 1))),
        "equal labels": (logits, np.zeros(32, dtype=np.int64), features),
        "one example": (logits[:1], targets[:1], features[:1]),
        "huge": (logits * 1e30, targets, features * 1e30),
        "tiny": (logits * 1e-30, targets, features * 1e-30),
        "zero features": (logits, targets, np.zeros((32, 7))),
        "two classes": (logits[:, :2], targets % 2, features),
    }


@pytest.mark.parametrize("name", _cases())
def test_equals_the_literal_loops(name: str) -> None:
    logits, targets, features = _cases()[name]
    z, y, f = torch.tensor(logits), torch.tensor(targets), torch.tensor(features)
    norm = scores.grad_norm(logits=z, targets=y).numpy()
    np.testing.assert_allclose(norm, literal_grad_norm(logits, targets), rtol=1e-12, atol=0)
    last = scores.grad_norm_last_layer(logits=z, targets=y, features=f).numpy()
    expected = literal_last_layer(logits, targets, features)
    np.testing.assert_allclose(last, expected, rtol=1e-12, atol=0)


def test_zero_gradients_score_zero() -> None:
    """Where the label has all the probability there is, the norm is 0 and not NaN."""
    z, y = torch.tensor([[1e30, 0.0], [0.0, 1e30]]), torch.tensor([0, 1])
    assert scores.grad_norm(logits=z, targets=y).tolist() == [0.0, 0.0]
    assert scores.grad_norm(logits=z, targets=1 - y).tolist() == pytest.approx([2**0.5] * 2)
    last = scores.grad_norm_last_layer(logits=z, targets=y, features=torch.ones(2, 3))
    assert last.tolist() == [0.0, 0.0]


def test_one_class_has_no_gradient() -> None:
    norm = scores.grad_norm(logits=torch.randn(4, 1), targets=torch.zeros(4, dtype=torch.int64))
    assert norm.tolist() == [0.0] * 4


def test_last_layer_is_what_autograd_says() -> None:
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    targets = torch.randint(3, (9,), generator=generator)
    layer = torch.nn.Linear(4, 3, dtype=torch.float64)
    norms = []
    for f, y in zip(features, targets, strict=True):
        layer.zero_grad()
        F.cross_entropy(layer(f[None]), y[None]).backward()
        assert layer.weight.grad is not None
        assert layer.bias.grad is not None
        norms.append(torch.hypot(layer.weight.grad.norm(), layer.bias.grad.norm()))
    score = scores.grad_norm_last_layer(
        logits=layer(features).detach(), targets=targets, features=features
    )
    torch.testing.assert_close(score, torch.stack(norms))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_the_logits(dtype: torch.dtype) -> None:
    z, y, f = torch.randn(3, 2, dtype=dtype), torch.tensor([0, 1, 1]), torch.randn(3, 4)
    assert scores.grad_norm(logits=z, targets=y).dtype == dtype
    assert scores.grad_norm_last_layer(logits=z, targets=y, features=f).dtype == dtype


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=8), st.data())
def test_between_zero_and_root_two_and_untouched_by_a_shift(
    row: list[float], data: st.DataObject
) -> None:
    label = torch.tensor([data.draw(st.integers(0, len(row) - 1))])
    z = torch.tensor([row], dtype=torch.float64)
    norm = scores.grad_norm(logits=z, targets=label).item()
    assert 0.0 <= norm <= math.sqrt(2) + 1e-12
    shifted = scores.grad_norm(logits=z + 7.0, targets=label).item()
    assert shifted == pytest.approx(norm, rel=1e-9, abs=1e-15)
