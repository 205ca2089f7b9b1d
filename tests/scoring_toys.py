"""What the tests of cheap scoring need: data, a model that counts its rows, loops and resuming."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reducible as rd
from reducible.lab.data import TensorSet

N, N_B, K, C = 120, 20, 5, 3
FULL = N // N_B
STORE = rd.IrreducibleLossStore.from_tensor(
    torch.rand(N, generator=torch.Generator().manual_seed(9))
)


def labelled_data() -> TensorSet:
    x = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
    return TensorSet(x, (x.sum(1) > 0).long() + (x[:, 0] > 1).long())


DATA = labelled_data()


class Net(nn.Module):
    """Counts the rows of its passes, apart for scoring and for training."""

    def __init__(self, seed: int = 0, *, norm: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            middle = nn.BatchNorm1d(8) if norm else nn.ReLU()
            self.net = nn.Sequential(nn.Linear(4, 8), middle, nn.Linear(8, C))
        self.scored: list[int] = []
        self.trained: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        (self.trained if torch.is_grad_enabled() else self.scored).append(len(x))
        return self.net(x)


def losses_of(model: Net, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return F.cross_entropy(model.net(DATA.inputs[ids]), DATA.targets[ids], reduction="none")


class Spy(rd.Selector):
    """Passes on another rule's choices; keeps the evidence."""

    def __init__(self, inner: rd.Selector) -> None:
        self.inner, self.needs, self.lr_ratio = inner, inner.needs, inner.lr_ratio
        self.evidence: list[rd.Evidence] = []

    def select(self, evidence: rd.Evidence, k: int, *, generator: torch.Generator) -> rd.Selection:
        self.evidence.append(evidence)
        return self.inner.select(evidence, k, generator=generator)


class Opaque(torch.utils.data.DataLoader[Any]):
    """A subclass may do anything, so its order is not read ahead."""


def loader_of(*, opaque: bool = False, repeat: int | None = None) -> Any:
    generator = torch.Generator().manual_seed(3)
    if repeat is not None:  # the same candidates again and again
        return [DATA.fetch(torch.arange(N_B))] * repeat
    if opaque:
        data: Any = list(zip(DATA.inputs, DATA.targets.tolist(), strict=True))
        return Opaque(rd.WithIds(data), batch_size=N_B, shuffle=True, generator=generator)
    return DATA.loader(N_B, generator=generator)


def batches_of(
    rule: str | rd.Selector, model: Net, loader: Any = None, *, scoring: Any = None, **options: Any
) -> Any:
    selector = rd.selector(rule) if isinstance(rule, str) else rule
    if "irreducible_loss" in selector.needs and selector.lr_ratio is None:
        options.setdefault("store", STORE)
    options = {"keep": K, "seed": 4} | options
    return rd.SelectingLoader(
        loader or loader_of(), model, selector, scoring=rd.Scoring(**(scoring or {})), **options
    )


def train_until(
    batches: Any, model: Net, until: int, *, remember: bool = False, save_at: int = -1
) -> tuple[list[list[int]], bytes]:
    """Ids handed out up to step ``until``, and the state at step ``save_at``."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    ids, saved = [], io.BytesIO()
    while batches.step < until:
        for chosen in batches:
            x, y = chosen.batch
            loss = F.cross_entropy(model(x), y, reduction="none")
            if remember:
                batches.remember(chosen.ids, loss)
            optimizer.zero_grad()
            rd.weighted_mean(loss, chosen.weights).backward()
            optimizer.step()
            ids.append(chosen.ids.tolist())
            if batches.step == save_at:
                state = {"loader": batches.state_dict(), "model": model.state_dict()}
                torch.save(state, saved)
            if batches.step == until:
                break
    return ids, saved.getvalue()


def assert_resumes(
    make: Callable[[], tuple[Net, Any]], *, stop: int, until: int, remember: bool = False
) -> None:
    """Stopping at ``stop``, saving, and going on equals never having stopped."""
    model, batches = make()
    expected, saved = train_until(batches, model, until, remember=remember, save_at=stop)
    state = torch.load(io.BytesIO(saved), weights_only=True)
    again, batches = make()
    batches.load_state_dict(state["loader"])
    once_more = batches.state_dict()  # a state that was loaded and saved is the same state
    assert once_more["passes"]["position"] == state["loader"]["passes"]["position"]
    again.load_state_dict(state["model"])
    chosen, _ = train_until(batches, again, until, remember=remember)
    assert chosen == expected[stop:]
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)


class Known(list[Any]):
    """Batches that say which ids there are."""

    dataset = DATA
