"""What several tests need: small data, models, loops and rules; runs that are killed at a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import reducible as rd
from reducible.lab.data import TensorSet
from reducible.lab.training import Trainer
from reducible.selectors.base import check_state_keys

N, N_B, K = 130, 20, 5  # 130 is six full candidate batches and one short one
FULL = N // N_B
STORE = rd.IrreducibleLossStore.from_tensor(torch.rand(N, generator=torch.Generator()))


class Examples(Dataset[tuple[Tensor, int]]):
    """(x, y) pairs that remember which of them were loaded, in this process."""

    def __init__(self, n: int = N) -> None:
        self.x = torch.randn(n, 4, generator=torch.Generator().manual_seed(1))
        self.targets = (self.x.sum(1) > 0).long() + (self.x[:, 0] > 1).long()
        self.loaded: list[int] = []

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        self.loaded.append(index)
        return self.x[index], int(self.targets[index])

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))


class Opaque(DataLoader[Any]):
    """A subclass may do anything, so its order is not read ahead."""


def loader_of(kind: str = "own", *, workers: int = 0, dataset: Any = None) -> Any:
    data = rd.WithIds(Examples()) if dataset is None else dataset
    own = torch.Generator().manual_seed(3)
    if kind == "tensors":
        examples = Examples()
        return TensorSet(examples.x, examples.targets).loader(
            N_B, drop_last=False, generator=own if dataset is None else None
        )
    if kind == "list":
        return list(DataLoader(data, batch_size=N_B))
    generator = None if kind.endswith("global") else own
    make = Opaque if kind.startswith("opaque") else DataLoader
    return make(data, batch_size=N_B, shuffle=True, generator=generator, num_workers=workers)


def small_model(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))


def batches_of(rule: str | rd.Selector = "rho", loader: Any = None, **options: Any) -> Any:
    selector = rd.selector(rule) if isinstance(rule, str) else rule
    options = {"keep": K} | options
    if "irreducible_loss" in selector.needs:
        options.setdefault("store", STORE)
    model = options.pop("model", None) or small_model()
    return rd.SelectingLoader(loader_of() if loader is None else loader, model, selector, **options)


def ids_over(batches: Any, epochs: int = 1) -> list[list[int]]:
    return [chosen.ids.tolist() for _ in range(epochs) for chosen in batches]


class Spy(rd.Selector):
    """Passes on another rule's choices; remembers the candidates."""

    def __init__(self, inner: rd.Selector) -> None:
        self.inner, self.needs = inner, inner.needs
        self.candidates: list[list[int]] = []

    def select(self, evidence: rd.Evidence, k: int, *, generator: torch.Generator) -> rd.Selection:
        self.candidates.append(evidence.ids.tolist())
        return self.inner.select(evidence, k, generator=generator)


class Rotating(rd.Selector):
    """Chooses another window of the candidates after every observation."""

    needs = frozenset({"targets"})

    def __init__(self) -> None:
        self.seen = 0

    def select(self, evidence: rd.Evidence, k: int, *, generator: torch.Generator) -> rd.Selection:
        index = (torch.arange(k) + self.seen) % len(evidence.ids)
        return rd.Selection(index, torch.full((k,), 1.0 + self.seen))

    def observe(self, evidence: rd.Evidence, selection: rd.Selection) -> None:
        self.seen += int(evidence.require("targets")[selection.index].sum())

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        check_state_keys(self, state, {"seen"})
        self.seen = state["seen"]


class Killed(Exception):
    """Ends a run as a signal would that nobody can handle."""


@contextmanager
def killed_at(step: int) -> Iterator[None]:
    """Any run in the body is killed in the ``step``-th update, before its optimizer steps."""
    inner = Trainer._counted

    def counted(self: Trainer, update: Callable[[], Tensor], rows: int) -> Tensor:
        if self.step == step:
            raise Killed
        return inner(self, update, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_counted", counted)
        with pytest.raises(Killed):
            yield
