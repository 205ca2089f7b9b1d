"""What the tests of plans need: six examples of two classes, a store and a plan of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import reducible as rd

# p(y | x) of six examples of two classes whose floors are 0.1 and 0.01
P = torch.tensor([0.9, 0.25, 0.15, 0.5, 0.03, 0.015], dtype=torch.float64)
LABELS = torch.tensor([0, 0, 0, 1, 1, 1])
FLOOR = torch.tensor([0.1, 0.01], dtype=torch.float64)


def store_of(p: Tensor = P, **options: Any) -> rd.IrreducibleLossStore:
    return rd.IrreducibleLossStore.from_tensor(-p.log(), **options)


def plan_of(p: Tensor = P, labels: Tensor = LABELS, **options: Any) -> rd.Plan:
    options = {"noise_floor": FLOOR, "multiple": 2.0, "exponent": 0.5} | options
    return rd.Plan.from_irreducible_loss(store_of(p), torch.arange(len(p)), labels, **options)


def generator_of(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
