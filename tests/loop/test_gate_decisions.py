"""The gate's arithmetic to the last bound: what it counts, when it tries, opens and closes.

Seconds and gains are such that floating point holds them exactly, so bounds are met exactly.
"""

from __future__ import annotations

import json
import math
import statistics
from typing import Any

import pytest
import torch

import reducible as rd
from reducible.loop.gate import Gate, Trial, cosine, last_layer_gradient, random_progress


def trial(gain: float, *, step: int = 0, candidates: int = 64, cost: float = 2.0) -> Trial:
    """Random rows make a progress of 1."""
    return Trial(step, candidates, cost + gain, 1.0, cost)


def feed(gate: Gate, gains: list[float], *, first: int = 0) -> None:
    for step, gain in enumerate(gains, first):
        gate.tried([trial(gain, step=step)], seconds=1.0)


def at_half(planned: int, *, spent: float = 0.0) -> Gate:
    """Half of the time may go into trials; so many plain seconds went by, so many are spent."""
    gate = Gate(budget=0.5)
    for _ in range(planned):
        gate.update_took(1.0, plain=True)
    gate.probed(4, per_row=1.0, seconds=spent)
    return gate


def selecting(*, gain: float = 0.5, trials: int = 2) -> Gate:
    """A gate that has just opened, at step ``trials`` − 1."""
    gate = Gate(trials=trials)
    feed(gate, [gain] * trials)
    assert gate.state == "selecting"
    return gate


# -- settings -------------------------------------------------------------------------------------


def test_a_new_gate_has_seen_nothing() -> None:
    gate = Gate()
    assert (gate.budget, gate.state, gate.candidates, gate.per_row) == (0.025, "watching", 0, None)
    assert (gate.trials, gate.events, gate.plain_seconds) == ([], [], None)
    assert gate.state_dict() == {
        "state": "watching",
        "candidates": 0,
        "trials": [],
        "events": [],
        "plain": [],
        "planned": 0.0,
        "spent": 0.0,
        "per_row": None,
        "probe_rows": 0,
        "last_probe": 0.0,
        "probing": True,
        "last_trial": None,
    }
    assert gate.report() == {
        "state": "watching",
        "candidates": 0,
        "events": [],
        "trials": [],
        "seconds_of_trials": 0.0,
        "share_of_planned_time": 0.0,
    }


def test_by_default_all_half_and_a_quarter_of_the_rows_are_tried() -> None:
    assert Gate().settings(320, 32) == [320, 160, 80]


def test_equal_settings_are_tried_once() -> None:
    gate = Gate(settings=(0.5, 1.0, 0.5))
    assert gate.settings(8, 4) == [8]
    assert gate.settings(8, 3) == [8, 4]


def test_the_bounds_of_settings_themselves_are_allowed() -> None:
    gate = Gate(budget=1.0, settings=(1.0,), trials=2, certainty=0.0)
    assert gate.budget == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": 1.5}, r"budget must be a number in \(0.0, 1.0\], got 1.5"),
        ({"budget": 0.0}, r"budget must be a number in \(0.0, 1.0\], got 0.0"),
        ({"settings": (0.5, 1.5)}, r"settings must be a number in \(0.0, 1.0\], got 1.5"),
        ({"settings": (0.0,)}, r"settings must be a number in \(0.0, 1.0\], got 0.0"),
        ({"trials": 1}, r"trials must be a whole number in \[2, inf\], got 1"),
        ({"trials": 2.5}, r"trials must be a whole number in \[2, inf\], got 2.5"),
        ({"certainty": -0.5}, r"certainty must be a number in \[0.0, inf\], got -0.5"),
    ],
)
def test_beyond_them_they_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(rd.ConfigurationError, match=message):
        Gate(**changes)


# -- seconds --------------------------------------------------------------------------------------


def test_a_plain_update_is_the_median_of_the_last_thirty_two() -> None:
    gate = Gate()
    for seconds in range(40):
        gate.update_took(float(seconds), plain=True)
    assert gate.plain_seconds == statistics.median(range(8, 40)) == 23.5
    gate.update_took(1000.0, plain=False)
    assert gate.plain_seconds == 23.5


def test_what_is_planned_are_updates_at_what_a_plain_one_takes_by_then() -> None:
    gate = Gate()
    gate.update_took(9.0, plain=False)  # no plain one to say
    assert gate.state_dict()["planned"] == 0.0
    gate.update_took(2.0, plain=True)
    gate.update_took(9.0, plain=False)
    gate.update_took(4.0, plain=True)
    assert gate.state_dict()["planned"] == 2.0 + 2.0 + 3.0


def test_what_was_spent_are_probes_and_trials() -> None:
    gate = at_half(8, spent=0.5)
    gate.tried([trial(0.0)], seconds=1.5)
    gate.tried([trial(0.0)], seconds=1.0)
    assert gate.report()["seconds_of_trials"] == 3.0
    assert gate.report()["share_of_planned_time"] == 0.375


