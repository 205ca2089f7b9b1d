"""What the tests of looking at passing batches need: rows with labels, told or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

N, N_B, K = 96, 16, 4
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(N) * 7 % 3


class Unlabelled(Dataset[Any]):
    """Rows with labels, but no attribute that tells them beforehand."""

    def __init__(self, labels: Tensor) -> None:
        self.y = labels

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> Any:
        return (X[index], self.y[index])


class Labelled(Unlabelled):
    @property
    def targets(self) -> Tensor:
        return self.y


def linear_model() -> nn.Module:
    return nn.Linear(4, 3)


def walk_passes(make: Callable[[], Any], count: int) -> None:
    loop = make()
    for _ in range(count):
        list(loop)
