"""Greedy choices against a literal greedy loop."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
import torch

from reducible.picks import diverse_top_k
from reducible.types import SelectionError

Likeness = Literal["sum", "max"]
LIKENESS = pytest.mark.parametrize("likeness", ["sum", "max"])


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """⟨a, b⟩/(‖a‖‖b‖), 0 with a zero vector; scaled first, so that squares stay finite."""
    if not a.any() or not b.any():
        return 0.0
    a, b = a / abs(a).max(), b / abs(b).max()
    return math.fsum(a * b) / math.sqrt(math.fsum(a * a) * math.fsum(b * b))


def literal_values(
    scores: np.ndarray, features: np.ndarray, chosen: list[int], lam: float, likeness: Likeness
) -> dict[int, float]:
    """What the greedy step maximises, for each row that is left."""
    out = {}
    for i in range(len(scores)):
        if i not in chosen:
            alike = [cosine(features[i], features[j]) for j in chosen]
            penalty = (sum(alike) if likeness == "sum" else max(alike)) if alike else 0.0
            out[i] = scores[i] - lam * penalty
    return out


def _cases() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    scores, features = rng.normal(size=14), rng.normal(size=(14, 5))
    some_zero = features.copy()
    some_zero[::3] = 0.0
    return {
        "random": (scores, features),
        "alike": (scores, abs(features) + 2.0),
        "opposed": (scores, features * np.where(np.arange(14) % 2, 1.0, -1.0)[:, None]),
        "tied scores": (np.zeros(14), features),
        "all tied": (np.zeros(5), np.tile(features[:1], (5, 1))),
        "one example": (scores[:1], features[:1]),
        "one feature": (scores, features[:, :1]),
        "zero features": (scores, np.zeros((14, 5))),
        "some zero features": (scores, some_zero),
        "huge": (scores * 1e30, features * 1e200),
        "huge and opposed": (scores, -abs(features) * 1e200),
        "huge and tiny rows": (
            scores,
            features * np.where(np.arange(14) % 2, 1e200, 1e-200)[:, None],
        ),
        "huge and tiny entries": (scores, features * np.array([1e200, 1e-200, 1.0, 0.0, 1e150])),
        "tiny": (scores, features * 1e-200),
    }


@LIKENESS
@pytest.mark.parametrize("lam", [0.0, 0.1, 0.3, 5.0])
@pytest.mark.parametrize("name", _cases())
def test_every_pick_is_a_greedy_maximum(name: str, lam: float, likeness: Likeness) -> None:
    scores, features = _cases()[name]
    k = len(scores)
    selection = diverse_top_k(
        torch.tensor(scores),
        torch.tensor(features),
        k,
        lam=lam,
        likeness=likeness,
        generator=_generator(),
    )
    index = selection.index.tolist()
    assert sorted(index) == list(range(k))
    for step, pick in enumerate(index):
        values = literal_values(scores, features, index[:step], lam, likeness)
        best = max(values.values())
        assert values[pick] >= best - 1e-9 * max(1.0, abs(best)), step
    assert selection.info["score"].tolist() == scores[index].tolist()
    assert selection.weight.tolist() == [1.0] * k


def test_hand_worked() -> None:
    """Scores (3, 2.9, 2.5, 0); rows 0 and 1 alike, row 2 across, row 3 opposed to row 0."""
    scores = torch.tensor([3.0, 2.9, 2.5, 0.0])
    features = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])

    def chosen(lam: float, likeness: Likeness) -> list[int]:
        return diverse_top_k(
            scores, features, 3, lam=lam, likeness=likeness, generator=_generator()
        ).index.tolist()

    assert chosen(0.1, "sum") == [0, 1, 2]  # 2.9 − 0.1 > 2.5
    assert chosen(1.0, "sum") == [0, 2, 1]  # 1.9 < 2.5; then 1.9 > 0 + 1
    assert chosen(2.0, "sum") == [0, 2, 3]  # 0.9 < 2.5; then 0.9 < 0 + 2: cosine −1 is a bonus
    assert chosen(1.0, "max") == [0, 2, 1]
    assert chosen(2.0, "max") == [0, 2, 1]  # the most alike of {0, 2} to row 3 has cosine 0


def test_sum_and_max_differ_once_two_are_chosen() -> None:
    scores = torch.tensor([9.0, 8.9, 1.0, 0.8])
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    # row 2 is like both chosen rows: 1 − 0.15·2·0.995 = 0.70 < 0.8, but 1 − 0.15·0.995 = 0.85
    picks = {
        kind: diverse_top_k(
            scores, features, 3, lam=0.15, likeness=kind, generator=_generator()
        ).index.tolist()
        for kind in ("sum", "max")
    }
    assert picks == {"sum": [0, 1, 3], "max": [0, 1, 2]}


@LIKENESS
def test_ties_fall_by_the_generator(likeness: Likeness) -> None:
    first = [
        diverse_top_k(
            torch.zeros(4),
            torch.zeros(4, 2),
            1,
            lam=0.1,
            likeness=likeness,
            generator=_generator(seed),
        ).index.item()
        for seed in range(400)
    ]
    counts = np.bincount(first, minlength=4)
    assert bool((abs(counts - 100) <= 4 * math.sqrt(400 * 0.25 * 0.75)).all()), counts


def test_what_it_refuses() -> None:
    ids = torch.tensor([7, 8, 9])
    scores, features = torch.zeros(3), torch.zeros(3, 2)

    def pick(scores: torch.Tensor, features: torch.Tensor, k: int = 1) -> None:
        diverse_top_k(scores, features, k, lam=0.1, likeness="sum", generator=_generator(), ids=ids)

    with pytest.raises(
        SelectionError, match="a feature is not finite for 1 of 3 candidates, ids 8"
    ):
        pick(scores, torch.tensor([[0.0, 0.0], [0.0, math.nan], [0.0, 0.0]]))
    with pytest.raises(SelectionError, match=r"the score is not finite .* ids 9"):
        pick(torch.tensor([0.0, 0.0, math.inf]), features)
    with pytest.raises(SelectionError, match="cannot choose 4 of 3"):
        pick(scores, features, 4)
    with pytest.raises(SelectionError, match="ids 1"):  # positions, where there are no ids
        diverse_top_k(
            scores,
            torch.tensor([[0.0], [math.inf], [0.0]]),
            1,
            lam=0.1,
            likeness="sum",
            generator=_generator(),
        )