@pytest.mark.parametrize(
    ("planned", "due"),
    [(0, None), (1, None), (2, "probe"), (3, "probe")],  # a plain second is half of two
)
def test_a_first_probe_comes_as_soon_as_an_update_fits(planned: int, due: str | None) -> None:
    gate = Gate(budget=0.5)
    for _ in range(planned):
        gate.update_took(1.0, plain=True)
    assert gate.due(1, 1) == due


@pytest.mark.parametrize(
    ("planned", "spent", "rows", "most", "due"),
    [
        (10, 0.0, 5, 7, "trial"),  # five seconds are half of ten
        (10, 0.0, 6, 7, None),
        (10, 1.0, 4, 7, "trial"),
        (10, 1.0, 5, 7, None),
        (15, 2.5, 100, 8, "probe"),  # 2.5 seconds for four rows, 5 for eight: half of 15
        (15, 2.5, 100, 7, None),
        (14, 2.5, 100, 8, None),
    ],
)
def test_what_is_due_after_a_probe_of_four_rows(
    planned: int, spent: float, rows: int, most: int, due: str | None
) -> None:
    assert at_half(planned, spent=spent).due(rows, most) == due


@pytest.mark.parametrize(("second", "due"), [(0.74, "probe"), (0.75, None), (1.5, None)])
def test_probes_go_on_while_each_says_a_quarter_less(second: float, due: str | None) -> None:
    gate = at_half(100)
    gate.probed(8, per_row=second, seconds=0.0)
    assert gate.per_row == min(1.0, second)
    assert gate.probe_rows == 8
    assert gate.due(1000, 16) == due


def test_a_probe_counts_with_what_the_last_one_took_not_with_all() -> None:
    gate = at_half(16, spent=1.0)  # eight may be spent
    gate.probed(8, per_row=0.5, seconds=2.0)
    assert gate.due(1000, 16) == "probe"  # 3 spent, 4 to come
    gate.update_took(1.0, plain=True)
    gate.probed(16, per_row=0.25, seconds=2.0)
    assert gate.due(1000, 32) is None  # 5 spent, 4 to come, of 8.5


def test_after_a_trial_the_next_waits_until_it_fits_too() -> None:
    gate = at_half(4)
    gate.tried([trial(0.0)], seconds=1.5)
    assert gate.due(10**6, 10**6) is None  # 1.5 and 1.5, of 2: whatever the rows
    gate.update_took(1.0, plain=True)
    gate.update_took(1.0, plain=True)
    assert gate.due(10**6, 10**6) == "trial"


def test_a_closed_gate_asks_for_nothing() -> None:
    gate = selecting()
    for _ in range(1000):
        gate.update_took(1.0, plain=True)
    assert gate.due(1, 1) == "trial"
    gate.tried([trial(9.0, step=2)], 1.0, change=(-1.0, 0.0))
    assert gate.state == "closed"
    assert gate.due(1, 1) is None


# -- opening --------------------------------------------------------------------------------------


def test_a_gain_is_what_chosen_rows_gain_less_plain_updates_in_the_same_time() -> None:
    assert Trial(0, 8, chosen=0.75, random=0.125, cost=2.0).gain == 0.5


@pytest.mark.parametrize(("mean", "state"), [(1.33, "watching"), (1.35, "selecting")])
def test_by_default_six_trials_and_three_standard_errors(mean: float, state: str) -> None:
    gate = Gate()  # of six gains a spread of ±1 is a standard error of 1 / √5: three are 1.342
    gains = [mean - 1, mean + 1] * 3
    feed(gate, gains[:5])
    assert gate.state == "watching"
    feed(gate, gains[5:], first=5)
    assert gate.state == state


def test_a_gain_of_exactly_so_many_errors_is_none() -> None:
    gate = Gate(trials=2, certainty=1.0)
    feed(gate, [0.0, 2.0])  # 1 ± 1
    assert gate.state == "watching"
    gate = Gate(trials=2, certainty=1.0)
    feed(gate, [0.0, 0.0])  # 0 ± 0
    assert gate.state == "watching"


def test_only_the_last_trials_count_twice_as_many_as_are_needed() -> None:
    gate = Gate(trials=2)
    feed(gate, [-50.0, 1.0, 1.25, 1.0])
    assert gate.state == "watching"  # the first one is among the last four
    feed(gate, [1.25], first=4)
    (event,) = gate.events
    assert event["step"] == 4
    assert event["why"].endswith("gains 1.12 ± 0.072 over them")  # 1.125, and 0.25 / √12


def test_every_setting_has_trials_of_its_own() -> None:
    gate = Gate(trials=2)
    gate.tried([trial(1.0, candidates=64), trial(1.0, candidates=32)], 1.0)
    assert gate.state == "watching"  # two trials, but one of each
    gate.tried([trial(-1.0, candidates=64, step=7), trial(1.0, candidates=32, step=7)], 1.0)
    assert (gate.state, gate.candidates, gate.events[0]["step"]) == ("selecting", 32, 7)


