"""What the tests of scorers that learn along need: images, models, what a step may not touch."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import reducible as rd
from reducible.lab.data import TensorSet
from reducible.lab.models import MODELS, lenet

C, K, N_B, N = 10, 6, 12, 48
TASK = rd.Classification()
SGD: Any = lambda p: torch.optim.SGD(p, lr=0.5)  # noqa: E731


def images_of(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 1, 16, 16, generator=g) * 2 + 1
    return x, torch.randint(C, (n,), generator=g)


DATA = TensorSet(*images_of(N), num_classes=C)
STORE = rd.IrreducibleLossStore.from_tensor(torch.rand(N, generator=torch.Generator()))


def model_of(name: str) -> nn.Sequential:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        made = lenet(image=16) if name == "lenet" else MODELS[name]()
    assert isinstance(made, nn.Sequential)
    for module in made.modules():
        if isinstance(module, _BatchNorm):  # running statistics unlike any batch's
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.fill_(0.3)
            module.running_var.fill_(2.0)
    return made.train()


def clone(model: nn.Module) -> Any:
    return copy.deepcopy(model)


def noisy() -> nn.Sequential:
    """Batch normalisation and dropout before the exit and behind it."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(256, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(),
            nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, C),
        ).train()  # fmt: skip


def everything_of(model: nn.Module) -> dict[str, Any]:
    """All of a model that scoring and a scorer's steps must leave alone."""
    return {
        "tensors": {k: v.clone() for k, v in model.state_dict().items()},
        "grads": [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "tracking": [getattr(m, "track_running_stats", None) for m in model.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
    }


def assert_untouched(model: nn.Module, before: dict[str, Any]) -> None:
    after = everything_of(model)
    torch.testing.assert_close(after.pop("tensors"), before.pop("tensors"), rtol=0, atol=0)
    assert after == before


def loss_of(scorer: rd.CoTrained, batch: Any, **scoring: Any) -> Tensor:
    candidates = rd.Candidates(torch.arange(len(batch[1])), batch)
    needs = frozenset({"loss"})
    return rd.measure(scorer.model, candidates, needs, rd.Scoring(**scoring)).require("loss")


def student_of(**options: Any) -> tuple[nn.Module, rd.CoTrained]:
    with torch.random.fork_rng([]):
        torch.manual_seed(5)
        student = nn.Sequential(nn.Flatten(), nn.Linear(256, C))
    return student, rd.CoTrained(student, SGD(student.parameters()), distil=True, **options)
