"""What the tests of losses per group need: three clouds of points, and small models."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from reducible.lab.data import TensorSet

G, D = 3, 4
HOLDOUT, N = 24, 84


def three_clouds(seed: int = 0, noise: float = 1.0) -> TensorSet:
    """Three overlapping clouds, of which the first is the largest."""
    g = torch.Generator().manual_seed(seed)
    targets = torch.multinomial(torch.tensor([0.5, 0.3, 0.2]), N, replacement=True, generator=g)
    x = 2 * F.one_hot(targets, D).float() + noise * torch.randn(N, D, generator=g)
    return TensorSet(x, targets, num_classes=G)


DATA = three_clouds()
HOLD, TRAIN = DATA.subset(torch.arange(HOLDOUT)), DATA.subset(torch.arange(HOLDOUT, N))


def small_net() -> nn.Module:
    return nn.Sequential(nn.Linear(D, 16), nn.ReLU(), nn.Linear(16, G))


class Unlabelled(Dataset[Any]):
    """Labels are in the items only."""

    def __init__(self) -> None:
        self.x, self.y = DATA.inputs, DATA.targets

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.x[index], int(self.y[index])
