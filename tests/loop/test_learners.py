"""Models that learn along: stepped once on each batch, on what the model says of it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

import reducible as rd
from reducible.ledger import Ledger
from reducible.loop import Learners
from reducible.scoring import CoTrained

K = 4
X = torch.randn(K, 3, generator=torch.Generator().manual_seed(0))
BATCH = (X, torch.tensor([0, 1, 1, 0]))
WEIGHTS = torch.ones(K)


class Watched:
    """A scorer that remembers how it was stepped."""

    def __init__(self, *, distil: bool) -> None:
        self.distil, self.steps = distil, list[dict[str, Any]]()
        self.model = nn.Linear(3, 2)

    def step(self, task: Any, batch: Any, weights: Tensor, **how: Any) -> None:
        self.steps.append({"batch": batch, "weights": weights, **how})

    def state_dict(self) -> dict[str, Any]:
        return {"steps": len(self.steps)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = [{}] * state["steps"]


SCORING = rd.Scoring(precision="bfloat16")


def _learners(model: nn.Module, **learners: Any) -> Learners:
    return Learners(model, rd.Classification(), SCORING, Ledger(), **learners)


def test_labels_are_learned_at_once() -> None:
    model, scorer, live = nn.Linear(3, 2), Watched(distil=False), Watched(distil=False)
    learners = _learners(model, scorer=scorer, irreducible=live)
    assert learners.any
    learners.learn(BATCH, WEIGHTS)
    learners.finish()
    for learner in (scorer, live):
        (step,) = learner.steps
        assert step["batch"] is BATCH
        assert step["weights"] is WEIGHTS
        assert step["trained"] is model
        assert step["scoring"] is SCORING
        assert step["predictions"] is None


def test_predictions_are_learned_after_the_training_pass() -> None:
    model, scorer = nn.Linear(3, 2), Watched(distil=True)
    learners = _learners(model, scorer=scorer)
    learners.learn(BATCH, WEIGHTS)
    assert scorer.steps == []
    logits = model(X)
    learners.finish()
    learners.finish()
    (step,) = scorer.steps
    assert torch.equal(step["predictions"], logits.detach().softmax(1))


def test_a_step_that_is_pending_comes_before_the_next_batch() -> None:
    scorer = Watched(distil=True)
    learners = _learners(nn.Linear(3, 2), scorer=scorer)
    learners.learn(BATCH, WEIGHTS)
    learners.learn(BATCH, WEIGHTS)
    assert len(scorer.steps) == 1


def test_a_state_is_taken_after_the_pending_step_and_ends_it() -> None:
    scorer = Watched(distil=True)
    learners = _learners(nn.Linear(3, 2), scorer=scorer)
    learners.learn(BATCH, WEIGHTS)
    assert learners.state_dict() == {"irreducible": None, "scorer": {"steps": 1}}
    learners.learn(BATCH, WEIGHTS)
    learners.load_state_dict({"irreducible": None, "scorer": {"steps": 5}})
    learners.finish()
    assert len(scorer.steps) == 5


def test_without_learners_there_is_nothing_to_do() -> None:
    learners = _learners(nn.Linear(3, 2))
    assert not learners.any
    learners.learn(BATCH, WEIGHTS)
    assert learners.state_dict() == {"irreducible": None, "scorer": None}


def test_both_states_are_taken_over() -> None:
    def made() -> tuple[Learners, nn.Module, nn.Module]:
        nets = nn.Linear(3, 2), nn.Linear(3, 2)
        one, two = (CoTrained(n, torch.optim.SGD(n.parameters(), lr=0.1)) for n in nets)
        return _learners(nn.Linear(3, 2), scorer=one, irreducible=two), *nets

    learners, *nets = made()
    again, *theirs = made()
    learners.learn(BATCH, WEIGHTS)
    again.load_state_dict(copy.deepcopy(learners.state_dict()))
    for mine, taken in zip(nets, theirs, strict=True):
        torch.testing.assert_close(mine.state_dict(), taken.state_dict())
