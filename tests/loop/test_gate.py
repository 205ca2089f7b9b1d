"""The gate: when it tries, opens and closes; its share of the time; what it costs inside a loop."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reducible as rd
from reducible.lab.data import TensorSet
from reducible.loop.gate import (
    Gate,
    Trial,
    cosine,
    error_of,
    last_layer_gradient,
    progress_direction,
    random_progress,
)


def _trials(gate: Gate, gains: list[float], *, first: int = 0, candidates: int = 64) -> None:
    """Feed trials whose gain is given; random rows make a progress of 1 at a cost of 2."""
    for i, gain in enumerate(gains):
        gate.tried([Trial(first + i, candidates, 2.0 + gain, 1.0, 2.0)], seconds=1.0)


# -- pure parts -----------------------------------------------------------------------------------


def test_the_gradient_of_the_last_layer_is_autograds() -> None:
    g = torch.Generator().manual_seed(0)
    features, targets = torch.randn(7, 5, generator=g), torch.randint(3, (7,), generator=g)
    weight = torch.rand(7, generator=g)
    layer = nn.Linear(5, 3)
    logits = layer(features)
    (F.cross_entropy(logits, targets, reduction="none") * weight).mean().backward()
    assert layer.weight.grad is not None
    assert layer.bias.grad is not None
    evidence = rd.Evidence(ids=torch.arange(7), logits=logits.detach(), targets=targets)
    mine = last_layer_gradient(error_of(evidence), features, weight)
    torch.testing.assert_close(mine[:, :5], layer.weight.grad)
    torch.testing.assert_close(mine[:, 5], layer.bias.grad)


def test_progress_is_the_gradient_of_the_mean_probability_of_the_labels() -> None:
    g = torch.Generator().manual_seed(1)
    features, targets = torch.randn(7, 5, generator=g), torch.randint(3, (7,), generator=g)
    layer = nn.Linear(5, 3)
    logits = 3.0 * layer(features)
    wrong = 1.0 - logits.softmax(1)[torch.arange(7), targets]
    wrong.mean().backward()
    assert layer.weight.grad is not None
    assert layer.bias.grad is not None
    seen = rd.Evidence(
        ids=torch.arange(7), logits=logits.detach(), targets=targets, features=features
    )
    mine = 3.0 * progress_direction(seen)
    torch.testing.assert_close(mine[:, :5], layer.weight.grad)
    torch.testing.assert_close(mine[:, 5], layer.bias.grad)


def test_cosines() -> None:
    a = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert cosine(a, 3 * a) == pytest.approx(1.0)
    assert cosine(a, -a) == pytest.approx(-1.0)
    assert cosine(a, torch.tensor([[0.0, 1.0], [-1.0, 0.0]])) == 0.0
    assert cosine(a, torch.zeros(2, 2)) == 0.0


def test_all_rows_at_random_are_the_whole() -> None:
    g = torch.Generator().manual_seed(0)
    error, features = torch.randn(6, 3, generator=g), torch.randn(6, 4, generator=g)
    target = torch.randn(3, 5, generator=g)
    exact = cosine(last_layer_gradient(error, features), target)
    assert random_progress(error, features, target, 6, generator=g) == pytest.approx(exact)


# -- decisions ------------------------------------------------------------------------------------


def test_it_opens_where_the_gain_is_certain_and_says_why() -> None:
    gate = Gate(trials=4)
    _trials(gate, [0.5, 0.6, 0.4])
    assert gate.state == "watching"  # too few trials
    _trials(gate, [0.5], first=3)
    assert (gate.state, gate.candidates) == ("selecting", 64)
    (event,) = gate.events
    assert (event["step"], event["from"], event["to"]) == (3, "watching", "selecting")
    assert "costs 2.00 plain updates" in event["why"]


@pytest.mark.parametrize("gains", [[0.0] * 8, [-0.5] * 8, [3.0, -2.0, 2.5, -2.5] * 2])
def test_it_stays_shut_where_the_gain_is_nothing_or_noise(gains: list[float]) -> None:
    gate = Gate(trials=4)
    _trials(gate, gains)
    assert gate.state == "watching"
    assert gate.events == []


def test_of_several_settings_the_best_opens() -> None:
    gate = Gate(trials=2)
    for step in range(2):
        tiny = 0.01 * step
        both = [Trial(step, 64, 2.1 + tiny, 1.0, 2.0), Trial(step, 32, 1.9 + tiny, 1.0, 1.5)]
        gate.tried(both, seconds=1.0)
    assert (gate.state, gate.candidates) == ("selecting", 32)


def test_it_closes_for_good() -> None:
    gate = Gate(trials=2)
    _trials(gate, [0.5, 0.6])
    assert gate.state == "selecting"
    _trials(gate, [-5.0], first=2)
    assert gate.state == "selecting"  # one bad trial is not enough
    _trials(gate, [-5.0], first=3)
    assert gate.state == "closed"
    gate.update_took(1.0, plain=True)
    _trials(gate, [9.0] * 10, first=4)
    assert gate.state == "closed"
    assert gate.due(1, 1) is None
    assert [e["to"] for e in gate.events] == ["selecting", "closed"]


def test_it_closes_where_held_out_labels_become_less_probable() -> None:
    gate = Gate(trials=2, certainty=3.0)
    _trials(gate, [0.5, 0.6])
    good = Trial(2, 64, 3.0, 1.0, 2.0)
    gate.tried([good], 1.0, change=(-0.02, 0.01))  # two standard errors: perhaps chance
    assert gate.state == "selecting"
    gate.tried([good], 1.0, change=(0.3, 0.01))
    assert gate.state == "selecting"
    gate.tried([good], 1.0, change=(-0.04, 0.01))  # though its choices look as good as ever
    assert gate.state == "closed"
    assert "less probable than when selection began, by 0.04 ± 0.01" in gate.events[-1]["why"]


def test_before_selection_a_change_means_nothing() -> None:
    gate = Gate(trials=2)
    gate.tried([Trial(0, 64, 2.5, 1.0, 2.0)], 1.0, change=(-0.5, 0.01))
    assert gate.state == "watching"


def test_trials_never_take_more_than_their_share() -> None:
    gate = Gate(budget=0.025)
    assert gate.due(100, 64) is None  # nothing is known of plain updates yet
    gate.probed(8, per_row=0.01, seconds=0.0)
    spent = 0.0
    for step in range(1000):
        gate.update_took(1.0, plain=True)
        if gate.due(100, 8) == "trial":
            _trials(gate, [0.0], first=step)
            spent += 1.0
    assert 20 <= spent <= 25
    assert gate.report()["share_of_planned_time"] == pytest.approx(spent / 1000)


def _plain(gate: Gate, updates: int) -> None:
    for _ in range(updates):
        gate.update_took(1.0, plain=True)


def test_a_probe_waits_for_one_update_and_the_first_trial_for_what_it_costs() -> None:
    gate = Gate(budget=0.02)
    _plain(gate, 49)
    assert gate.due(100, 8) is None
    _plain(gate, 1)
    assert gate.due(100, 8) == "probe"
    gate.probed(8, per_row=0.1, seconds=0.0)
    _plain(gate, 449)
    assert gate.due(100, 8) is None  # ten updates, 2 % of 500
    _plain(gate, 1)
    assert gate.due(100, 8) == "trial"


def test_where_a_trial_seems_too_dear_probes_of_more_rows_follow() -> None:
    gate = Gate(budget=0.02)
    _plain(gate, 50)
    gate.probed(8, per_row=0.1, seconds=0.8)  # of which most is fixed
    assert gate.due(100, 16) is None  # twice 0.8 more would be 2.4
    _plain(gate, 71)
    assert gate.due(100, 15) is None
    assert gate.due(100, 16) == "probe"
    gate.probed(16, per_row=0.06, seconds=0.9)
    assert gate.probe_rows == 16
    gate.probed(16, per_row=0.5, seconds=0.0)  # disturbed by others: the least counts
    _plain(gate, 263)
    assert gate.due(100, 1000) is None  # nothing more to be learnt from probes
    _plain(gate, 2)  # 1.7 spent, six to come
    assert gate.due(100, 16) == "trial"


def test_a_saved_gate_goes_on() -> None:
    a, b = Gate(trials=2), Gate(trials=2)
    for gate in (a, b):
        for _ in range(40):
            gate.update_took(1.0, plain=True)
    _trials(a, [0.5])
    b.load_state_dict(json.loads(json.dumps(a.state_dict())) | {})
    _trials(a, [0.5], first=1)
    b.load_state_dict(json.loads(json.dumps(a.state_dict())))
    for gate in (a, b):
        _trials(gate, [-5.0, -5.0], first=2)
    assert a.report() == b.report()
    assert json.loads(json.dumps(a.report())) == a.report()


def test_settings_of_a_candidate_batch() -> None:
    gate = Gate(settings=(0.25, 1.0, 0.5))
    assert gate.settings(320, 32) == [320, 160, 80]
    assert gate.settings(64, 32) == [64]  # half of it would leave no choice
    assert gate.settings(32, 32) == [32]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": 0.0}, "budget"),
        ({"trials": 1}, "trials"),
        ({"certainty": -1.0}, "certainty"),
        ({"settings": ()}, "settings is empty"),
        ({"settings": (0.0,)}, "settings"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(rd.ConfigurationError, match=message):
        Gate(**settings)


# -- in a loop, on a clock of its own -------------------------------------------------------------

N, B, K, D, C = 1600, 64, 8, 6, 3


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Ticking(nn.Module):
    """A linear model whose passes take time by the row: scoring as said, training three."""

    def __init__(self, clock: Clock, scoring: float) -> None:
        super().__init__()
        self.linear = nn.Linear(D, C)
        self._clock, self._scoring = clock, scoring

    def forward(self, x: Tensor) -> Tensor:
        self._clock.now += x.shape[0] * (3.0 if torch.is_grad_enabled() else self._scoring)
        return self.linear(x)


def _sets(wrong: float) -> tuple[TensorSet, TensorSet, Tensor]:
    """Separable data of which a share is labelled wrong, clean held-out data, and the losses."""
    g = torch.Generator().manual_seed(0)
    centres = 3.0 * torch.eye(C, D)
    y = torch.randint(C, (N + 300,), generator=g)
    x = centres[y] + 0.3 * torch.randn(N + 300, D, generator=g)
    given = y.clone()
    flipped = torch.rand(N, generator=g) < wrong
    given[:N][flipped] = (y[:N][flipped] + 1) % C
    train = TensorSet(x[:N], given[:N], num_classes=C)
    held = TensorSet(x[N:], y[N:], num_classes=C)
    return train, held, torch.where(flipped, 8.0, 0.01)


class Looping:
    """A training loop with a gate; runs step by step."""

    def __init__(self, *, wrong: float, scoring: float, gate: Gate | str | None = "auto") -> None:
        torch.manual_seed(0)
        self.clock = Clock()
        train, held, losses = _sets(wrong)
        self.model = Ticking(self.clock, scoring)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05)
        order = torch.Generator().manual_seed(1)
        more: dict[str, Any] = {}
        if gate is not None:
            more = {"gate": gate, "held_out": held.loader(300, shuffle=False, drop_last=False)}
        self.batches = rd.SelectingLoader(
            train.loader(B, generator=order),
            self.model,
            rd.selector("rho" if gate is not None else "uniform"),
            keep=K,
            store=rd.IrreducibleLossStore.from_tensor(losses) if gate is not None else None,
            ledger=rd.Ledger(clock=self.clock),
            task=rd.Classification(features="linear"),  # finding it takes a pass in each process
            seed=5,
            **more,
        )
        self._steps = self._forever()

    def _forever(self) -> Iterator[list[int]]:
        while True:
            for chosen in self.batches:
                x, y = chosen.batch
                loss = F.cross_entropy(self.model(x), y, reduction="none")
                self.optimizer.zero_grad()
                rd.weighted_mean(loss, chosen.weights).backward()
                self.optimizer.step()
                yield chosen.ids.tolist()

    def run(self, steps: int) -> list[list[int]]:
        return [next(self._steps) for _ in range(steps)]

    @property
    def gate(self) -> Gate:
        assert self.batches.gate is not None
        return self.batches.gate

    def state(self) -> dict[str, Any]:
        return {
            "batches": self.batches.state_dict(),
            "model": {k: v.clone() for k, v in self.model.state_dict().items()},
            "clock": self.clock.now,
        }

    def resume(self, state: dict[str, Any]) -> None:
        self.batches.load_state_dict(state["batches"])
        self.model.load_state_dict(state["model"])
        self.clock.now = state["clock"]
        self._steps = self._forever()


@pytest.mark.parametrize(("scoring", "affordable"), [(1.0, True), (30.0, False)])
def test_a_costly_scorer_on_clean_data_stays_off_within_three_percent(
    scoring: float, affordable: bool
) -> None:
    gated, plain = Looping(wrong=0.0, scoring=scoring), Looping(wrong=0.0, scoring=1.0, gate=None)
    ids = gated.run(3000)
    assert ids == plain.run(3000)  # the rows that uniform trains on, trials or not
    for mine, others in zip(gated.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(mine, others)  # as each other row, each counts once
    assert gated.gate.state == "watching"
    assert (len(gated.gate.trials) >= 3) is affordable
    assert plain.clock.now < gated.clock.now <= 1.03 * plain.clock.now


def test_free_scoring_of_noisy_data_is_switched_on() -> None:
    looping = Looping(wrong=0.4, scoring=0.01)
    looping.run(1500)
    assert looping.gate.events[0]["to"] == "selecting"
    begun = looping.gate.events[0]["step"]
    _, _, losses = _sets(0.4)
    later = torch.tensor(looping.run(50)).flatten()
    if looping.gate.state == "selecting":
        assert float((losses[later] > 1).float().mean()) < 0.05  # wrong labels are passed over
    assert 0 < begun < 1500


def test_a_loop_tells_the_gate_how_held_out_labels_fare() -> None:
    looping = Looping(wrong=0.4, scoring=0.01)
    steps = 0
    while looping.gate.state == "watching":
        looping.run(1)
        steps += 1
    gating = looping.batches._trials
    assert gating is not None
    assert gating._began is not None
    held = next(iter(_sets(0.4)[1].loader(300, shuffle=False))).batch
    x, y = held
    now = looping.model.linear(x).softmax(1)[torch.arange(300), y]
    # one update lies between the trial and here
    torch.testing.assert_close(gating._began, now.detach(), atol=0.1, rtol=0)
    gating._began = torch.ones(300)  # as if all had been certain
    looping.run(steps)
    assert looping.gate.state == "closed"
    assert "less probable than when selection began" in looping.gate.events[-1]["why"]


def test_saved_and_loaded_is_never_stopped() -> None:
    a = Looping(wrong=0.4, scoring=0.3)
    a.run(400)
    state = a.state()
    b = Looping(wrong=0.4, scoring=0.3)
    b.resume(state)
    assert a.run(900) == b.run(900)
    assert a.gate.report() == b.gate.report()
    assert a.gate.trials  # something was tried


def test_only_rows_trained_on_are_loaded_while_it_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[int] = []
    inner = TensorSet.__getitem__

    def counted(self: TensorSet, index: Any) -> Any:
        got = inner(self, index)
        loaded.append(got.ids.numel())
        return got

    monkeypatch.setattr(TensorSet, "__getitem__", counted)
    looping = Looping(wrong=0.0, scoring=1.0)
    looping.run(2000)
    tried = len({trial.step for trial in looping.gate.trials})
    assert tried >= 2
    assert loaded.count(B) == tried + 2  # and two probes: the second said the same
    assert loaded.count(K) == 2000 - tried - 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gate": "on"}, "gate='on'"),
        ({"held_out": None}, "pass held_out="),
        ({"selector": "uniform"}, "no scoring to save"),
        ({"shadows": True}, "no shadows"),
        ({"scoring": rd.Scoring(updates_per_scoring=2)}, "updates_per_scoring=1"),
    ],
)
def test_what_a_gate_does_not_go_with(changes: dict[str, Any], message: str) -> None:
    train, held, losses = _sets(0.0)
    options: dict[str, Any] = {
        "gate": "auto",
        "held_out": held.loader(300, shuffle=False),
        "store": rd.IrreducibleLossStore.from_tensor(losses),
    } | changes
    rule = options.pop("selector", "rho")
    if options.pop("shadows", False):
        options["shadows"] = {"train_loss": rd.selector("train_loss")}
    with pytest.raises(rd.ConfigurationError, match=message):
        rd.SelectingLoader(
            train.loader(B), Ticking(Clock(), 1.0), rd.selector(rule), keep=K, **options
        )
