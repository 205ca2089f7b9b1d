"""Measures a fit of irreducible losses per group, over one plain fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from reducible.costs import times_in_turn
from reducible.fitting import fit_group_irreducible_loss, fit_irreducible_loss
from reducible.lab.bench.rows import row
from reducible.lab.data import fashion_mnist
from reducible.lab.models import MODELS


def fitting_costs(*, epochs: int, repeats: int) -> list[dict[str, Any]]:
    """Irreducible losses per group by one network with adapters, over one plain fit."""
    pool = fashion_mnist("train")
    holdout, train = pool.subset(torch.arange(10_000)), pool.subset(torch.arange(10_000, 30_000))
    clusters = torch.arange(len(pool)) % 100
    options: dict[str, Any] = {"epochs": epochs, "batch_size": 64, "progress": False}
    make = MODELS["mlp-128"]
    work: dict[str, Callable[[], Any]] = {
        "plain": lambda: fit_irreducible_loss(make, holdout, train, **options),
        "10 classes": lambda: fit_group_irreducible_loss(
            make, holdout, train, shared=True, **options
        ),
        "100 clusters": lambda: fit_group_irreducible_loss(
            make, holdout, train, shared=True, groups=clusters, **options
        ),
    }
    taken = times_in_turn(work, repeats=repeats, device=torch.device("cpu"))
    return [
        row(
            f"fitting irreducible losses of {groups}, shared network over one plain fit",
            [mine / plain for mine, plain in zip(taken[groups], taken["plain"], strict=True)],
            "ratio",
        )
        for groups in ("10 classes", "100 clusters")
    ]
