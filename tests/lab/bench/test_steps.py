"""Steps of the loop and by hand: the same arithmetic, taking turns."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from reducible.lab.bench import steps, training
from reducible.lab.data import TensorSet, fashion_mnist
from reducible.loop.gate import Gate
from reducible.loop.trials import GateTrials
from reducible.stores import IrreducibleLossStore

KEYS = {"what", "median", "unit", "min", "max", "runs"}


def _made(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The models that the benchmark makes from here on."""
    models: list[nn.Module] = []
    inner = steps.new_model

    def new_model(name: str) -> Any:
        made = inner(name)
        models.append(made[0])
        return made

    monkeypatch.setattr(steps, "new_model", new_model)
    return models


def _walk(*both: Iterator[None], number: int) -> None:
    for steps_of in both:
        for _ in itertools.islice(steps_of, number):
            pass


def _check_same_updates(models: list[nn.Module]) -> None:
    ours, by_hand = (m.state_dict() for m in models)
    torch.testing.assert_close(ours, by_hand)
    fresh = training.new_model("mlp-64")[0].state_dict()
    assert not torch.equal(ours["1.weight"], fresh["1.weight"])


def test_the_loop_and_its_floor_do_the_same_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Same candidates, same choice, same updates: only so is their ratio the loop's overhead."""
    data = fashion_mnist("train")
    store = IrreducibleLossStore.from_tensor(torch.rand(len(data)))
    models = _made(monkeypatch)
    _walk(
        steps._steps_by_loader(data, "mlp-64", store),
        steps._steps_by_hand(data, "mlp-64", store),
        number=5,
    )
    _check_same_updates(models)


def test_a_watching_gate_and_its_floor_train_on_the_same_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Over more than one pass of 320 candidates; only 32 of them are loaded, and none scored."""
    data = fashion_mnist("train").subset(torch.arange(1000))
    loaded: list[int] = []
    inner = TensorSet.fetch

    def fetch(self: TensorSet, indices: torch.Tensor) -> Any:
        loaded.append(len(indices))
        return inner(self, indices)

    monkeypatch.setattr(TensorSet, "fetch", fetch)
    models = _made(monkeypatch)
    _walk(
        steps._watched_steps(data, "mlp-64"),
        steps._plain_steps_by_hand(data, "mlp-64"),
        number=8,
    )
    assert loaded == [32] * 16
    _check_same_updates(models)
    monkeypatch.setattr(steps, "Gate", None)  # uniform makes none, and loads as many rows
    _walk(steps._uniform_steps(data, "mlp-64"), number=8)
    assert loaded == [32] * 24


def test_no_trial_comes_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GateTrials, "_probe", None)
    _walk(steps._watched_steps(fashion_mnist("train"), "mlp-64"), number=200)
    monkeypatch.setattr(steps, "Gate", lambda **_: Gate(budget=1.0))
    with pytest.raises(TypeError, match="NoneType"):
        _walk(steps._watched_steps(fashion_mnist("train"), "mlp-64"), number=200)


@pytest.mark.parametrize(
    ("measured", "ours", "by_hand"),
    [
        ("step_overhead", "_steps_by_loader", "_steps_by_hand"),
        ("watching_overhead", "_watched_steps", "_plain_steps_by_hand"),
        ("gate_bookkeeping", "_watched_steps", "_uniform_steps"),
    ],
)
def test_they_take_turns(
    measured: str, ours: str, by_hand: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[str] = []

    def walk(name: str) -> Any:
        def made(*_: Any) -> Iterator[None]:
            while True:
                turns.append(name)
                yield

        return made

    monkeypatch.setattr(steps, ours, walk("ours"))
    monkeypatch.setattr(steps, by_hand, walk("hand"))
    row = getattr(steps, measured)("mlp-64", rounds=3, steps=2)
    pairs = ["ours", "hand", "hand", "ours"]
    ours_first = ["ours"] * 5 + ["hand"] * 5 + pairs  # after a warm-up of both
    hand_first = ["hand"] * 5 + ["ours"] * 5 + pairs
    assert turns == ours_first + hand_first + ours_first
    assert set(row) == KEYS
    assert (row["unit"], row["runs"]) == ("ratio", 3)
    assert "mlp-64" in row["what"]


def test_ours_is_over_that_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock on which every step of ours takes three seconds, every other two."""
    now, open_now, made = [0.0], [0], [0]

    def walk(seconds: float) -> steps.Steps:
        made[0] += 1
        open_now[0] += 1
        try:
            while True:
                now[0] += seconds
                yield
        finally:
            open_now[0] -= 1

    monkeypatch.setattr(steps.time, "perf_counter", lambda: now[0])
    assert steps._in_turn(lambda: walk(3.0), lambda: walk(2.0), 4, 2) == [1.5] * 4
    assert (made, open_now) == ([8], [0])  # both anew for every round, and none left behind


def test_what_the_first_steps_take_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch imports its counter of FLOPs in the first; a tenth beside that looks cheap for ever."""
    asked: list[int] = []

    def seconds(_: object, number: int) -> float:
        asked.append(number)
        return 100.0 if len(asked) == 1 else float(len(asked))

    monkeypatch.setattr(steps, "_seconds", seconds)
    flat, _ = steps.flat_over_steps(1000)
    assert asked == [5] + [100] * 10
    assert (flat["min"], flat["max"]) == (3.0 / 2.0, 11.0 / 2.0)


def test_flatness_over_many_steps() -> None:
    flat, grown = steps.flat_over_steps(50)
    assert (flat["unit"], flat["runs"]) == ("ratio", 9)
    assert flat["min"] > 0
    assert (grown["unit"], grown["runs"]) == ("MiB", 1)
