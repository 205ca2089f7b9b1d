"""Fidelity of cheap scoring: against SciPy, by hand, and against literal loops."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import Tensor, nn

import reducible as rd
import reducible.costs.fidelity as module
from reducible.costs.agreement import overlap, rank_correlation
from reducible.costs.fidelity import Fidelity, ScoringMethod, fidelity
from reducible.lab.data import TensorSet

N, N_B, K, C = 96, 24, 4, 3
STORE = rd.IrreducibleLossStore.from_tensor(
    torch.rand(N, generator=torch.Generator().manual_seed(9))
)


def _data() -> TensorSet:
    x = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
    return TensorSet(x, (x.sum(1) > 0).long() + (x[:, 0] > 1).long())


DATA = _data()


def _net(seed: int = 0, *, norm: bool = False) -> nn.Sequential:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        middle: list[nn.Module] = [nn.BatchNorm1d(8)] if norm else []
        return nn.Sequential(nn.Linear(4, 8), *middle, nn.ReLU(), nn.Linear(8, C))


def _batches(passes: int = 1) -> list[rd.Candidates]:
    generator = torch.Generator().manual_seed(3)
    return [batch for _ in range(passes) for batch in DATA.loader(N_B, generator=generator)]


def _sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.5)


def _rho(model: nn.Module, batch: rd.Candidates) -> Tensor:
    x, y = batch.batch
    with torch.no_grad():
        return F.cross_entropy(model(x), y, reduction="none") - STORE.lookup(batch.ids)


def _train(model: nn.Module, optimizer: Any, batch: rd.Candidates) -> tuple[Tensor, Tensor]:
    """An update on the exact picks; their ids, and their losses before it."""
    rows = _rho(model, batch).argsort(descending=True)[:K]
    x, y = (part[rows] for part in batch.batch)
    loss = F.cross_entropy(model(x), y, reduction="none")
    optimizer.zero_grad()
    loss.mean().backward()
    optimizer.step()
    return batch.ids[rows], loss.detach()


def _top(scores: Tensor, k: int) -> set[int]:
    return set(scores.argsort(descending=True)[:k].tolist())


def _assert_is(row: Fidelity, pairs: list[tuple[Tensor, Tensor]], k: int = K) -> None:
    """``row`` is what SciPy and sets say of (exact, cheap) scores, batch by batch."""
    expected = [float(spearmanr(a.numpy(), b.numpy()).statistic) for a, b in pairs]  # pyright: ignore[reportAttributeAccessIssue]
    assert row.rank_correlations == pytest.approx(expected, abs=1e-6)
    assert row.overlaps == pytest.approx([len(_top(a, k) & _top(b, k)) / k for a, b in pairs])
    assert len(set(row.rank_correlations)) > 1  # the batches say something


@pytest.fixture(autouse=True)
def seconds(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Everything runs twice, and takes what the test says; an hour where it says nothing."""
    says: dict[Any, float] = {}

    def times(work: Mapping[Any, Callable[[], Any]], *, repeats: int, **_: Any) -> Any:
        for run in [*work.values()] * 2:
            run()
        return {name: [says.get(name, 3600.0) * (1 + i) for i in range(repeats)] for name in work}

    monkeypatch.setattr(module, "times_in_turn", times)
    return says.update


# -- the two measures -----------------------------------------------------------------------------


def test_rank_correlation_by_hand() -> None:
    a = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert rank_correlation(a, a.exp()) == pytest.approx(1.0)
    assert rank_correlation(a, -a) == pytest.approx(-1.0)
    # ranks 1, 2, 3, 4 and 2, 1, 4, 3: 1 − 6·4 / (4·15)
    assert rank_correlation(a, torch.tensor([2.0, 1.0, 9.0, 3.0])) == pytest.approx(0.6)
    # ranks 1, 2, 3 and 1.5, 1.5, 3
    tied = rank_correlation(a[:3], torch.tensor([0.0, 0.0, 1.0]))
    assert tied == pytest.approx(math.sqrt(3) / 2)
    assert math.isnan(rank_correlation(a, torch.ones(4)))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.floats(-1e30, 1e30)), min_size=2, max_size=30))
