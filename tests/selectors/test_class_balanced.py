"""Quotas per class, and the rule that fills them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reducible as rd
from reducible.selectors.class_balanced import quotas


def real_quotas(share: list[float], room: list[int], k: int, k_min: int) -> list[float]:
    """clip(λ·share_t, least, room_t) with the λ at which they sum to k, by bisection."""
    least = [min(k_min, k // len(room), r) for r in room]

    def at(log_factor: float) -> list[float]:
        factor = math.exp(log_factor)
        return [min(max(factor * s, lo), r) for s, lo, r in zip(share, least, room, strict=True)]

    low, high = -400.0, 400.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(at(middle)) < k else (low, middle)
    return at(high)


@settings(max_examples=300)
@given(st.data())
def test_quotas_are_the_largest_remainders(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 6))
    share = data.draw(st.lists(st.floats(1e-3, 1e3), min_size=size, max_size=size))
    room = data.draw(st.lists(st.integers(1, 12), min_size=size, max_size=size))
    k = data.draw(st.integers(1, sum(room)))
    k_min = data.draw(st.integers(0, 4))
    got = quotas(
        torch.tensor(share, dtype=torch.float64), torch.tensor(room), k, k_min=k_min
    ).tolist()
    assert sum(got) == k
    real = real_quotas(share, room, k, k_min)
    for quota, r in zip(got, room, strict=True):
        assert min(k_min, k // size, r) <= quota <= r
    for quota, exact in zip(got, real, strict=True):
        assert abs(quota - exact) < 1 + 1e-6
    up = [x - math.floor(x) for q, x in zip(got, real, strict=True) if q > x + 1e-6]
    down = [
        x - math.floor(x) for q, x, r in zip(got, real, room, strict=True) if q < x - 1e-6 and q < r
    ]
    if up and down:
        assert min(up) >= max(down) - 1e-6


@pytest.mark.parametrize(
    ("share", "room", "k", "k_min", "expected"),
    [
        ([2.0, 1.0, 1.0], [9, 9, 9], 8, 1, [4, 2, 2]),
        ([5.0, 3.0, 2.0], [9, 9, 9], 7, 1, [4, 2, 1]),  # 3.5, 2.1, 1.4
        ([5.0, 3.2, 1.8], [9, 9, 9], 9, 1, [4, 3, 2]),  # 4.5, 2.88, 1.62
        ([100.0, 1.0, 1.0], [9, 9, 9], 6, 1, [4, 1, 1]),  # never under k_min
        ([100.0, 1.0, 1.0], [9, 9, 9], 6, 0, [6, 0, 0]),
        ([100.0, 1.0, 1.0], [3, 9, 9], 7, 1, [3, 2, 2]),  # what has no room goes to the others
        ([100.0, 2.0, 1.0], [3, 9, 9], 9, 1, [3, 4, 2]),
        ([1.0, 1.0, 1.0], [9, 9, 9], 2, 1, [1, 1, 0]),  # fewer rows than classes
        ([1.0, 1.0, 1.0], [1, 9, 9], 9, 3, [1, 4, 4]),
        ([1.0, 1.0], [9, 9], 6, 5, [3, 3]),  # k_min is cut to k/T
        ([4.0, 2.4, 1.6], [9, 9, 9], 4, 0, [2, 1, 1]),  # 2, 1.2, 0.8: a whole quota gains nothing
        ([1.0], [4], 3, 1, [3]),
        ([1.0, 1.0], [2, 2], 4, 1, [2, 2]),
    ],
)
def test_quotas_by_hand(
    share: list[float], room: list[int], k: int, k_min: int, expected: list[int]
) -> None:
    got = quotas(torch.tensor(share), torch.tensor(room), k, k_min=k_min)
    assert got.tolist() == expected
    assert got.dtype == torch.int64


def _evidence(step: int, size: int = 40, classes: int = 4, **changes: Any) -> rd.Evidence:
    rng = np.random.default_rng(step)
    targets = rng.choice(classes, p=np.array([0.5, 0.3, 0.15, 0.05]), size=size)
    fields: dict[str, Any] = {
        "ids": torch.arange(size),
        "targets": torch.tensor(targets),
        "loss": torch.tensor(rng.exponential(size=size) * (1 + targets)),
        "irreducible_loss": torch.tensor(rng.exponential(size=size)),
        "features": torch.tensor(rng.normal(size=(size, 3))),
    }
    return rd.Evidence(**(fields | changes))


def literal_hybrid(rho: np.ndarray, f: np.ndarray, rows: list[int], n: int, lam: float) -> set[int]:
    """n of ``rows``: greedily ρ_i − λ·max cos to those chosen."""
    chosen: list[int] = []
    for _ in range(n):
        best, best_value = -1, -math.inf
        for i in rows:
            if i in chosen:
                continue
            alike = [
                float(f[i] @ f[j]) / (np.linalg.norm(f[i]) * np.linalg.norm(f[j])) for j in chosen
            ]
            value = rho[i] - lam * max(alike) if alike else rho[i]
            if value > best_value:
                best, best_value = i, value
        chosen.append(best)
    return set(chosen)


@pytest.mark.parametrize("beta", [0.9, 0.0])
@pytest.mark.parametrize("lam", [0.2, 2.0])
def test_a_run_equals_the_literal_reference(beta: float, lam: float) -> None:
    k = 13
    rule = rd.selector("rho_class_balanced", beta=beta, lam=lam)
    averages: dict[int, float] = {}
    for step in range(30):
        evidence = _evidence(step)
        y, f = evidence.require("targets").numpy(), evidence.require("features").numpy()
        rho = (evidence.require("loss") - evidence.require("irreducible_loss")).numpy()
        present = sorted(set(y.tolist()))
        means = {t: math.fsum(rho[y == t]) / int((y == t).sum()) for t in present}
        for t in present:
            old = averages.get(t, means[t])
            averages[t] = beta * old + (1 - beta) * means[t]
        share = [math.exp(means[t] - averages[t]) for t in present]
        room = [int((y == t).sum()) for t in present]
        chosen = rule.select(evidence, k, generator=torch.Generator().manual_seed(step))
        quota = chosen.info["quotas"].tolist()
        assert sum(quota) == k == chosen.index.unique().numel()
        if step and beta:  # before, all remainders are equal
            expected = quotas(torch.tensor(share, dtype=torch.float64), torch.tensor(room), k)
            assert quota == expected.tolist()
        for t, n in zip(present, quota, strict=True):
            got = {i for i in chosen.index.tolist() if y[i] == t}
            assert got == literal_hybrid(rho, f, np.flatnonzero(y == t).tolist(), n, lam)
        assert chosen.info["score"].tolist() == rho[chosen.index].tolist()
        assert chosen.weight.tolist() == [1.0] * k
        rule.observe(evidence, chosen)
        state = rule.state_dict()["averages"]
        assert {t: a.item() for t, a in state.items()} == pytest.approx(averages)


def test_a_class_that_has_become_more_reducible_gets_more() -> None:
    """ρ̄ = (1, 1) at first, then (1 + log 3/0.9, 1): r = (3, 1), so 6 of 8 are of class 0."""
    rule = rd.selector("rho_class_balanced")
    y = torch.tensor([0] * 10 + [1] * 10)
    loss = torch.ones(20, dtype=torch.float64)
    before = _evidence(0, 20, targets=y, loss=loss, irreducible_loss=torch.zeros(20))
    rule.observe(before, rd.Selection(torch.tensor([0]), torch.ones(1)))
    loss = loss + torch.where(y == 0, math.log(3) / 0.9, 0.0)
    after = _evidence(0, 20, targets=y, loss=loss, irreducible_loss=torch.zeros(20))
    chosen = rule.select(after, 8, generator=torch.Generator())
    assert chosen.info["quotas"].tolist() == [6, 2]


def test_equal_remainders_favour_no_class() -> None:
    y = torch.arange(3).repeat_interleave(4)
    evidence = _evidence(0, 12, targets=y)
    extra = np.zeros(3)
    for seed in range(300):
        rule = rd.selector("rho_class_balanced")
        chosen = rule.select(evidence, 4, generator=torch.Generator().manual_seed(seed))
        extra += chosen.info["quotas"].numpy() - 1
    assert extra.sum() == 300
    assert bool((abs(extra - 100) <= 4 * math.sqrt(300 * 2 / 9)).all()), extra


def test_the_reports_own_run_takes_as_many_of_each_class() -> None:
    rule = rd.selector("rho_class_balanced", adaptive=False)
    y = torch.tensor([0] * 10 + [1] * 10 + [2] * 2)
    evidence = _evidence(0, 22, targets=y)
    chosen = rule.select(evidence, 14, generator=torch.Generator())
    assert chosen.info["quotas"].tolist() == [4, 4, 2]  # ⌊14/3⌋, and class 2 has no more
    assert np.bincount(y[chosen.index]).tolist() == [4, 4, 2]
    assert rule.select(evidence, 3, generator=torch.Generator()).info["quotas"].tolist() == [1] * 3


def test_the_reports_own_run_with_fewer_rows_than_classes() -> None:
    rule = rd.selector("rho_class_balanced", adaptive=False)
    evidence = _evidence(0, 12, targets=torch.arange(4).repeat(3))
    seen = set[int]()
    for seed in range(30):
        chosen = rule.select(evidence, 2, generator=torch.Generator().manual_seed(seed))
        classes = evidence.require("targets")[chosen.index].tolist()
        assert len(classes) == len(set(classes)) == 2
        seen |= set(classes)
    assert seen == {0, 1, 2, 3}


@pytest.mark.parametrize("k", [1, 5, 12])
def test_one_class_only(k: int) -> None:
    evidence = _evidence(0, 12, targets=torch.full((12,), 3))
    for adaptive in (True, False):
        rule = rd.selector("rho_class_balanced", adaptive=adaptive)
        chosen = rule.select(evidence, k, generator=torch.Generator())
        assert chosen.index.unique().numel() == k
        rule.observe(evidence, chosen)
        assert set(rule.state_dict()["averages"]) == {3}


@pytest.mark.parametrize("scale", [1e30, 1e-30, 0.0])
def test_extremes(scale: float) -> None:
    rule = rd.selector("rho_class_balanced")
    for step in range(3):
        plain = _evidence(step)
        evidence = _evidence(
            step, loss=plain.require("loss") * scale, irreducible_loss=torch.zeros(40)
        )
        for k in (1, 13, 40):
            chosen = rule.select(evidence, k, generator=torch.Generator())
            assert chosen.index.unique().numel() == k
        rule.observe(evidence, chosen)


def test_no_quota_below_k_min() -> None:
    for k_min in (0, 3):
        rule = rd.selector("rho_class_balanced", k_min=k_min)
        y = torch.arange(2).repeat_interleave(10)
        calm = _evidence(0, 20, targets=y, loss=torch.zeros(20), irreducible_loss=torch.zeros(20))
        rule.observe(calm, rd.Selection(torch.tensor([0]), torch.ones(1)))
        loud = _evidence(
            0, 20, targets=y, loss=torch.where(y == 0, 50.0, 0.0), irreducible_loss=torch.zeros(20)
        )
        chosen = rule.select(loud, 10, generator=torch.Generator())
        assert chosen.info["quotas"].tolist() == [10 - k_min, k_min]


def test_averages_are_kept_in_double() -> None:
    rule = rd.selector("rho_class_balanced")
    plain = _evidence(0)
    evidence = _evidence(
        0,
        loss=plain.require("loss").float(),
        irreducible_loss=plain.require("irreducible_loss").float(),
    )
    rule.observe(evidence, rule.select(evidence, 5, generator=torch.Generator()))
    averages = rule.state_dict()["averages"].values()
    assert {a.dtype for a in averages} == {torch.float64}


def test_a_broken_feature_is_named_by_its_id() -> None:
    features = torch.zeros(12, 3, dtype=torch.float64)
    features[7, 1] = math.nan
    y = torch.arange(2).repeat_interleave(6)
    evidence = _evidence(0, 12, targets=y, features=features, ids=torch.arange(100, 112))
    with pytest.raises(rd.SelectionError, match="ids 107"):
        rd.selector("rho_class_balanced").select(evidence, 8, generator=torch.Generator())
