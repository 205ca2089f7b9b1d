"""Measuring leaves a model that can be trained, whatever it keeps of a pass."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reducible as rd
from evidence_toys import Counting, loss_of, made_candidates
from reducible.lab.models import mlp
from reducible.scoring.evidence import group_losses
from reducible.scoring.forward import without_graph

_TABLES: dict[int, Tensor] = {}


@functools.cache
def _table(length: int) -> Tensor:
    return torch.linspace(0.5, 1.5, length)


class Keeps(nn.Module):
    """Scales activations by a table that it makes in its first forward, and keeps."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where
        self.first, self.last = nn.Linear(256, 8), nn.Linear(8, 10)
        self.kept: Any = None
        self.by_length: dict[int, Tensor] = {}
        self.listed: list[Tensor] = []

    def table(self, length: int) -> Tensor:
        if self.where == "function":
            return _table(length)
        new = torch.linspace(0.5, 1.5, length)
        if self.where == "attribute":
            self.kept = new if self.kept is None else self.kept
            return self.kept
        if self.where == "buffer":
            if "made" not in self._buffers:
                self.register_buffer("made", new, persistent=False)
            return self.get_buffer("made")
        if self.where == "list":
            if not self.listed:
                self.listed.append(new)
            return self.listed[0]
        return (self.by_length if self.where == "dict" else _TABLES).setdefault(length, new)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x.flatten(1))  # [B, 8]
        return self.last(hidden * self.table(hidden.shape[1]))


class Lazily(nn.Module):
    """Makes its last layer's weights in its first forward."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(256, 8)
        self.last = nn.LazyLinear(10)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x.flatten(1)).relu())


KEEPING = ["attribute", "buffer", "list", "dict", "global", "function", "lazy"]


def _keeping(where: str) -> nn.Module:
    _TABLES.clear()
    _table.cache_clear()
    torch.manual_seed(4)
    return Lazily() if where == "lazy" else Keeps(where)


def _gradients(model: nn.Module, candidates: rd.Candidates) -> list[Tensor]:
    x, y = candidates.batch
    F.cross_entropy(model(x), y).backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def _score_group_losses(model: nn.Module, candidates: rd.Candidates) -> None:
    group_losses(model, candidates.batch, candidates.ids, rd.Classification(), 10)


SCORED: list[Callable[[nn.Module, rd.Candidates], Any]] = [
    lambda model, candidates: loss_of(model, candidates),
    lambda model, candidates: loss_of(model, candidates, precision="bfloat16"),
    lambda model, candidates: loss_of(model, candidates, batchnorm="reference"),
    _score_group_losses,
]


@pytest.mark.parametrize("score", SCORED, ids=["float32", "bfloat16", "reference", "groups"])
@pytest.mark.parametrize("where", KEEPING)
def test_what_a_model_makes_while_it_is_scored_can_be_trained(
    where: str, score: Callable[[nn.Module, rd.Candidates], Any]
) -> None:
    candidates = made_candidates()
    expected = _gradients(_keeping(where), candidates)
    model = _keeping(where)
    score(model, candidates)
    score(model, candidates)
    gradients = _gradients(model, candidates)
    assert len(gradients) == len(expected) == len(list(model.parameters()))
    torch.testing.assert_close(gradients, expected, rtol=0, atol=0)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("score", ["measure", "groups", "without_graph"])
def test_under_the_callers_autocast_training_keeps_its_gradients(
    precision: Any, score: str
) -> None:
    candidates, task = made_candidates(), rd.Classification()

    def gradients(scored: bool) -> list[Tensor]:
        torch.manual_seed(1)
        model = mlp(256, 10, 16)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for _ in range(2 if scored else 0):
                if score == "measure":
                    loss_of(model, candidates, precision=precision)
                elif score == "groups":
                    _score_group_losses(model, candidates)
                else:
                    with without_graph():
                        task.forward(model, candidates.batch)
            assert torch.is_autocast_cache_enabled()
            return _gradients(model, candidates)

    expected, found = gradients(False), gradients(True)
    assert len(found) == len(expected) > 0
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_scoring_under_the_callers_autocast_sees_the_weights_of_now() -> None:
    model, candidates = Counting(), made_candidates()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = loss_of(model, candidates)
        model(candidates.batch[0])  # puts weights as they are into the cache
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.5)
        after = loss_of(model, candidates)
    assert not torch.equal(after, before)
    torch.testing.assert_close(after, loss_of(model, candidates, precision="bfloat16"))