def test_rank_correlation_against_scipy(values: list[tuple[int, float]]) -> None:
    a, b = torch.tensor(values, dtype=torch.float64).T
    if a.unique().numel() > 1 and b.unique().numel() > 1:
        expected = spearmanr(a.numpy(), b.numpy()).statistic  # pyright: ignore[reportAttributeAccessIssue]
        assert rank_correlation(a, b) == pytest.approx(expected, abs=1e-9)


def test_overlap_by_hand() -> None:
    a, b = torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([0.0, 4.0, 1.0, 3.0])
    assert [overlap(a, b, k) for k in (1, 2, 3, 4)] == [0.0, 0.5, 2 / 3, 1.0]


def test_medians() -> None:
    row = Fidelity("x", (0.1, 0.9, 0.5), (0.2, 0.4), (3.0, 1.0, 2.0))
    assert (row.rank_correlation, row.overlap, row.cost) == (0.5, pytest.approx(0.3), 2.0)


# -- ways beside exact scoring --------------------------------------------------------------------


def test_a_model_as_it_is_beside_another_one() -> None:
    model, scorer = _net(), _net(1)
    before = copy.deepcopy(model.state_dict())
    exact, cheap = fidelity(model, _batches(), STORE, {"other": scorer}, k=K, repeats=1)
    assert (exact.way, cheap.way) == ("exact", "other")
    assert exact.rank_correlations == pytest.approx([1.0] * 4)
    assert exact.overlaps == (1.0,) * 4
    _assert_is(cheap, [(_rho(model, b), _rho(scorer, b)) for b in _batches()])
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_a_scoring_alone_is_a_way() -> None:
    model, half = _net(), rd.Scoring(precision="bfloat16")
    ways = {"a": half, "b": ScoringMethod(scoring=half)}
    rows = fidelity(model, _batches(), STORE, ways, k=K, repeats=1)
    assert rows[1].rank_correlations == rows[2].rank_correlations
    needs = frozenset({"loss"})
    pairs = []
    for batch in _batches():
        loss = rd.measure(model, batch, needs, half).require("loss")
        pairs.append((_rho(model, batch), loss - STORE.lookup(batch.ids)))
    _assert_is(rows[1], pairs)
    assert 0.9 < rows[1].rank_correlation < 1.0


def test_batches_to_pass_and_to_compare_on() -> None:
    options: Any = {"k": K, "repeats": 1, "skip": 3, "every": 4}
    rows = fidelity(_net(), _batches(3), STORE, {"other": _net(1)}, **options)
    compared = [_batches(3)[i] for i in (3, 7, 11)]
    for row in rows:
        assert len(row.overlaps) == 3
    _assert_is(rows[1], [(_rho(_net(), b), _rho(_net(1), b)) for b in compared])


