"""Measuring in the mode asked for leaves the model and the random streams as they were."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reducible as rd
from evidence_toys import (
    MODES,
    B,
    assert_same,
    loss_of,
    made_candidates,
    needing,
    norms_of,
    resnet,
    state_of,
)
from reducible.lab.models import mlp
from reducible.scoring.evidence import Measurement, Request


def _loss(logits: Tensor, candidates: rd.Candidates) -> Tensor:
    return F.cross_entropy(logits, candidates.batch[1], reduction="none").detach()


# -- modes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_candidates_means_statistics_of_the_candidate_batch(training: bool) -> None:
    model, candidates = resnet().train(training), made_candidates()
    before = state_of(model)
    loss = loss_of(model, candidates, batchnorm="candidates")
    assert_same(model, before)
    # independently: in train mode, whose running statistics may move here
    independent = resnet().train()
    torch.testing.assert_close(loss, _loss(independent(candidates.batch[0]), candidates))


@pytest.mark.parametrize("batchnorm", ["candidates", "running", "reference"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_layer_that_stands_in_two_places_is_put_back(batchnorm: Any, training: bool) -> None:
    norm, chance = nn.BatchNorm1d(8), nn.Dropout(0.5)
    tail = nn.Sequential(norm, chance)
    model = nn.Sequential(nn.Linear(6, 8), norm, chance, nn.Linear(8, 8), tail, nn.Linear(8, 3))
    model.train(training)
    g = torch.Generator().manual_seed(0)
    batch = (torch.randn(B, 6, generator=g), torch.arange(B) % 3)
    candidates = rd.Candidates(torch.arange(B), batch)
    before = [(m.training, getattr(m, "track_running_stats", None)) for m in model.modules()]
    moved = norm.running_mean
    assert moved is not None
    was = moved.clone()
    found = rd.measure(model, candidates, needing("loss"), rd.Scoring(batchnorm=batchnorm))
    assert before == [
        (m.training, getattr(m, "track_running_stats", None)) for m in model.modules()
    ]
    assert torch.equal(moved, was) == (batchnorm != "reference")
    if batchnorm == "running":  # independently: eval mode
        expected = F.cross_entropy(model.eval()(batch[0]), batch[1], reduction="none")
        torch.testing.assert_close(found.require("loss"), expected)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_running_means_eval_mode(training: bool) -> None:
    model, candidates = resnet().train(training), made_candidates()
    before = state_of(model)
    loss = loss_of(model, candidates, batchnorm="running")
    assert_same(model, before)
    independent = resnet().eval()
    torch.testing.assert_close(loss, _loss(independent(candidates.batch[0]), candidates))
    other = loss_of(model, candidates, batchnorm="candidates")
    assert not torch.allclose(loss, other)  # the two modes differ on this model


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_reference_moves_the_running_statistics_as_training_does(training: bool) -> None:
    model, candidates = resnet().train(training), made_candidates()
    modes = [m.training for m in model.modules()]
    loss = loss_of(model, candidates, batchnorm="reference")
    independent = resnet().train()
    torch.testing.assert_close(loss, _loss(independent(candidates.batch[0]), candidates))
    torch.testing.assert_close(model.state_dict(), independent.state_dict())
    norms, untouched = norms_of(model), norms_of(resnet())
    for norm, old in zip(norms, untouched, strict=True):
        assert norm.running_mean is not None
        assert old.running_mean is not None
        assert not torch.equal(norm.running_mean, old.running_mean)
    assert [m.training for m in model.modules()] == modes


def test_hand_worked_statistics() -> None:
    """x = (0, 2): mean 1, variance 1 in the batch; running ones 0 and 4 are other numbers."""
    model = nn.BatchNorm1d(2, eps=1e-12, affine=False)
    assert model.running_var is not None
    model.running_var.fill_(4.0)
    batch = rd.Candidates(
        torch.arange(2), (torch.tensor([[0.0, 0.0], [2.0, 2.0]]), torch.zeros(2).long())
    )
    logits = {
        mode: rd.measure(model, batch, needing("logits"), rd.Scoring(batchnorm=mode))
        .require("logits")[:, 0]
        .tolist()
        for mode in ("candidates", "running")
    }
    assert logits["candidates"] == pytest.approx([-1.0, 1.0])
    assert logits["running"] == pytest.approx([0.0, 1.0])


@pytest.mark.parametrize("mode", MODES)
def test_a_frozen_batchnorm_stays_frozen(mode: str) -> None:
    model, candidates = resnet(), made_candidates()
    frozen = norms_of(model)[3].eval()
    before = state_of(frozen)
    loss = loss_of(model, candidates, batchnorm=mode)
    assert_same(frozen, before)
    if mode == "running":
        return
    independent = resnet()
    norms_of(independent)[3].eval()
    torch.testing.assert_close(loss, _loss(independent(candidates.batch[0]), candidates))


def test_batchnorm_without_running_statistics() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.Linear(3, 2)).train()
    batch = rd.Candidates(torch.arange(4), (torch.randn(4, 3), torch.zeros(4).long()))
    before = state_of(model)
    loss = loss_of(model, batch)
    assert_same(model, before)
    torch.testing.assert_close(loss, _loss(model(batch.batch[0]), batch))


def test_the_mode_comes_back_where_the_model_fails() -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(1)
            self.drop = nn.Dropout()

        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("out of memory")

    for mode in ("candidates", "running", "reference"):
        model = Fails().train()
        model.drop.eval()
        before = state_of(model)
        with pytest.raises(RuntimeError, match="out of memory"):
            loss_of(model, made_candidates(), batchnorm=mode)
        assert_same(model, before)


def test_dropout_is_off_unless_in_reference() -> None:
    torch.manual_seed(0)
    model, candidates = mlp(256, hidden=64, dropout=0.5).train(), made_candidates()
    expected = _loss(model.eval()(candidates.batch[0]), candidates)
    model.train()
    for mode in ("candidates", "running"):
        torch.testing.assert_close(loss_of(model, candidates, batchnorm=mode), expected)
    moving = loss_of(model, candidates, batchnorm="reference")
    assert not torch.allclose(moving, expected)


def test_requires_grad_and_gradients_stay() -> None:
    model, candidates = resnet(), made_candidates()
    next(model.parameters()).requires_grad_(False)
    _loss(model(candidates.batch[0]), candidates)
    F.cross_entropy(model(candidates.batch[0]), candidates.batch[1]).backward()
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    flags = [p.requires_grad for p in model.parameters()]
    loss_of(model, candidates)
    assert [p.requires_grad for p in model.parameters()] == flags
    for p, grad in zip(model.parameters(), grads, strict=True):
        assert (p.grad is None) == (grad is None)
        if grad is not None and p.grad is not None:
            assert torch.equal(p.grad, grad)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"batchnorm": "batch"}, "batchnorm must be one of"),
        ({"precision": "fp8"}, "precision must"),
    ],
)
def test_a_wrong_setting_fails_at_construction(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(rd.ConfigurationError, match=message):
        rd.Scoring(**setting)


# -- random streams -------------------------------------------------------------------------------


class Draws(nn.Module):
    """Draws from every global stream in every forward."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(256, 10), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.rand(1).item() + np.random.rand() + random.random()  # noqa: NPY002
        return self.net(x + noise)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("needs", [needing("loss"), needing("loss", "mc_logits", "features")])
