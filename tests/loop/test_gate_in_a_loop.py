"""The gate in a loop, on a clock of its own: what it costs, and what it switches on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reducible as rd
from reducible.lab.data import TensorSet
from reducible.loop.gate import Gate

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
