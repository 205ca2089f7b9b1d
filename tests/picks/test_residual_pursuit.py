"""Residual pursuit in Gram space against Gram–Schmidt on gradients built in full."""

from __future__ import annotations

import math
from collections import Counter
from typing import Literal

import numpy as np
import pytest
import torch

from reducible.picks import residual_pursuit
from reducible.types import SelectionError

Rule = Literal["greedy", "sample"]


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Brute:
    """The residual on explicit rows G [B, C·D], orthonormalised one pick after the other."""

    def __init__(self, h: np.ndarray, f: np.ndarray) -> None:
        self.g = np.array([np.outer(a, b).ravel() for a, b in zip(h, f, strict=True)])
        self.r = self.g.mean(axis=0)
        self.start = np.linalg.norm(self.r)
        self.basis: list[np.ndarray] = []

    @property
    def done(self) -> bool:
        return bool(np.linalg.norm(self.r) <= 1e-6 * self.start)

    def pulls(self) -> np.ndarray:
        return abs(self.g @ self.r)

    def take(self, i: int) -> None:
        e = self.g[i].copy()
        for _ in range(2):  # twice is enough
            for b in self.basis:
                e -= (b @ e) * b
        length = np.linalg.norm(e)
        if length > 1e-6 * np.linalg.norm(self.g[i]):
            e /= length
            self.basis.append(e)
            self.r = self.r - (e @ self.r) * e


def _cases() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    h, f = rng.normal(size=(20, 4)), rng.normal(size=(20, 6))
    h -= h.mean(axis=1, keepdims=True)
    zero = h.copy()
    zero[::2] = 0.0
    return {
        "random": (h, f),
        "few directions": (h[:, :2], f[:, :2]),
        "half are zero": (zero, f),
        "all but one are zero": (np.where(np.arange(20)[:, None] == 7, h, 0.0), f),
        "all zero": (np.zeros((20, 4)), f),
        "copies": (np.repeat(h[:5], 4, axis=0), np.repeat(f[:5], 4, axis=0)),
        "all alike": (np.tile(h[:1], (20, 1)), np.tile(f[:1], (20, 1))),
        "they cancel": (np.concatenate([h, -h]), np.concatenate([f, f])),
        "one example": (h[:1], f[:1]),
        "large": (h, f * 1e30),
        "small": (h * 1e-30, f),
    }


