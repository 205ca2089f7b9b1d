"""What the tests of batches of varying size need: labelled rows, and loops over them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import reducible as rd

N = 512
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
Y = torch.randint(3, (N,), generator=torch.Generator().manual_seed(1))
STORE = rd.IrreducibleLossStore.from_tensor(torch.rand(N, generator=torch.Generator()))


class Examples(Dataset[tuple[Tensor, Tensor]]):
    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return X[index], Y[index]


DATA = rd.WithIds(Examples())


class Opaque(DataLoader[Any]):
    """A subclass may do anything, so its order is not read ahead."""


def batches_of(loader: Any, rule: str = "uniform", keep: float = 0.5, **options: Any) -> Any:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
    if rule == "scheduled":
        scheduled: Any = rd.Scheduled(rd.selector("train_loss"), every=2)
        return rd.SelectingLoader(loader, model, scheduled, keep=keep, **options)
    selector = rd.selector(rule)
    if "irreducible_loss" in selector.needs:
        options.setdefault("store", STORE)
    return rd.SelectingLoader(loader, model, selector, keep=keep, **options)


def ids_of(batches: Any) -> list[list[int]]:
    return [chosen.ids.tolist() for chosen in batches]
