"""RHO-LOSS that keeps away from what it has chosen: which likeness, which λ."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import reducible as rd
from reducible.selectors.diverse import DiverseRho


def literal(rho: np.ndarray, f: np.ndarray, k: int, lam: float, likeness: str) -> list[int]:
    chosen: list[int] = []
    for _ in range(k):
        best, best_value = -1, -math.inf
        for i in range(len(rho)):
            if i in chosen:
                continue
            alike = []
            for j in chosen:
                norms = np.linalg.norm(f[i]) * np.linalg.norm(f[j])
                alike.append(float(f[i] @ f[j]) / norms if norms else 0.0)
            penalty = 0.0
            if alike:
                penalty = sum(alike) if likeness == "sum" else max(alike)
            if rho[i] - lam * penalty > best_value:
                best, best_value = i, rho[i] - lam * penalty
        chosen.append(best)
    return chosen


@pytest.mark.parametrize(
    ("name", "default", "likeness"),
    [("rho_greedy_diversity", 0.1, "sum"), ("rho_hybrid_diversity", 0.3, "max")],
)
def test_picks_are_the_literal_ones(
    name: str, default: float, likeness: str, generator: torch.Generator
) -> None:
    assert rd.SELECTORS[name].hyperparameters == {"lam": default}
    assert rd.selector(name).needs == {"loss", "irreducible_loss", "features"}
    for seed in range(5):
        rng = np.random.default_rng(seed)
        loss, il, f = rng.exponential(size=20), rng.exponential(size=20), rng.normal(size=(20, 3))
        f[::4] = 0.0
        evidence = rd.Evidence(
            ids=torch.arange(20),
            loss=torch.tensor(loss),
            irreducible_loss=torch.tensor(il),
            features=torch.tensor(f),
        )
        for given, lam in (({}, default), ({"lam": 2.0}, 2.0), ({"lam": 0}, 0.0)):
            chosen = rd.selector(name, **given).select(evidence, 8, generator=generator)
            assert chosen.index.tolist() == literal(loss - il, f, 8, lam, likeness)
            assert chosen.info["score"].tolist() == (loss - il)[chosen.index].tolist()


def test_an_unknown_likeness() -> None:
    with pytest.raises(rd.ConfigurationError, match="likeness must be one of 'sum', 'max'"):
        DiverseRho(lam=0.1, likeness="mean")  # pyright: ignore[reportArgumentType]
