"""Measures what the irreducible losses of a plan cost, over the same loop by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from reducible.costs import times_in_turn
from reducible.fitting import fit_irreducible_loss
from reducible.lab.bench.rows import row
from reducible.lab.models import MODELS
from reducible.stores import WithIds

Batches = Iterator[tuple[Tensor, Tensor]]
_BATCH, _SCORED, _CHECKED = 32, 1024, 4096


def plan_costs(
    *, repeats: int, fitted: int = 18_000, scored: int = 37_144, epochs: int = 3
) -> list[dict[str, Any]]:
    """Seconds of ``fit_irreducible_loss`` on a plain TensorDataset over those of loops by hand.

    All fit an MLP of 64 units by AdamW, keep the checkpoint of lowest loss on 4,096 rows after
    every epoch, and score all rows with it. One loop by hand takes its rows from a DataLoader, the
    other from slices of tensors.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(fitted + scored, 1, 28, 28, generator=generator)
    y = torch.randint(10, (fitted + scored,), generator=generator)
    holdout, train = (x[:fitted], y[:fitted]), (x[fitted:], y[fitted:])
    work: dict[str, Callable[[], Any]] = {
        "ours": lambda: (
            fit_irreducible_loss(
                MODELS["mlp-64"],
                WithIds(TensorDataset(*holdout)),
                WithIds(TensorDataset(*train)),
                epochs=epochs,
                batch_size=_BATCH,
                make_optimizer=_optimizer,
                progress=False,
            ).values
        ),
        "a DataLoader": lambda: losses_by_hand(_from_loader, holdout, train, epochs),
        "tensor slices": lambda: losses_by_hand(_from_slices, holdout, train, epochs),
    }
    taken = times_in_turn(work, repeats=repeats, device=torch.device("cpu"))
    return [
        row(
            f"irreducible losses of a TensorDataset, over a loop by hand with {rows}",
            [mine / other for mine, other in zip(taken["ours"], taken[rows], strict=True)],
            "ratio",
        )
        for rows in ("a DataLoader", "tensor slices")
    ]


def losses_by_hand(
    batches: Callable[[tuple[Tensor, Tensor], int, bool], Batches],
    holdout: tuple[Tensor, Tensor],
    train: tuple[Tensor, Tensor],
    epochs: int,
) -> Tensor:
    """[N]: losses on ``train`` of the checkpoint, fitted on ``holdout``, that does best there."""
    model = MODELS["mlp-64"]()
    optimizer = _optimizer(model.parameters())
    checked = (train[0][:_CHECKED], train[1][:_CHECKED])
    lowest, best = float("inf"), model.state_dict()
    for _ in range(epochs):
        model.train()
        for x, y in batches(holdout, _BATCH, True):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        mean = float(_losses(model, batches(checked, _SCORED, False)).mean())
        if mean < lowest:
            lowest, best = mean, {k: w.clone() for k, w in model.state_dict().items()}
    model.load_state_dict(best)
    return _losses(model, batches(train, _SCORED, False))


def _losses(model: nn.Module, batches: Batches) -> Tensor:
    model.eval()
    with torch.no_grad():
        return torch.cat([F.cross_entropy(model(x), y, reduction="none") for x, y in batches])


def _optimizer(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3, fused=True)


def _from_loader(data: tuple[Tensor, Tensor], size: int, shuffle: bool) -> Batches:
    return iter(DataLoader(TensorDataset(*data), batch_size=size, shuffle=shuffle))


def _from_slices(data: tuple[Tensor, Tensor], size: int, shuffle: bool) -> Batches:
    order = torch.randperm(len(data[0])) if shuffle else torch.arange(len(data[0]))
    return ((data[0][rows], data[1][rows]) for rows in order.split(size))
