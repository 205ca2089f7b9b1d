"""What the gate is told: every probe and trial, on a clock that scripted work moves."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reducible.loop.gate import Gate, Trial
from reducible.loop.seeds import stream_seed
from trial_toys import SEED, B, Bench, C, D, K, due_for_a_trial, moment_of


def at_random(size: int, k: int, step: int) -> list[int]:
    g = torch.Generator().manual_seed(stream_seed(SEED, step))
    return torch.randperm(size, generator=g)[:k].tolist()


# -- which rows are loaded ------------------------------------------------------------------------


def test_while_it_watches_the_rows_trained_on_are_loaded_alone() -> None:
    bench = Bench()
    for step in (0, 1, 7):
        assert bench.trials.draw(step, B, K) == (at_random(B, K, step), True)
        _, plain = bench.trials.decide(bench.candidates, K, moment_of(step))
        assert plain is not None
        assert plain.tolist() == at_random(B, K, step)
    assert bench.model.seen == []


def test_for_a_probe_or_a_trial_all_rows_are_loaded() -> None:
    bench = Bench()
    bench.gate.update_took(1.0, plain=True)
    assert bench.gate.due(0, 0) == "probe"
    assert bench.trials.draw(0, B, K) == (list(range(B)), False)


@pytest.mark.parametrize(("rows", "loaded"), [(B, B), (6, 6), (40, B)])
def test_while_it_selects_as_many_as_are_chosen_from(rows: int, loaded: int) -> None:
    bench = Bench()
    bench.select(rows)
    assert bench.trials.draw(0, B, K) == (list(range(loaded)), False)
    through = bench.let_through(0)
    assert through is not None
    assert through.ids.tolist() == list(range(loaded))
    assert torch.equal(through.batch[0], bench.candidates.batch[0][:loaded])


# -- probes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "first"), [(K, 1), (12, 3), (1, 1)])
def test_a_first_probe_scores_a_quarter_of_what_is_chosen(k: int, first: int) -> None:
    bench = Bench()
    bench.gate.update_took(1.0, plain=True)
    assert bench.let_through(2, k) is None
    assert bench.gate.probe_rows == first
    assert bench.model.seen == [first, first]
    assert bench.selector.calls == [(first, first, stream_seed(SEED ^ 0x6A7E, 2))] * 2
    assert bench.source.asked == [moment_of(2)]


@pytest.mark.parametrize(("seconds", "per_row"), [(0.5, 1.0), (3.0, 3.0)])
def test_a_probe_takes_the_dearer_way_when_it_is_warm(seconds: float, per_row: float) -> None:
    bench = Bench(budget=0.5)
    bench.selector.seconds = seconds
    bench.gate.update_took(10.0, plain=True)
    bench.gate.update_took(10.0, plain=True)
    bench.let_through(0)
    assert bench.gate.per_row == per_row
    spent = bench.gate.report()["seconds_of_trials"]
    assert spent == 2 * (1 + seconds) + 100  # the first time with what it costs to begin
    assert bench.ledger.seconds["score"] == 102.0  # the selector charges its own


def test_the_next_probe_scores_twice_the_rows() -> None:
    bench = Bench()
    for _ in range(8):
        bench.gate.update_took(60.0, plain=True)  # 480 in all; a trial of 552 rows takes as many
    bench.let_through(0)
    bench.let_through(1)
    assert bench.gate.probe_rows == 2
    assert bench.model.seen == [1, 1, 2, 2]


# -- trials ---------------------------------------------------------------------------------------


def expected(bench: Bench, m: int, step: int) -> tuple[float, float]:
    """Cosines of the last K of the first m rows, and of random rows, with held-out progress."""
    weights = bench.model.linear

    def gradient(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        p = (x @ weights.weight.T + weights.bias).softmax(1).detach()
        error = (p - nn.functional.one_hot(y, C)) * weight[:, None]
        return torch.cat([error.T @ x, error.sum(0)[:, None]], 1).flatten()

    x, y = bench.candidates.batch
    hx, hy = bench.held
    right = (hx @ weights.weight.T + weights.bias).softmax(1).detach()[torch.arange(5), hy]
    target = gradient(hx, hy, right)
    chosen = slice(m - K, m)
    found = torch.cosine_similarity(
        gradient(x[chosen], y[chosen], torch.arange(1.0, K + 1)), target, 0
    )
    g = torch.Generator().manual_seed(stream_seed(SEED ^ 0x6A7E, step))
    draws = [torch.randperm(B, generator=g)[:K] for _ in range(8)]
    chance = [
        torch.cosine_similarity(gradient(x[r], y[r], torch.ones(K)), target, 0) for r in draws
    ]
    return float(found), statistics.mean(map(float, chance))


def test_a_trial_compares_every_setting_with_random_rows() -> None:
    bench = due_for_a_trial()
    assert bench.trials.draw(5, B, K) == (list(range(B)), False)
    assert bench.let_through(5) is None
    whole, half = bench.gate.trials
    for trial, m in ((whole, B), (half, B // 2)):
        chosen, chance = expected(bench, m, 5)
        assert (trial.step, trial.candidates) == (5, m)
        assert trial.chosen == pytest.approx(chosen, abs=1e-4)
        assert trial.random == pytest.approx(chance, abs=1e-4)
        assert trial.cost == (1000 + 0.5 * m) / 1000  # a plain update, and the choice
    assert [call[:2] for call in bench.selector.calls] == [(B, K), (B // 2, K)]
    assert bench.source.asked == [moment_of(5)] * 2
    assert bench.model.seen == [B, 5]  # the candidates and the held-out rows once
    assert bench.ledger.seconds["score"] == B + 5 + 100
    assert bench.gate.report()["seconds_of_trials"] == B + 5 + 100 + 0.5 * (B + B // 2)


def test_while_it_selects_a_trial_is_of_the_setting_in_use_at_its_measured_cost() -> None:
    bench = due_for_a_trial()
    bench.select(B // 2)
    for seconds in (1100.0, 1300.0, 1800.0):
        with bench.update(seconds):
            bench.trials._chose = True  # as if no trial were due
    bench.trials._chose = True
    bench.trials.handed_out()
    assert bench.trials.draw(3, B, K) == (list(range(B)), False)
    through = bench.let_through(3)
    (trial,) = bench.gate.trials
    assert (trial.candidates, trial.cost) == (B // 2, 1.3)  # the median of the three
    assert through is not None
    assert through.ids.numel() == B // 2


def test_of_a_short_batch_no_more_rows_are_tried_than_there_are() -> None:
    bench = due_for_a_trial(rows=6)
    bench.select(B)
    bench.let_through(0)
    assert [trial.candidates for trial in bench.gate.trials] == [6]


@pytest.mark.parametrize("fits", [True, False])
def test_what_a_trial_will_cost_are_all_its_rows(fits: bool) -> None:
    rows = B + 512 + B + B // 2  # scored; held out at most; by the selector, of two settings
    bench = Bench()
    bench.gate.update_took(float(rows - (not fits)), plain=True)
    bench.gate.probed(B, per_row=1.0, seconds=0.0)
    bench.let_through(0)
    assert bool(bench.gate.trials) is fits


def test_when_it_opens_it_remembers_how_probable_held_out_labels_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = due_for_a_trial()
    changes: list[tuple[float, float]] = []
    inner = Gate.tried

    def tried(self: Gate, trials: list[Trial], seconds: float, **more: Any) -> None:
        changes.append(more["change"])
        good = [Trial(t.step, t.candidates, 9.0, 0.0, 1.0) for t in trials]
        inner(self, good, seconds, **more)

    monkeypatch.setattr(Gate, "tried", tried)
    assert bench.let_through(0) is None
    assert bench.trials.state_dict()["began"] is None
    assert bench.let_through(1) is not None  # two trials suffice: it opens, and chooses at once
    began = bench.trials.state_dict()["began"]
    x, y = bench.held
    before = bench.model.linear(x).softmax(1).detach()[torch.arange(5), y]
    torch.testing.assert_close(began, before, atol=1e-4, rtol=0)
    with torch.no_grad():
        bench.model.linear.bias.add_(torch.tensor([1.0, -1.0]))
    after = bench.model.linear(x).softmax(1).detach()[torch.arange(5), y]
    assert bench.let_through(2) is not None
    assert bench.trials.state_dict()["began"] is began  # of when it opened, still
    assert changes[:2] == [(0.0, 0.0), (0.0, 0.0)]
    change = after - before
    expected = float(change.mean()), float(change.std()) / 5**0.5
    assert changes[2] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("before", "error"), [([0.25], 0.0), ([0.25, 0.75], 0.25)])
def test_one_held_out_row_has_no_standard_error(before: list[float], error: float) -> None:
    held = (torch.zeros(len(before), D), torch.zeros(len(before), dtype=torch.int64))
    bench = due_for_a_trial(held_out=[held])
    bench.select()
    bench.trials._began = torch.tensor(before)
    bench.gate.events[-1]["step"] = 0
    told: list[Any] = []
    bench.gate.tried = lambda *_, change, **__: told.append(change)  # type: ignore[method-assign]
    bench.let_through(1)
    right = float(bench.model.linear.bias.detach().softmax(0)[0])
    assert told == [(pytest.approx(right - sum(before) / len(before)), pytest.approx(error))]
