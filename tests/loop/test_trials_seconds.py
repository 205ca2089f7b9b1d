"""What the gate is told: every second, on a clock that scripted work moves; held-out rows."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import reducible as rd
from reducible.loop.gate import Gate
from reducible.loop.trials import GateTrials
from trial_toys import B, Bench, D, due_for_a_trial

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
