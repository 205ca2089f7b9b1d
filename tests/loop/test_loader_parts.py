"""What the loop tells its parts: what learns along, what listens, the gate; in states, too."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import reducible as rd
from reducible.loop.gate import Gate
from reducible.scoring import CoTrained

N, N_B, K = 60, 20, 5
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(1))
Y = (X.sum(1) > 0).long()
DATA = rd.WithIds(TensorDataset(X, Y))


def _net(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def _loop(rule: Any = "train_loss", *, workers: int = 0, **options: Any) -> Any:
    rule = rd.selector(rule) if isinstance(rule, str) else rule
    loader = DataLoader(DATA, batch_size=N_B, num_workers=workers)
    model = options.pop("model", None) or _net()
    settings: dict[str, Any] = {"keep": K} | options
    return rd.SelectingLoader(loader, model, rule, **settings)


def _train(model: nn.Module, chosen: rd.Chosen) -> None:
    x, y = chosen.batch
    rd.weighted_mean(F.cross_entropy(model(x), y, reduction="none"), chosen.weights).backward()


def _gated(rule: Any = "train_loss", **options: Any) -> Any:
    held = DataLoader(TensorDataset(X[:20], Y[:20]), batch_size=20)
    return _loop(rule, gate=Gate(), held_out=held, **options)


# -- drawing ahead of loading ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("workers", "updates", "ahead"), [(0, 1, True), (2, 1, False), (0, 2, False)]
)
def test_what_waits_for_a_training_pass_is_drawn_ahead_only_in_turn(
    workers: int, updates: int, ahead: bool
) -> None:
    rule, scoring = (
        rd.selector("grad_norm_is", tau_gate=True),
        rd.Scoring(updates_per_scoring=updates),
    )
    loop = _loop(rule, workers=workers, scoring=scoring)
    assert (loop._passes._draw is not None) is ahead
    plain = _loop("uniform", workers=workers, scoring=scoring)
    assert plain._passes._draw is not None  # waits for nothing


# -- hindsight ------------------------------------------------------------------------------------


def _blind() -> Any:
    return rd.selector("grad_norm_is", tau_gate=True)


def test_a_pass_that_was_broken_off_is_not_listened_to_any_more() -> None:
    model = _net()
    loop = _loop(_blind(), model=model)
    next(iter(loop))
    assert loop._hindsight._seen is not None
    loop._selector.is_blind = lambda step, k, size: False  # from now on it looks
    walk = iter(loop)
    _train(model, next(walk))
    assert loop._hindsight._seen is None
    next(walk)


def test_a_state_that_is_taken_over_ends_the_listening() -> None:
    loop = _loop(_blind())
    state = loop.state_dict()
    next(iter(loop))
    loop.load_state_dict(state)
    assert loop._hindsight._seen is None


@pytest.mark.parametrize(("rule", "listens"), [("grad_norm_is", False), ("uniform", False)])
def test_rows_are_listened_to_if_the_rule_wants_to_know(rule: str, listens: bool) -> None:
    loop = _loop(rule)
    next(iter(loop))
    assert (loop._hindsight._seen is not None) is listens


def test_while_the_gate_is_closed_nothing_is_listened_to() -> None:
    loop = _gated(_blind())
    next(iter(loop))
    assert loop._hindsight._seen is not None
    loop.gate.state = "closed"
    assert loop._drawn_at() is None


def test_a_rule_that_looks_at_parts_is_asked_about_all_rows_that_it_chooses() -> None:
    asked: list[tuple[int, int, int]] = []
    rule = _blind()
    is_blind = rule.is_blind

    def spied(step: int, k: int, size: int) -> bool:
        asked.append((step, k, size))
        return is_blind(step, k, size)

    rule.is_blind = spied
    model = _net()
    loop = _loop(rule, model=model, scoring=rd.Scoring(updates_per_scoring=2))
    for chosen in loop:
        _train(model, chosen)
    assert {(k, size) for _, k, size in asked} == {(2 * K, N_B)}


def test_a_shadow_that_would_look_is_not_told_of_a_blind_draw() -> None:
    shadow = _blind()
    shadow.is_blind = lambda step, k, size: False
    told: list[torch.Size] = []
    observe = shadow.observe

    def spied(evidence: Any, selection: Any) -> None:
        told.append(evidence.ids.shape)
        observe(evidence, selection)

    shadow.observe = spied
    loop = _loop(shadows={"watch": shadow})
    next(iter(loop))
    assert told == [torch.Size([N_B])]  # the candidates that it chose from, not its choice


# -- what learns along ----------------------------------------------------------------------------


def test_a_scorer_that_learns_predictions_is_stepped_on_the_last_batch_too() -> None:
    small, model = _net(1), _net()
    scorer = CoTrained(small, torch.optim.SGD(small.parameters(), lr=0.1), distil=True)
    loop = _loop(model=model, scorer=scorer)
    before = copy.deepcopy(small.state_dict())
    seen = []
    for chosen in loop:
        seen.append(copy.deepcopy(small.state_dict()))
        _train(model, chosen)
    after = small.state_dict()
    assert not all(torch.equal(seen[-1][n], after[n]) for n in after)
    assert all(torch.equal(seen[0][n], before[n]) for n in before)  # not before the model spoke


def test_without_anything_that_learns_nothing_is_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = _loop()

    def never() -> None:
        raise AssertionError

    monkeypatch.setattr(loop._learners, "finish", never)
    assert sum(1 for _ in loop) == N // N_B


# -- the gate -------------------------------------------------------------------------------------


def test_the_gate_hears_of_every_batch_before_it_is_trained_on() -> None:
    heard: list[int] = []
    loop = _gated()
    trials, step = loop._trials, 0

    class Spied:
        """The gating itself, but for what is handed out."""

        def __getattr__(self, name: str) -> Any:
            return getattr(trials, name)

        def handed_out(self) -> None:
            heard.append(loop.step)
            trials.handed_out()

    loop._trials = Spied()
    for step, _ in enumerate(loop, 1):
        assert heard == list(range(1, step + 1))
    assert step == 3


# -- states ---------------------------------------------------------------------------------------


def test_everything_that_a_state_holds_is_taken_over() -> None:
    loop = _gated(shadows=None)
    for _ in loop:
        pass
    loop.train_flops_per_example = 12.5
    state = loop.state_dict()
    again = _gated(shadows=None)
    again.load_state_dict(state)
    assert again.step == 3
    assert again.epoch == 0
    assert again.train_flops_per_example == 12.5
    assert again.ledger.state_dict() == state["ledger"]
    assert again.ledger.counts.updates == 3
    assert again._trials.state_dict() == state["gating"]
    assert state["gating"]["mark"] is not None


def test_a_state_that_fails_half_way_leaves_the_loop_as_it_was() -> None:
    loop = _loop()
    for _ in loop:
        pass
    damaged = loop.state_dict() | {"ledger": {"seconds": {}, "counts": {"unknown": 1}}}
    again = _loop()
    expected = again.state_dict()
    with pytest.raises(rd.ConfigurationError, match="Nothing was taken over"):
        again.load_state_dict(damaged)
    assert again.state_dict() == expected
    refused = loop.state_dict()
    refused["passes"] = refused["passes"] | {"position": -1}
    with pytest.raises(rd.ConfigurationError, match="position in the state"):
        again.load_state_dict(refused)
    assert again.state_dict() == expected
