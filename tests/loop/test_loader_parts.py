"""What the loop tells its parts: what learns along, what listens, the gate; in states, too."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import reducible as rd
from reducible.loop.gate import Gate
from reducible.loop.hindsight import would_be_told
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
    assert loop._hindsight.listens
    loop._selector.is_blind = lambda step, k, size: False  # from now on it looks
    walk = iter(loop)
    _train(model, next(walk))
    assert not loop._hindsight.listens
    next(walk)


def test_a_state_that_is_taken_over_ends_the_listening() -> None:
    loop = _loop(_blind())
    state = loop.state_dict()
    next(iter(loop))
    loop.load_state_dict(state)
    assert not loop._hindsight.listens


@pytest.mark.parametrize(("rule", "listens"), [("grad_norm_is", False), ("uniform", False)])
def test_rows_are_listened_to_if_the_rule_wants_to_know(rule: str, listens: bool) -> None:
    loop = _loop(rule)
    next(iter(loop))
    assert loop._hindsight.listens is listens


def test_while_the_gate_is_closed_nothing_is_listened_to() -> None:
    loop = _gated(_blind())
    next(iter(loop))
    assert loop._hindsight.listens
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


class Opaque(DataLoader[Any]):
    """A subclass may do anything, so its order is not read ahead."""


@pytest.mark.parametrize("make", [DataLoader, Opaque])
def test_a_rule_is_told_of_what_it_drew_blindly_however_rows_are_loaded(make: Any) -> None:
    model, rule = _net(), _blind()
    told: list[Any] = []
    observe = rule.observe

    def spied(evidence: Any, selection: Any) -> None:
        told.append((evidence, selection))
        observe(evidence, selection)

    rule.observe = spied
    loop = rd.SelectingLoader(make(DATA, batch_size=N_B), model, rule, keep=K)
    handed_out = []
    for chosen in loop:
        handed_out.append(chosen.ids.tolist())
        _train(model, chosen)
    assert [evidence.ids.tolist() for evidence, _ in told] == handed_out
    for evidence, selection in told:
        assert evidence.context == {}  # it reads nothing of the run
        assert selection.index.tolist() == list(range(K))
        assert selection.weight.tolist() == [1.0] * K


def test_rows_whose_training_pass_was_missed_are_not_waited_for() -> None:
    model = _net()
    loop = _loop(_blind(), model=model)
    walk = iter(loop)
    _train(model, next(walk))
    next(walk)  # told of the first; this one is left out
    assert loop._hindsight.listens
    loop._hindsight.finish()
    assert not loop._hindsight.listens


def test_the_task_reads_what_the_training_pass_shows() -> None:
    class Named(Dataset[dict[str, Tensor]]):
        def __len__(self) -> int:
            return N

        def __getitem__(self, index: int) -> dict[str, Tensor]:
            return {"other": X[index], "photo": X[index], "kind": Y[index]}

    model, rule = _net(), _blind()
    task = rd.Classification(inputs="photo", targets="kind")
    data: Any = rd.WithIds(Named())
    loop = rd.SelectingLoader(DataLoader(data, batch_size=N_B), model, rule, keep=K, task=task)
    for chosen in loop:
        logits = model(chosen.batch["photo"])
        F.cross_entropy(logits, chosen.batch["kind"]).backward()
    assert rule.state_dict()["tau"] > 0


def test_a_shadow_is_shown_what_it_learns_of_in_hindsight_and_all_of_its_rows() -> None:
    rule = _blind()
    needs, selection = would_be_told(rule, torch.tensor([4, 7, 9]))
    assert needs == rule.hindsight
    assert selection.index.tolist() == [0, 1, 2]
    assert selection.weight.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("handed_out", [1, 2, 3])
def test_rows_drawn_ahead_are_the_same_after_a_stop_between_parts(handed_out: int) -> None:
    scoring = rd.Scoring(updates_per_scoring=2)
    loop, again = (_loop("uniform", scoring=scoring) for _ in range(2))
    walk = iter(loop)
    for _ in range(handed_out):
        next(walk)
    again.load_state_dict(loop.state_dict())
    assert [c.ids.tolist() for c in again] == [c.ids.tolist() for c in walk]


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
