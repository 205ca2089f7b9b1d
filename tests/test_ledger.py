"""The ledger: every second in exactly one phase, by an injected clock."""

from __future__ import annotations

import sys

import pytest
import torch

from reducible.ledger import PHASES, Counts, Ledger, peak_memory_bytes


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_an_inner_phase_suspends_the_outer_ones() -> None:
    clock = Clock()
    ledger = Ledger(clock=clock)
    with ledger.phase("train"):
        clock.now += 1
        with ledger.phase("pick"):
            clock.now += 10
            with ledger.phase("score"):
                clock.now += 100
            clock.now += 20
        clock.now += 2
    clock.now += 1000  # between phases: nobody's
    with ledger.phase("train"):
        clock.now += 4
    assert ledger.seconds == dict.fromkeys(PHASES, 0.0) | {"train": 7, "pick": 30, "score": 100}
    assert ledger.total == 137


def test_the_same_phase_inside_itself_counts_once() -> None:
    clock = Clock()
    ledger = Ledger(clock=clock)
    with ledger.phase("load"), ledger.phase("load"):
        clock.now += 3
    assert ledger.seconds["load"] == 3


def test_an_error_ends_the_phase() -> None:
    clock = Clock()
    ledger = Ledger(clock=clock)

    def fail() -> None:
        with ledger.phase("score"):
            clock.now += 5
            raise RuntimeError("model")

    with pytest.raises(RuntimeError, match="model"):
        fail()
    clock.now += 50
    with ledger.phase("load"):
        clock.now += 1
    assert ledger.seconds["score"] == 5
    assert ledger.seconds["load"] == 1


def test_evaluation_is_not_charged() -> None:
    clock = Clock()
    ledger = Ledger(clock=clock)
    for phase in PHASES:
        with ledger.phase(phase):
            clock.now += 2
    assert ledger.total == 2 * len(PHASES)
    assert ledger.charged == 2 * (len(PHASES) - 1)


def test_state_goes_on() -> None:
    clock = Clock()
    ledger = Ledger(clock=clock)
    with ledger.phase("train"):
        clock.now += 3
    ledger.counts.examples_scored = 2**40
    state = ledger.state_dict()
    with ledger.phase("train"):
        clock.now += 100  # after saving: not part of the state
    ledger.counts.updates = 9
    again = Ledger(clock=clock)
    again.load_state_dict(state)
    with again.phase("train"):
        clock.now += 4
    assert again.seconds["train"] == 7
    assert again.counts == Counts(examples_scored=2**40)


def test_summary() -> None:
    ledger = Ledger(clock=Clock())
    summary = ledger.summary()
    assert set(summary["seconds"]) == {*PHASES, "total"}
    assert summary["examples_scored"] == summary["flops_train"] == 0
    assert summary["peak_memory_bytes"] > 1e6


def test_a_system_that_does_not_tell_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module ``resource`` is Unix's own; without it the rest of a summary is there."""
    monkeypatch.setitem(sys.modules, "resource", None)  # importing it fails
    assert peak_memory_bytes() is None
    assert Ledger().summary()["peak_memory_bytes"] is None


def test_peak_memory_is_in_bytes_and_only_grows() -> None:
    before = peak_memory_bytes()
    assert torch.ones(20_000_000).sum() == 2e7  # 80 MB, touched
    after = peak_memory_bytes()
    assert before is not None
    assert after is not None
    assert before <= after
    assert 50e6 < after < 1e12
