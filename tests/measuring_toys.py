"""What the tests of measuring in the loop need: data, small models, a rule that is watched."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import reducible as rd
from reducible.lab.data import TensorSet

N, N_B, K, C = 120, 20, 5, 3
STEPS = N // N_B


def labelled_data() -> TensorSet:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(N, 4, generator=g)
    return TensorSet(x, (x.sum(1) > 0).long() + (x[:, 0] > 1).long())


DATA = labelled_data()
STORE = rd.IrreducibleLossStore.from_tensor(torch.rand(N, generator=torch.Generator()))


def small_net(seed: int, *, dropout: float = 0.0, norm: bool = False) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = [nn.Linear(4, 8)]
        layers += [nn.BatchNorm1d(8)] if norm else []
        return nn.Sequential(*layers, nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, C))


def loader_of() -> Any:
    return DATA.loader(N_B, generator=torch.Generator().manual_seed(3))


class Watching(rd.Selector):
    """Passes on another rule's choices; keeps the evidence they were made from."""

    def __init__(self, inner: rd.Selector) -> None:
        self.inner, self.needs = inner, inner.needs
        self.samples, self.lr_ratio = inner.samples, inner.lr_ratio
        self.evidence: list[rd.Evidence] = []

    def select(self, evidence: rd.Evidence, k: int, *, generator: torch.Generator) -> rd.Selection:
        self.evidence.append(evidence)
        return self.inner.select(evidence, k, generator=generator)


def update(model: nn.Module, optimizer: torch.optim.Optimizer, chosen: Any) -> None:
    x, y = chosen.batch
    loss = F.cross_entropy(model(x), y, reduction="none")
    optimizer.zero_grad()
    rd.weighted_mean(loss, chosen.weights).backward()
    optimizer.step()
