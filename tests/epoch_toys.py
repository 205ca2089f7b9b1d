"""What the tests of rules that decide by epoch need: data, loaders, and one epoch of a rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

import reducible as rd
from reducible.lab.data import TensorSet

N, N_B, K, C = 130, 20, 5, 3
UPDATES = 6  # a quarter of 130 is 33 rows (rounded half up), six updates of five
TOTAL = 400  # planned updates
SHARES = ["rs2", "svp"]  # train on a quarter of the data an epoch
RULES = [*SHARES, "infobatch"]  # the last on all of it, or on what it does not drop


class Examples(Dataset[tuple[Tensor, int]]):
    """(x, y) pairs that remember which of them were loaded, in this process."""

    def __init__(self) -> None:
        self.x = torch.randn(N, 4, generator=torch.Generator().manual_seed(1))
        self.targets = (self.x.sum(1) > 0).long() + (self.x[:, 0] > 1).long()
        self.loaded: list[int] = []

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.loaded.append(index)
        return self.x[index], int(self.targets[index])


KINDS = ["pairs", "global", "tensors", "subset"]


def loader_of(
    kind: str = "pairs", *, size: int = N_B, workers: int = 0, data: Examples | None = None
) -> Any:
    examples = data or Examples()
    own = torch.Generator().manual_seed(3)
    if kind == "tensors":
        return TensorSet(examples.x, examples.targets).loader(size, generator=own)
    base: Any = rd.WithIds(examples)
    if kind == "subset":  # ids are not positions
        base = Subset(base, list(range(N - 1, -1, -1)))
    generator = None if kind == "global" else own
    return DataLoader(base, size, shuffle=True, generator=generator, num_workers=workers)


def size_of(rule: str) -> int:
    """The batch size of the loader that a rule is given, for updates of K rows."""
    return K if rule == "infobatch" else N_B


def small_net(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, C))


PROXY = small_net(9)


def batches_of(rule: str, loader: Any = None, **options: Any) -> Any:
    options = {"total_steps": TOTAL, "proxy": PROXY} | options
    if rule != "infobatch":
        options.setdefault("keep", K)
    model = options.pop("model", None) or small_net()
    loader = loader_of(size=size_of(rule)) if loader is None else loader
    return rd.SelectingLoader(loader, model, rd.selector(rule), **options)


def epoch_of(batches: Any, loss_of: Callable[[Tensor], Tensor] | None = None) -> list[Any]:
    """One epoch, in which the losses of the rows handed out are reported."""
    chosen = []
    for c in batches:
        batches.remember(c.ids, torch.ones(len(c.ids)) if loss_of is None else loss_of(c.ids))
        chosen.append(c)
    return chosen


def flat_ids(chosen: list[Any]) -> list[int]:
    return [i for c in chosen for i in c.ids.tolist()]


def rows_of(n: int, size: int) -> Any:
    """A loader of n examples whose ids are not their positions."""
    data = TensorSet(torch.zeros(n, 1), torch.zeros(n).long(), ids=7 * torch.arange(n) + 3)
    return data.loader(size)


def batches_without_model(rule: str, loader: Any, **options: Any) -> Any:
    return rd.SelectingLoader(loader, nn.Identity(), rd.selector(rule), **options)


def easy_loss(ids: Tensor) -> Tensor:
    """Loss 0 for even ids, 1 for odd ones."""
    return (ids % 2).float()
