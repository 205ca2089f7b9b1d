"""What the gate is told: every probe, trial and second, on a clock that scripted work moves."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import reducible as rd
from reducible.loop.evidence import Moment
from reducible.loop.gate import Gate, Trial
from reducible.loop.seeds import stream_seed
from reducible.loop.trials import GateTrials
from reducible.selectors import Choice

B, K, D, C, SEED = 16, 4, 3, 2, 9


class Model(nn.Module):
    """A linear model that takes a second of scoring for a row; its first pass takes 100 more.

    What is normalised by the running statistics is not changed by more than 1e-5 of it.
    """

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(D)
        self.linear = nn.Linear(D, C)
        self._clock, self._cold = clock, 100.0
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self._clock.now += x.shape[0] + self._cold
        self._cold = 0.0
        self.seen.append(x.shape[0])
        return self.linear(self.norm(x))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class LastRows:
    """A selector that takes the last k rows, weighted 1, 2, 3 …, in ``seconds`` for a row."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.seconds = 0.5
        self.calls: list[tuple[int, int, int]] = []

    def choose(self, look: Any, k: int, *, generator: torch.Generator) -> Choice:
        candidates = look()
        m = candidates.ids.numel()
        self.calls.append((m, k, generator.initial_seed()))
        self._clock.now += m * self.seconds
        weight = torch.arange(1.0, k + 1)
        selection = rd.Selection(index=torch.arange(m - k, m), weight=weight)
        return Choice(rd.Evidence(ids=candidates.ids), selection)


class Source:
    """Gives the candidates themselves to look at, and remembers what for."""

    def __init__(self) -> None:
        self.asked: list[Moment] = []

    def view(self, selector: Any, candidates: rd.Candidates, moment: Moment) -> Any:
        self.asked.append(moment)
        return lambda: candidates


def _moment(step: int) -> Moment:
    return Moment(epoch=3, step=step, seed=stream_seed(SEED, step))


class Bench:
    """The trials of a gate with all that they look at."""

    def __init__(self, *, held_out: Any = None, rows: int = B, task: Any = None, **gate: Any):
        self.clock = Clock()
        torch.manual_seed(0)
        self.model, self.selector = Model(self.clock), LastRows(self.clock)
        self.source, self.ledger = Source(), rd.Ledger(clock=self.clock)
        g = torch.Generator().manual_seed(1)
        x, y = torch.randn(rows, D, generator=g), torch.randint(C, (rows,), generator=g)
        self.candidates = rd.Candidates(torch.arange(rows), (x, y))
        self.held = torch.randn(5, D, generator=g), torch.randint(C, (5,), generator=g)
        self.gate = Gate(**{"budget": 1.0, "trials": 2, "settings": (1.0, 0.5), **gate})
        self.trials = GateTrials(
            self.gate,
            self.model,
            cast(Any, self.selector),
            cast(Any, self.source),
            task or rd.Classification(features="linear"),
            [self.held] if held_out is None else held_out,
            self.ledger,
            seed=SEED,
        )

    def let_through(self, step: int, k: int = K) -> rd.Candidates | None:
        """The candidates that the selector chooses from; None if the update is plain."""
        candidates, plain = self.trials.decide(self.candidates, k, _moment(step))
        return candidates if plain is None else None

    @contextmanager
    def update(self, seconds: float) -> Iterator[None]:
        """What the loop does around a batch that is handed out."""
        yield
        self.trials.handed_out()
        with self.ledger.phase("train"):
            self.clock.now += seconds

    def select(self, rows: int = B) -> None:
        """Open the gate by hand."""
        self.gate.state, self.gate.candidates = "selecting", rows
        self.gate.events.append({"step": -1})


def at_random(size: int, k: int, step: int) -> list[int]:
    g = torch.Generator().manual_seed(stream_seed(SEED, step))
    return torch.randperm(size, generator=g)[:k].tolist()


# -- which rows are loaded ------------------------------------------------------------------------


def test_while_it_watches_the_rows_trained_on_are_loaded_alone() -> None:
    bench = Bench()
    for step in (0, 1, 7):
        assert bench.trials.draw(step, B, K) == (at_random(B, K, step), True)
        _, plain = bench.trials.decide(bench.candidates, K, _moment(step))
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
    assert bench.source.asked == [_moment(2)]


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


def due_for_a_trial(**options: Any) -> Bench:
    bench = Bench(**options)
    for _ in range(32):
        bench.gate.update_took(1000.0, plain=True)
    bench.gate.probed(1, per_row=1.0, seconds=0.0)
    return bench


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
    assert bench.source.asked == [_moment(5)] * 2
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


# -- held-out rows --------------------------------------------------------------------------------


