"""Makes what every measurement trains: a network, its optimizer, an update, a batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reducible.lab.models import MODELS
from reducible.loop import weighted_mean

N_B, N_CANDIDATES = 32, 320


def new_model(name: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A row of MODELS from the same initialisation every time, and its optimizer."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = MODELS[name]()
    return model, adamw(model)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """Over the model's parameters."""
    return torch.optim.AdamW(model.parameters(), fused=True)


def update(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, weight: Tensor
) -> None:
    """One update on x [K, …] and y [K], weighted by ``weight`` [K]."""
    loss = weighted_mean(F.cross_entropy(model(x), y, reduction="none"), weight)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