def test_of_equal_settings_the_first_is_taken_and_its_own_cost_told() -> None:
    gate = Gate(trials=2)
    for step in (3, 4):
        first, second = trial(1.0, step=step, cost=3.0), trial(1.0, step=step, candidates=32)
        gate.tried([first, second], 1.0)
    assert gate.candidates == 64
    assert gate.events == [
        {
            "step": 4,
            "from": "watching",
            "to": "selecting",
            "why": "choosing from 64 costs 3.00 plain updates and gains 1 ± 0 over them",
        }
    ]


# -- closing --------------------------------------------------------------------------------------


def test_a_drop_of_held_out_labels_must_be_certain() -> None:
    gate = selecting()
    gate.tried([trial(9.0, step=2)], 1.0, change=(-0.75, 0.25))  # exactly three errors
    assert gate.state == "selecting"
    gate.tried([trial(9.0, step=3)], 1.0, change=(-0.875, 0.25))
    assert gate.events[-1] == {
        "step": 3,
        "from": "selecting",
        "to": "closed",
        "why": "held-out labels are less probable than when selection began, by 0.875 ± 0.25",
    }


def test_without_a_word_on_held_out_labels_they_have_not_changed() -> None:
    gate = selecting()
    gate.tried([trial(9.0, step=2)], 1.0)
    assert gate.state == "selecting"


def test_a_mean_gain_of_nothing_goes_on_and_one_below_it_ends() -> None:
    gate = selecting(gain=0.5)
    feed(gate, [-0.5, -0.5], first=2)  # of four the mean is 0
    assert gate.state == "selecting"
    feed(gate, [-0.5], first=4)  # the first has left
    assert gate.events[-1] == {
        "step": 4,
        "from": "selecting",
        "to": "closed",
        "why": "choosing from 64 gains -0.25 ± 0.25: nothing",
    }


def test_trials_since_it_began_decide_of_the_setting_in_use_alone() -> None:
    gate = selecting()
    gate.tried([trial(-9.0, step=2), trial(-9.0, step=2, candidates=32)], 1.0)
    assert gate.state == "selecting"  # one of its own
    gate.tried([trial(-9.0, step=1)], 1.0)  # not since it began
    assert gate.state == "selecting"
    gate.tried([trial(-9.0, step=3)], 1.0)
    assert gate.state == "closed"


# -- gradients ------------------------------------------------------------------------------------


def test_a_cosine_of_next_to_nothing_is_nothing() -> None:
    one = torch.ones(1, 1, dtype=torch.float64)
    assert cosine(1e-12 * one, one) == 0.0
    assert cosine(0.75e-12 * one, one) == 0.0
    assert cosine(1.5e-12 * one, one) == pytest.approx(1.0)
    assert cosine(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0])) == pytest.approx(0.6)


def test_without_weights_every_row_counts_once() -> None:
    error = torch.tensor([[1.0, -1.0], [0.5, -0.5]])
    features = torch.tensor([[2.0, 0.0, 4.0], [0.0, 8.0, 4.0]])
    expected = torch.tensor([[1.0, 2.0, 3.0, 0.75], [-1.0, -2.0, -3.0, -0.75]])
    assert torch.equal(last_layer_gradient(error, features), expected)
    assert torch.equal(last_layer_gradient(error, features, torch.ones(2)), expected)


def test_random_progress_is_the_mean_of_eight_draws() -> None:
    g = torch.Generator().manual_seed(0)
    error, features = torch.randn(9, 3, generator=g), torch.randn(9, 4, generator=g)
    target = torch.randn(3, 5, generator=g)
    state = g.get_state()
    found = random_progress(error, features, target, 2, generator=g)
    after = torch.rand(1, generator=g)
    g.set_state(state)
    draws = [torch.randperm(9, generator=g)[:2] for _ in range(8)]
    assert torch.equal(after, torch.rand(1, generator=g))
    cosines: list[float] = []
    for rows in draws:
        weights = error[rows].T @ features[rows]
        gradient = torch.cat([weights, error[rows].sum(0)[:, None]], 1)
        cosines.append(float(torch.cosine_similarity(gradient.flatten(), target.flatten(), 0)))
    assert found == pytest.approx(math.fsum(cosines) / 8)


# -- state ----------------------------------------------------------------------------------------


def test_a_saved_gate_has_everything_and_shares_nothing() -> None:
    gate = Gate(trials=2)
    for seconds in (1.0, 2.0, 4.0):
        gate.update_took(seconds, plain=True)
    gate.probed(16, per_row=0.5, seconds=0.25)
    gate.probed(32, per_row=0.5, seconds=0.75)
    feed(gate, [0.5, 0.5])
    saved = gate.state_dict()
    copy = json.loads(json.dumps(saved))
    loaded = Gate(trials=2)
    loaded.load_state_dict(saved)
    assert loaded.state_dict() == copy
    assert (loaded.per_row, loaded.probe_rows, loaded.candidates) == (0.5, 32, 64)
    gate.events[0]["step"] = -1
    gate.trials.clear()
    gate.update_took(8.0, plain=True)
    loaded.update_took(16.0, plain=True)
    loaded.events[0]["to"] = "nowhere"
    assert saved == copy