def test_of_a_large_held_out_batch_512_rows_serve_and_are_loaded_once() -> None:
    loads: list[int] = []

    class Held:
        def __iter__(self) -> Iterator[rd.Candidates]:
            loads.append(1)
            x = torch.arange(600.0)[:, None].expand(600, D)
            yield rd.Candidates(torch.arange(600), (x, torch.zeros(600, dtype=torch.int64)))

    bench = due_for_a_trial(held_out=Held())
    bench.let_through(0)
    bench.let_through(1)
    assert bench.model.seen == [B, 512, B, 512]
    assert loads == [1]
    assert torch.equal(bench.trials._held().batch[0][:, 0], torch.arange(512.0))


@pytest.mark.parametrize(
    ("held_out", "error", "message"),
    [
        (0, rd.ConfigurationError, "pass held_out=.*got int"),
        ([], rd.DataError, "held-out examples is empty"),
    ],
)
def test_held_out_examples_that_are_none(held_out: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        due_for_a_trial(held_out=held_out).let_through(0)


def test_without_held_out_examples_there_is_no_gate() -> None:
    bench = Bench()
    made = bench.trials
    with pytest.raises(rd.ConfigurationError, match=r"pass held_out=.*got NoneType"):
        GateTrials(
            Gate(), made._model, made._selector, made._source, made._task, None, made._ledger,
            seed=0,
        )  # fmt: skip


def test_held_out_examples_without_labels_say_nothing() -> None:
    bench = due_for_a_trial(task=SimpleNamespace(targets=lambda batch: None))
    with pytest.raises(rd.DataError, match="no targets, so there is no progress"):
        bench.trials._held()


# -- seconds --------------------------------------------------------------------------------------


def told(bench: Bench) -> list[tuple[float, bool]]:
    """What the gate will be told of updates from now on."""
    updates: list[tuple[float, bool]] = []
    inner = bench.gate.update_took

    def update_took(seconds: float, *, plain: bool) -> None:
        updates.append((seconds, plain))
        inner(seconds, plain=plain)

    bench.gate.update_took = update_took  # type: ignore[method-assign]
    return updates


def test_an_update_lasts_from_one_handing_out_to_the_next() -> None:
    bench = Bench(budget=0.001)
    updates = told(bench)
    for step, seconds in enumerate((5.0, 7.0, 11.0)):
        with bench.update(seconds):
            bench.let_through(step)
    assert updates == [(5.0, True), (7.0, True)]  # the first batch has none before it
    with bench.ledger.phase("evaluate"):
        bench.clock.now += 100.0  # nobody is trained by it
    bench.trials.handed_out()
    assert updates[2:] == [(11.0, True)]
    bench.trials.handed_out()
    assert updates[3:] == [(0.0, True)]
    assert bench.trials.state_dict()["selected"] == []


def test_a_trial_of_less_than_a_second_is_one_too() -> None:
    bench = Bench()
    updates = told(bench)
    bench.trials.handed_out()
    bench.trials._trial_seconds = 0.5
    bench.trials._chose = True
    with bench.ledger.phase("score"):
        bench.clock.now += 2.0
    bench.trials.handed_out()
    assert updates == [(1.5, False)]
    assert bench.trials.state_dict()["selected"] == []


def test_an_update_with_a_trial_is_told_without_it_and_is_no_example_of_a_plain_one() -> None:
    bench = due_for_a_trial()
    updates = told(bench)
    with bench.update(1000.0):
        pass
    with bench.update(1000.0):
        bench.let_through(0)
    assert len(bench.gate.trials) == 2
    seconds = 1000.0 - 12.0  # the selector's own 12 are on no phase of this ledger
    assert updates == [(seconds, False)]
    with bench.update(1.0):
        pass
    assert updates[1:] == [(1000.0, True)]


def test_updates_with_selection_are_kept_apart_the_last_thirty_two_of_them() -> None:
    bench = Bench()
    bench.select()
    updates = told(bench)
    for step in range(41):
        with bench.update(float(step)):
            assert bench.let_through(step) is not None
    assert updates == [(float(step), False) for step in range(40)]
    assert bench.trials.state_dict()["selected"] == [float(step) for step in range(8, 40)]


def test_all_that_it_knows_is_saved() -> None:
    bench = due_for_a_trial()
    bench.select()
    for step in range(3):
        with bench.update(10.0 * step):
            bench.let_through(step)
    bench.trials._trial_seconds = 2.5
    bench.trials._began = torch.tensor([0.5, 0.25])
    bench.trials._selected = [3.0, 4.0]
    saved = bench.trials.state_dict()
    other = Bench()
    assert other.trials.state_dict()["trial_seconds"] == 0.0
    other.trials.load_state_dict(saved)
    loaded = other.trials.state_dict()
    assert loaded == saved
    assert (saved["trial_seconds"], saved["mark"]) == (2.5, bench.trials._mark)
    assert saved["selected"] is not bench.trials._selected
    assert loaded["selected"] is not saved["selected"]
    assert loaded["gate"]["state"] == "selecting"
