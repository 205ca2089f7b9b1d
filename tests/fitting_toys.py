"""What the tests of fitting need: numbered data, models that remember what they saw."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

import reducible as rd
from reducible.lab.data import TensorSet

QUIET: dict[str, Any] = {"progress": False}


class Numbered(Dataset[tuple[Tensor, int]]):
    """Example i is ([i, features …], label): what a model sees says which example it was."""

    def __init__(self, n: int = 60, classes: int = 3) -> None:
        g = torch.Generator().manual_seed(0)
        self.targets = torch.randint(classes, (n,), generator=g)
        noise = torch.randn(n, 3, generator=g)
        marks = F.one_hot(self.targets, classes)[:, :3]
        self.x = torch.cat([torch.arange(n)[:, None], noise + marks], dim=1)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.x[index], int(self.targets[index])


class Spy(nn.Module):
    """Remembers which examples it saw in train mode and which in eval mode."""

    def __init__(self, classes: int = 3, dropout: float = 0.5) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.BatchNorm1d(3), nn.Linear(3, 8), nn.Dropout(dropout), nn.Linear(8, classes)
        )
        self.trained: list[int] = []
        self.scored: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        (self.trained if self.training else self.scored).extend(x[:, 0].long().tolist())
        return self.net(x[:, 1:])


def making(models: list[Spy], **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        models.append(Spy(**options))
        return models[-1]

    return make


def cut_sets(data: Numbered | None = None, holdout: int = 20) -> tuple[Any, Any]:
    """Holdout and train set of one data set."""
    everything = rd.WithIds(data or Numbered())
    n = len(everything)
    return Subset(everything, range(holdout)), Subset(everything, range(holdout, n))


def sgd_at(lr: float) -> Any:
    return lambda parameters: torch.optim.SGD(parameters, lr=lr)


class Slides(nn.Module):
    """Logits (b, −b): training on label 0 alone pushes b up without end."""

    def __init__(self, start: float = -2.0) -> None:
        super().__init__()
        self.b = nn.Parameter(torch.tensor([start]))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.b, -self.b], dim=1).expand(len(x), 2)


def slide_sets() -> tuple[TensorSet, TensorSet]:
    """A holdout of label 0 and a train set of both labels, whose best b is 0."""
    x = torch.zeros(40, 1)
    holdout = TensorSet(x[:8], torch.zeros(8).long(), num_classes=2)
    return holdout, TensorSet(x, torch.arange(40) % 2)