@pytest.mark.parametrize("name", _cases())
def test_greedy_is_the_brute_force_pursuit(name: str) -> None:
    h, f = _cases()[name]
    size = len(h)
    for k in (1, size // 2, size):
        if k == 0:
            continue
        selection = residual_pursuit(
            torch.tensor(h), torch.tensor(f), k, rule="greedy", generator=_generator()
        )
        index = selection.index.tolist()
        assert len(set(index)) == k  # never a row twice
        assert 0 <= min(index) <= max(index) < size
        assert selection.weight.tolist() == [1.0] * k
        brute = Brute(h, f)
        for step, pick in enumerate(index):
            if brute.start < 1e-12 * abs(brute.g).max() or brute.done:
                break
            pulls = brute.pulls()
            pulls[index[:step]] = -1.0
            assert pulls[pick] >= pulls.max() * (1 - 1e-6) - 1e-12 * brute.start**2, step
            assert selection.info["score"][step].item() == pytest.approx(
                pulls[pick], rel=1e-5, abs=float(1e-10 * brute.start**2)
            )
            brute.take(pick)


def test_a_long_run_explains_the_mean() -> None:
    """As many picks as there are directions leave nothing of the residual."""
    h, f = _cases()["random"]
    index = residual_pursuit(torch.tensor(h), torch.tensor(f), 18, generator=_generator()).index
    brute = Brute(h, f)
    for i in index.tolist():
        brute.take(i)
    assert np.linalg.norm(brute.r) < 1e-6 * brute.start


def test_hand_worked() -> None:
    """G = (2, 0), (0, 1.5), (2.1, 0.1): r = (1.3667, 0.5333), pulls 2.73, 0.8, 2.92.

    After row 2, what is left of r points along (−0.05, 1): rows 0 and 1 pull 0.046 and 0.70.
    """
    h = torch.ones(3, 1, dtype=torch.float64)
    f = torch.tensor([[2.0, 0.0], [0.0, 1.5], [2.1, 0.1]], dtype=torch.float64)
    selection = residual_pursuit(h, f, 2, generator=_generator())
    assert selection.index.tolist() == [2, 1]
    e = np.array([2.1, 0.1]) / math.hypot(2.1, 0.1)
    r = np.array([4.1 / 3, 1.6 / 3])
    left = r - (e @ r) * e
    assert selection.info["score"].tolist() == pytest.approx(
        [2.1 * r[0] + 0.1 * r[1], 1.5 * left[1]]
    )


def test_against_the_mean_counts_as_much_as_along_it() -> None:
    """|⟨G, r⟩|: the row −2 pulls harder than the rows 1 whose mean it opposes."""
    f = torch.tensor([[1.0], [1.0], [1.0], [1.0], [-2.0]], dtype=torch.float64)
    h = torch.ones(5, 1, dtype=torch.float64)
    assert residual_pursuit(h, f, 1, generator=_generator()).index.tolist() == [4]


def exact_pairs(h: np.ndarray, f: np.ndarray) -> dict[tuple[int, int], float]:
    """Probability of each ordered pair drawn by |⟨G_i, r⟩|."""
    out: dict[tuple[int, int], float] = {}
    first = Brute(h, f).pulls()
    for i in range(len(h)):
        brute = Brute(h, f)
        brute.take(i)
        pulls = brute.pulls()
        pulls[i] = 0.0
        for j in range(len(h)):
            if i != j:
                out[i, j] = first[i] / first.sum() * pulls[j] / pulls.sum()
    return out


def test_sampled_pairs_are_as_frequent_as_they_should_be() -> None:
    rng = np.random.default_rng(4)
    h, f = rng.normal(size=(4, 2)), rng.normal(size=(4, 3))
    exact, generator, draws = exact_pairs(h, f), _generator(5), 10_000
    ht, ft = torch.tensor(h), torch.tensor(f)
    counts: Counter[tuple[int, ...]] = Counter()
    for _ in range(draws):
        index = residual_pursuit(ht, ft, 2, rule="sample", generator=generator).index
        counts[tuple(index.tolist())] += 1
    for pair, share in exact.items():
        error = math.sqrt(share * (1 - share) / draws)
        assert abs(counts[pair] / draws - share) <= 4 * error, pair


@pytest.mark.parametrize("name", _cases())
@pytest.mark.parametrize("rule", ["greedy", "sample"])
def test_never_a_row_twice(name: str, rule: Rule) -> None:
    h, f = (torch.tensor(x) for x in _cases()[name])
    for seed in range(5):
        for k in {1, max(1, len(h) - 1), len(h)}:
            index = residual_pursuit(h, f, k, rule=rule, generator=_generator(seed)).index
            assert index.unique().numel() == k


@pytest.mark.parametrize("rule", ["greedy", "sample"])
def test_once_the_mean_is_explained_the_rest_is_random(rule: Rule) -> None:
    """One direction: the first pick explains all; after it every other row is as likely."""
    h = torch.ones(6, 1, dtype=torch.float64)
    f = torch.tensor([[5.0], [0.0], [0.0], [0.0], [0.0], [0.0]], dtype=torch.float64)
    generator, counts = _generator(6), np.zeros(6)
    for _ in range(2000):
        index = residual_pursuit(h, f, 2, rule=rule, generator=generator).index.tolist()
        assert index[0] == 0
        counts[index[1]] += 1
    assert bool((abs(counts[1:] - 400) <= 4 * math.sqrt(2000 * 0.2 * 0.8)).all()), counts


def test_a_row_without_a_direction_of_its_own_leaves_the_residual() -> None:
    """Sampled: a copy of the first pick pulls nothing, so it comes last."""
    h = torch.ones(4, 1, dtype=torch.float64)
    f = torch.tensor([[1.0, 0.2], [0.2, 1.0], [1.0, 0.2], [0.2, 1.0]], dtype=torch.float64)
    for seed in range(50):
        index = residual_pursuit(h, f, 4, rule="sample", generator=_generator(seed)).index.tolist()
        assert index[0] % 2 != index[1] % 2  # one of each kind before a copy


@pytest.mark.parametrize(("left", "random"), [(7e-7, True), (2e-6, False)])
def test_the_residual_counts_down_to_a_millionth(left: float, random: bool) -> None:
    """r = (1, left): after row 0 rows 1 and 2 pull in vain once that is under 10⁻⁶."""
    f = torch.zeros(6, 2, dtype=torch.float64)
    f[0, 0], f[1, 1], f[2, 1] = 6.0, 3.6 * left, 2.4 * left
    h = torch.ones(6, 1, dtype=torch.float64)
    second = set[int]()
    for seed in range(60):
        selection = residual_pursuit(h, f, 2, generator=_generator(seed))
        assert selection.index[0] == 0
        assert (selection.info["score"][1].item() == 0.0) is random
        second.add(int(selection.index[1]))
    assert second == ({1, 2, 3, 4, 5} if random else {1})


@pytest.mark.parametrize(("across", "counts"), [(0.9e-6, False), (4e-6, True)])
def test_a_direction_under_a_millionth_leaves_the_residual(across: float, counts: bool) -> None:
    """Rows (1, 0), (1, a) and a hundred (0, a/2): of the first two the second pick adds only a."""
    f = torch.zeros(104, 2, dtype=torch.float64)
    f[:2, 0], f[1, 1], f[2:102, 1] = 1.0, across, across / 2
    h = torch.ones(104, 1, dtype=torch.float64)
    selection = residual_pursuit(h, f, 6, generator=_generator())
    index, score = selection.index.tolist(), selection.info["score"].tolist()
    assert index[:2] == [1, 0]
    assert min(score[:2]) > 0.0
    if counts:  # the first two explain all: the rest is random
        assert score[2:] == [0.0] * 4
    else:
        assert 2 <= index[2] < 102
        assert score[2] > 0.0
        assert score[3:] == [0.0] * 3


def test_no_gradient_gives_random_rows() -> None:
    generator, counts = _generator(7), np.zeros(5)
    for _ in range(2000):
        index = residual_pursuit(
            torch.zeros(5, 2, dtype=torch.float64),
            torch.ones(5, 3, dtype=torch.float64),
            2,
            generator=generator,
        ).index.tolist()
        counts[index] += 1
    assert bool((abs(counts - 800) <= 4 * math.sqrt(2000 * 0.4 * 0.6)).all()), counts


def test_k_out_of_range() -> None:
    with pytest.raises(SelectionError, match="cannot choose 4 of 3"):
        residual_pursuit(torch.ones(3, 2), torch.ones(3, 2), 4, generator=_generator())