def test_fewer_candidates() -> None:
    """Half of them scored: by the same scores, so only rows outside are missed."""
    model = _net()
    _, row = fidelity(model, _batches(2), STORE, {"half": ScoringMethod(share=0.5)}, k=K, repeats=1)
    expected = []
    for batch in _batches(2):
        rho = _rho(model, batch)
        expected.append(len(_top(rho, K) & _top(rho[: N_B // 2], K)) / K)
    assert row.overlaps == pytest.approx(expected)
    assert row.rank_correlations == pytest.approx([1.0] * 8)
    assert 0 < row.overlap < 1


def test_the_model_is_trained_on_the_exact_picks() -> None:
    model, literal = _net(), _net()
    fidelity(
        model, _batches(2), STORE, {"o": _net(1)}, k=K, optimizer=_sgd(model), repeats=2
    )  # fmt: skip
    optimizer = _sgd(literal)
    for batch in _batches(2):
        _train(literal, optimizer, batch)
    torch.testing.assert_close(model.state_dict(), literal.state_dict())


@pytest.mark.parametrize("m", [2, 4])
def test_scores_as_old_as_at_the_last_of_several_updates(m: int) -> None:
    model, literal = _net(), _net()
    _, row = fidelity(
        model, _batches(2), STORE, {"stale": rd.Scoring(updates_per_scoring=m)}, k=K,
        optimizer=_sgd(model), repeats=1,
    )  # fmt: skip
    optimizer, batches = _sgd(literal), _batches(2)
    old: list[Tensor] = []
    pairs = []
    for step, batch in enumerate(batches):
        old.append(_rho(literal, batch))
        if step >= m - 1:
            then = step - (m - 1)
            pairs.append((_rho(literal, batches[then]), old[then]))
        _train(literal, optimizer, batch)
    assert len(pairs) == 8 - (m - 1)
    _assert_is(row, pairs, k=K * m)


def test_remembered_losses() -> None:
    """Each row is scored at its first visit; later its loss is what was seen of it last."""
    model, literal = _net(), _net()
    _, row = fidelity(
        model, _batches(3), STORE, {"old": rd.Scoring(max_age=100)}, k=K, skip=4,
        optimizer=_sgd(model), repeats=1,
    )  # fmt: skip
    optimizer, known = _sgd(literal), torch.full((N,), math.nan)
    pairs = []
    for step, batch in enumerate(_batches(3)):
        rho, ids = _rho(literal, batch), batch.ids
        new = known[ids].isnan()
        assert bool(new.all()) == (step < 4)
        known[ids[new]] = (rho + STORE.lookup(ids))[new]
        if step >= 4:
            pairs.append((rho, known[ids] - STORE.lookup(ids)))
        ids, loss = _train(literal, optimizer, batch)
        known[ids] = loss
    _assert_is(row, pairs)


@pytest.mark.parametrize("distil", [False, True])
def test_a_scorer_that_learns_along(distil: bool) -> None:
    model, literal, scorer, other = _net(), _net(), _net(1), _net(1)
    learner = rd.CoTrained(scorer, _sgd(scorer), distil=distil)
    _, row = fidelity(
        model, _batches(2), STORE, {"along": learner}, k=K, optimizer=_sgd(model), repeats=1
    )  # fmt: skip
    optimizer, its = _sgd(literal), _sgd(other)
    pairs = []
    for batch in _batches(2):
        rho = _rho(literal, batch)
        pairs.append((rho, _rho(other, batch)))
        rows = rho.argsort(descending=True)[:K]
        x, y = (part[rows] for part in batch.batch)
        goal = literal(x).softmax(1).detach() if distil else y
        its.zero_grad()
        F.cross_entropy(other(x), goal).backward()
        its.step()
        _train(literal, optimizer, batch)
    _assert_is(row, pairs)
    # what its cost was timed with leaves nothing behind
    torch.testing.assert_close(scorer.state_dict(), other.state_dict())


def test_an_early_exit_learns_along() -> None:
    model = _net(norm=True)
    way = rd.early_exit(model, "1", num_classes=C, make_optimizer=lambda p: torch.optim.SGD(p, 0.5))
    start = way.state_dict()["model"]["weight"]
    before = copy.deepcopy(model.state_dict())
    rows = fidelity(model, _batches(), STORE, {"early": way}, k=K, repeats=1)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(way.state_dict()["model"]["weight"], start)  # nothing was trained on
    rows = fidelity(
        model, _batches(2), STORE, {"early": way}, k=K, optimizer=_sgd(model), repeats=1
    )  # fmt: skip
    assert not torch.equal(way.state_dict()["model"]["weight"], start)
    assert len(rows[1].overlaps) == 8


def test_without_training_nothing_moves(global_streams: Callable[[], Any]) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, C))
    before, streams = copy.deepcopy(model.state_dict()), global_streams()
    modes = [m.training for m in model.modules()]
    batches = _batches()
    streams = global_streams()
    fidelity(model, batches, STORE, {"half": rd.Scoring(precision="bfloat16")}, k=K, repeats=2)
    assert global_streams() == streams
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())


# -- costs ----------------------------------------------------------------------------------------


def test_costs_by_hand(seconds: Callable[..., None]) -> None:
    """Training 4 rows takes 8 s, so 2 s each; 24 candidates are scored exactly in 12 s."""
    scorer, optimizer = _net(1), torch.optim.SGD
    ways: dict[str, Any] = {
        "frozen": _net(1),
        "along": rd.CoTrained(scorer, optimizer(scorer.parameters(), lr=0.1)),
        "half": ScoringMethod(share=0.5),
        "four": rd.Scoring(updates_per_scoring=4),
        "along, two": ScoringMethod(
            scorer=rd.CoTrained(scorer, optimizer(scorer.parameters(), lr=0.1)),
            scoring=rd.Scoring(updates_per_scoring=2),
        ),
        "old": rd.Scoring(max_age=100, rescore=0.25),
    }
    seconds({"train": 8.0, "pass by exact": 12.0, "pass by four": 12.0, "pass by half": 6.0})
    seconds({"pass by frozen": 2.4, "pass by along": 2.4, "step of along": 1.2})
    seconds({"pass by along, two": 2.4, "step of along, two": 1.2, "pass by old": 12.0})
    model = _net()
    rows = fidelity(
        model, _batches(4), STORE, ways, k=K, skip=4, optimizer=_sgd(model), repeats=3
    )  # fmt: skip
    found = {row.way: row.cost for row in rows}
    share = found.pop("old") / 0.25
    assert found == pytest.approx(
        {
            "exact": 0.25,  # (12 / 24) / 2
            "frozen": 0.05,
            "along": 0.075,
            "half": 0.125,
            "four": 0.0625,
            "along, two": (2.4 / 2 + 1.2) / 24 / 2,
        }
    )
    assert 0.1 < share < 0.4  # of the rows that were scored all the same
    assert all(len(row.costs) == 3 for row in rows)
    assert rows[0].costs == pytest.approx([0.25] * 3)  # each turn over its own training


def test_training_is_timed_as_training() -> None:
    """In train mode and with gradients, on as many rows as are picked, of a copy."""
    passes: list[tuple[bool, int]] = []

    class Watched(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                passes.append((self.training, len(input)))
            return super().forward(input)

    model = Watched(4, C).eval()
    fidelity(model, _batches(), STORE, {}, k=K, repeats=1)
    assert passes == [(True, K)] * 2
    assert not model.training


# -- what cannot work -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ways", "options", "message"),
    [
        ({"x": "mlp-64"}, {}, "'x' is a str: pass a ScoringMethod, a Scoring, a module"),
        ({"exact": rd.Scoring()}, {}, "'exact' is what ways are compared with"),
        ({"x": ScoringMethod(share=0.1)}, {}, "'x' picks 4 of 2 rows that it scores: give larger"),
        ({"x": rd.Scoring(updates_per_scoring=7)}, {}, "'x' picks 28 of 24 rows"),
        ({}, {"k": 25}, "'exact' picks 25 of 24 rows"),
        ({}, {"k": 0}, "k must be a whole number"),
        ({}, {"skip": -1}, "skip must be"),
        ({}, {"every": 0}, "every must be"),
        ({}, {"repeats": 0}, "repeats must be"),
        ({}, {"skip": 4}, "no batch was left to compare every way on, after skip=4"),
        ({"x": rd.Scoring(updates_per_scoring=6)}, {}, "with several updates per scoring needs as"),
    ],
)
def test_what_cannot_be_compared(ways: Any, options: Any, message: str) -> None:
    options = {"k": K, "repeats": 1} | options
    with pytest.raises(rd.ConfigurationError, match=message):
        fidelity(_net(norm=True), _batches(), STORE, ways, **options)


@pytest.mark.parametrize("share", [0.0, 1.1, math.nan])
def test_shares_that_are_none(share: float) -> None:
    with pytest.raises(rd.ConfigurationError, match=r"share must be a number in \(0.0, 1.0\]"):
        ScoringMethod(share=share)


def test_batches_that_differ_in_size() -> None:
    batches = [DATA.fetch(torch.arange(n)) for n in (24, 23)]
    with pytest.raises(rd.DataError, match="batches of 24 and of 23 rows: leave out a shorter"):
        fidelity(_net(), batches, STORE, {}, k=K)


def test_scores_that_are_not_finite_are_named() -> None:
    broken = _net(1)
    next(broken.parameters()).data.fill_(math.nan)
    with pytest.raises(rd.SelectionError, match=r"the loss by 'broken' is not finite for 24 of 24"):
        fidelity(_net(), _batches(), STORE, {"broken": broken}, k=K)
