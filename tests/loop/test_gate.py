"""The gate: its pure parts; when it tries, opens and closes; its share of the time."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import reducible as rd
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
