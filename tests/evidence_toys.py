"""What the tests of measuring need: candidates, models, and what of them must stay as it was."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import reducible as rd
from reducible.lab.models import MODELS

B = 6
MODES = ["candidates", "running", "reference"]


def made_candidates(n: int = B, *, seed: int = 0) -> rd.Candidates:
    g = torch.Generator().manual_seed(seed)
    images = torch.randn(n, 1, 16, 16, generator=g) * 2 + 1
    return rd.Candidates(torch.arange(n), (images, torch.arange(n) % 10))


def resnet() -> nn.Module:
    torch.manual_seed(0)
    model = MODELS["resnet-18-16"]()
    with torch.no_grad():  # running statistics unlike any batch's
        for norm in norms_of(model):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.fill_(0.3)
            norm.running_var.fill_(2.0)
    return model.train()


def norms_of(model: nn.Module) -> list[_BatchNorm]:
    return [m for m in model.modules() if isinstance(m, _BatchNorm)]


def state_of(model: nn.Module) -> dict[str, Any]:
    """Everything that scoring must leave alone."""
    return {
        "tensors": {k: v.clone() for k, v in model.state_dict().items()},
        "modes": [m.training for m in model.modules()],
        "tracking": [m.track_running_stats for m in norms_of(model)],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grads": [p.grad for p in model.parameters()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
    }


def assert_same(model: nn.Module, before: dict[str, Any]) -> None:
    after = state_of(model)
    torch.testing.assert_close(after.pop("tensors"), before.pop("tensors"), rtol=0, atol=0)
    assert after == before


def needing(*names: str) -> frozenset[str]:
    return frozenset(names)


def loss_of(model: nn.Module, candidates: rd.Candidates, **scoring: Any) -> Tensor:
    return rd.measure(model, candidates, needing("loss"), rd.Scoring(**scoring)).require("loss")


class Counting(nn.Module):
    """Counts forwards and the rows in them."""

    def __init__(self, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(256, 10), nn.Dropout(dropout))
        self.rows: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.rows.append(len(x))
        return self.net(x)