def test_global_streams_are_where_they_were(
    mode: Any, needs: frozenset[str], global_streams: Callable[[], Any]
) -> None:
    model = Draws().train()
    task = rd.Classification(features="net.1")
    streams = global_streams()
    for _ in range(3):  # the first pass and later ones are treated differently
        rd.measure(
            model, made_candidates(), needs, rd.Scoring(batchnorm=mode), task=task, samples=2
        )
        assert global_streams() == streams


def test_streams_come_back_where_the_model_fails(global_streams: Callable[[], Any]) -> None:
    class Fails(Draws):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            raise RuntimeError("no")

    model = Fails()
    streams = global_streams()
    with pytest.raises(RuntimeError, match="no"):
        loss_of(model, made_candidates())
    assert global_streams() == streams


class FailsOnce(nn.Module):
    """A network with dropout and normalisation whose first pass fails half-way."""

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("nothing", None)
        self.register_module("none", None)
        self.net = nn.Sequential(
            nn.Flatten(), nn.Dropout(0.5), nn.Linear(256, 10), nn.BatchNorm1d(10)
        )
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        logits = self.net(x)
        if self.passes == 1:
            raise RuntimeError("no")
        return logits


@pytest.mark.parametrize("mode", MODES)
def test_a_meter_goes_on_after_a_pass_that_failed(
    mode: Any, global_streams: Callable[[], Any]
) -> None:
    model = FailsOnce()
    meter = Measurement(model, rd.Scoring(batchnorm=mode))
    streams, asked = global_streams(), Request(needing("loss"), {})
    with pytest.raises(RuntimeError, match="no"):
        meter.measure(made_candidates(), asked)
    losses: list[Tensor] = []
    for _ in range(2):
        before = state_of(model)
        losses.append(meter.measure(made_candidates(), asked).require("loss"))
        if mode == "reference":  # running statistics move, and nothing else
            before["tensors"] = state_of(model)["tensors"]
        assert_same(model, before)
        assert all(module.training for module in model.modules())
        assert global_streams() == streams
    once = rd.measure(model, made_candidates(), needing("loss"), rd.Scoring(batchnorm=mode))
    if mode != "reference":  # whose dropout draws
        assert torch.equal(losses[0], losses[1])
        assert torch.equal(losses[0], once.require("loss"))
