"""Cheap scoring by another model: a frozen one, or one that learns along."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import reducible as rd
from scoring_toys import (
    FULL,
    N_B,
    STORE,
    K,
    Known,
    Net,
    Spy,
    assert_resumes,
    batches_of,
    loader_of,
    losses_of,
    train_until,
)


def test_a_frozen_scorer_scores_in_the_models_stead() -> None:
    model, scorer, spy = Net(), Net(1), Spy(rd.selector("rho"))
    before = copy.deepcopy(scorer.state_dict())
    batches = batches_of(spy, model, scorer=scorer)
    ids, _ = train_until(batches, model, FULL)
    for chosen, evidence in zip(ids, spy.evidence, strict=True):
        rho = losses_of(scorer, evidence.ids) - STORE.lookup(evidence.ids)
        assert chosen == evidence.ids[rho.argsort(descending=True)[:K]].tolist()
    assert model.scored == []
    assert model.trained == [K] * FULL
    assert scorer.scored == [N_B] * FULL
    torch.testing.assert_close(scorer.state_dict(), before, rtol=0, atol=0)
    assert all(p.grad is None for p in scorer.parameters())


def test_a_frozen_scorer_is_not_told_the_models_losses() -> None:
    model, scorer, spy = Net(), Net(1), Spy(rd.selector("train_loss"))
    batches = batches_of(
        spy, model, Known(loader_of(repeat=3)), scorer=scorer, scoring={"max_age": 9}
    )
    train_until(batches, model, 3, remember=True)
    for evidence in spy.evidence:
        torch.testing.assert_close(evidence.require("loss"), losses_of(scorer, evidence.ids))


def test_a_co_trained_scorer_steps_once_per_batch() -> None:
    model, scorer, literal = Net(), Net(1), Net(1)
    spy = Spy(rd.selector("rho"))
    learner = rd.CoTrained(scorer, torch.optim.Adam(scorer.parameters(), lr=0.05))
    optimizer = torch.optim.Adam(literal.parameters(), lr=0.05)
    batches = batches_of(spy, model, scorer=learner)
    for chosen in batches:
        ids = spy.evidence[-1].ids
        torch.testing.assert_close(spy.evidence[-1].loss, losses_of(literal, ids))
        x, y = chosen.batch
        optimizer.zero_grad()
        F.cross_entropy(literal(x), y).backward()
        optimizer.step()
        torch.testing.assert_close(scorer.state_dict(), literal.state_dict())
    assert scorer.trained == [K] * FULL
    assert scorer.scored == [N_B] * FULL
    assert model.scored == model.trained == []


def test_a_co_trained_scorer_steps_on_every_part() -> None:
    scorer = Net(1)
    learner = rd.CoTrained(scorer, torch.optim.SGD(scorer.parameters(), lr=0.1))
    list(batches_of("rho", Net(), scorer=learner, scoring={"updates_per_scoring": 2}))
    assert scorer.trained == [K] * 2 * FULL


def test_a_scorers_steps_are_charged_to_scoring() -> None:
    class Clock:
        now = 0.0

        def __call__(self) -> float:
            return self.now

    clock = Clock()

    class Slow(Net):
        def forward(self, x: Tensor) -> Tensor:
            clock.now += 1.0 if not torch.is_grad_enabled() else 10.0
            return super().forward(x)

    ledger, scorer = rd.Ledger(clock=clock), Slow(1)
    learner = rd.CoTrained(scorer, torch.optim.SGD(scorer.parameters(), lr=0.1))
    list(batches_of("rho", Net(), scorer=learner, ledger=ledger))
    assert ledger.seconds["score"] == ledger.total == (1 + 10) * FULL


@pytest.mark.parametrize("updates", [1, 2])
@pytest.mark.parametrize("stop", [3, FULL])
def test_a_co_trained_scorer_resumes(stop: int, updates: int) -> None:
    def make() -> tuple[Net, Any]:
        model, scorer = Net(), Net(1)
        learner = rd.CoTrained(scorer, torch.optim.Adam(scorer.parameters(), lr=0.05))
        scoring = {"updates_per_scoring": updates}
        return model, batches_of("rho", model, scorer=learner, scoring=scoring)

    assert_resumes(make, stop=stop, until=2 * FULL)


def test_a_scorer_follows_the_rate_of_its_lead() -> None:
    model, scorer, literal = Net(), Net(1), Net(1)
    lead = torch.optim.SGD(model.parameters(), lr=0.2)
    learner = rd.CoTrained.following(scorer, lead, lr_ratio=0.5)
    optimizer = torch.optim.SGD(literal.parameters(), lr=0.0)
    for chosen in batches_of("rho", model, scorer=learner):
        optimizer.param_groups[0]["lr"] = 0.5 * lead.param_groups[0]["lr"]
        x, y = chosen.batch
        optimizer.zero_grad()
        F.cross_entropy(literal(x), y).backward()
        optimizer.step()
        torch.testing.assert_close(scorer.state_dict(), literal.state_dict())
        lead.param_groups[0]["lr"] *= 0.8


def test_a_scorer_that_is_none() -> None:
    with pytest.raises(rd.ConfigurationError, match=r"scorer is a str: pass a module"):
        batches_of("rho", Net(), scorer="mlp-64")
