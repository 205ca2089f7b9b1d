"""Break-even: the cost formula by hand, and a measurement that leaves the model alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reducible as rd
from reducible.costs import payoff as module
from reducible.costs.payoff import medians_in_turn


def _model() -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3)
        )


def _batch(n: int = 8) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(0)), torch.arange(n) % 3


@pytest.fixture
def by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """8 rows train in 0.8 s; 32 candidates take 1.6 s exactly, 0.4 s in bfloat16.

    Of those that are remembered, one in eight is scored.
    """

    def medians(work: Mapping[str, Callable[[], Any]], **_: Any) -> dict[str, float]:
        for run in work.values():
            run()
        taken = {"train": 0.8, "exact": 1.6, "bfloat16": 0.4, "remembered": 0.4, "shared": 1.6}
        return {name: taken[name] for name in work}

    monkeypatch.setattr(module, "medians_in_turn", medians)


@pytest.mark.usefixtures("by_hand")
def test_the_cost_of_an_update_by_hand() -> None:
    found = rd.break_even(nn.Linear(6, 3), _batch(), ratios=(2, 4))
    assert found.forward_over_step == pytest.approx(0.5)  # (1.6 / 32) / (0.8 / 8)
    rows = [
        (s.scoring, s.ratio, s.discount, s.update_cost, s.steps_to_save) for s in found.settings
    ]
    by_cost = [  # 1 + ratio · f · s
        ("remembered", 2, 0.03125, 1.03125, 1 / 33),
        ("remembered", 4, 0.03125, 1.0625, 1 / 17),
        ("bfloat16", 2, 0.25, 1.25, 0.2),
        ("bfloat16", 4, 0.25, 1.5, 1 / 3),
        ("exact", 2, 1.0, 2.0, 0.5),
        ("exact", 4, 1.0, 3.0, 2 / 3),
    ]
    assert [r[:2] for r in rows] == [r[:2] for r in by_cost]
    for row, expected in zip(rows, by_cost, strict=True):
        assert row[2:] == pytest.approx(expected[2:])
    assert found.cheapest is found.settings[0]


@pytest.mark.usefixtures("by_hand")
def test_it_reads_as_a_table() -> None:
    text = str(rd.break_even(nn.Linear(6, 3), _batch(), ratios=(2, 4)))
    lines = text.splitlines()
    assert lines[0] == "scoring an example costs 0.50 of training on it (f)"
    assert len(lines) == 2 + 6 + 1
    assert lines[4].split() == ["bfloat16", "2", "0.25", "1.25×", "20%"]
    assert "cheapest: remembered scoring at n_B/n_b = 2" in lines[-1]
    assert "more than 3% of the steps" in lines[-1]


@pytest.mark.usefixtures("by_hand")
@pytest.mark.parametrize(
    ("batchnorm", "shares"),
    [("candidates", (1.0, 0.5, 0.125)), ("running", (0.125, 0.125, 0.125))],
)
def test_batch_statistics_take_32_rows(batchnorm: Any, shares: tuple[float, ...]) -> None:
    lasting = rd.Scoring(max_age=9, rescore=1 / 8, batchnorm=batchnorm)
    scorings = {"exact": rd.Scoring(), "remembered": lasting}
    ratios = (2, 8, 40)  # of 16, 64 and 320 candidates
    found = rd.break_even(_model(), _batch(), ratios=ratios, scorings=scorings)
    discounts = {s.ratio: s.discount for s in found.settings if s.scoring == "remembered"}
    assert discounts == {r: 0.25 * share for r, share in zip(ratios, shares, strict=True)}


@pytest.mark.usefixtures("by_hand")
def test_one_scoring_for_several_updates_is_shared() -> None:
    scorings = {"exact": rd.Scoring(), "shared": rd.Scoring(updates_per_scoring=4)}
    found = rd.break_even(_model(), _batch(), ratios=(4,), scorings=scorings)
    assert [(s.scoring, s.discount, s.update_cost) for s in found.settings] == [
        ("shared", 0.25, 1.5), ("exact", 1.0, 3.0)
    ]  # fmt: skip


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_alone(training: bool) -> None:
    model = _model().train(training)
    model[3].eval()  # pyright: ignore[reportIndexIssue]
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    x, y = _batch()
    found = rd.break_even(model, (x, y), repeats=1, ratios=(2,))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(x, _batch()[0])
    assert found.forward_over_step > 0
    assert all(s.update_cost > 1 and 0 < s.steps_to_save < 1 for s in found.settings)
    assert list(found.settings) == sorted(found.settings, key=lambda s: s.update_cost)


def test_global_streams_are_left_alone(global_streams: Callable[[], Any]) -> None:
    streams = global_streams()
    rd.break_even(_model(), _batch(), repeats=1, ratios=(2,))
    assert global_streams() == streams


@pytest.mark.usefixtures("by_hand")
def test_candidates_are_as_many_as_the_largest_ratio() -> None:
    rows: list[int] = []

    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            rows.append(len(x))
            return self.net(x)

    rd.break_even(Counts(), _batch(), ratios=(2, 4), scorings={"exact": rd.Scoring()})
    assert rows == [8, 32]  # a step on n_b, a pass over n_B


def test_work_takes_turns() -> None:
    order: list[str] = []
    work = {name: (lambda n=name: order.append(n)) for name in "ab"}
    medians = medians_in_turn(work, repeats=3, device=torch.device("cpu"))
    assert set(medians) == {"a", "b"}
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"  # the first is not counted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scorings": {"bfloat16": rd.Scoring()}}, "scorings must hold 'exact'"),
        ({"repeats": 0}, r"repeats must be a whole number in \[1, inf\]"),
        ({"ratios": (1,)}, r"ratios must be a number in \(1, inf\)"),
        ({"ratios": (float("nan"),)}, "ratios must be"),
        ({"ratios": ()}, "name at least one ratio"),
        (
            {"scorings": {"exact": rd.Scoring(), "old": rd.Scoring(max_age=5)}},
            "'old' remembers losses for 5 updates, but .* Say which share .* rescore=0.125",
        ),
    ],
)
def test_settings_that_cannot_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(rd.ConfigurationError, match=message):
        rd.break_even(_model(), _batch(), **options)


def test_a_task_without_targets() -> None:
    class Unlabelled(rd.Task):
        def targets(self, batch: Any) -> None:
            return None

        def forward(self, model: nn.Module, batch: Any, *, features: bool = False) -> Any:
            raise AssertionError

        def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
            raise AssertionError

    with pytest.raises(rd.DataError, match="no targets, so there is no step to measure"):
        rd.break_even(_model(), _batch(), task=Unlabelled())
