"""A scorer that learns along from what the model predicts, and going on with one that was saved."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reducible as rd
from scorer_toys import (
    DATA,
    N_B,
    SGD,
    STORE,
    TASK,
    C,
    K,
    N,
    assert_untouched,
    clone,
    everything_of,
    images_of,
    model_of,
    noisy,
    student_of,
)

# -- distilled ------------------------------------------------------------------------------------


@pytest.mark.parametrize("batchnorm", ["candidates", "running"])
def test_a_distilled_step_by_hand(batchnorm: Any, global_streams: Callable[[], Any]) -> None:
    """Cross-entropy against the model's softmax in its scoring mode; the model stays as it is."""
    model, batch, weights = noisy(), images_of(K), torch.arange(1.0, K + 1)
    student, scorer = student_of()
    literal = clone(student)
    teacher = noisy().eval()
    for module in teacher:
        module.train(batchnorm == "candidates" and isinstance(module, nn.BatchNorm1d))
    p = teacher(batch[0]).softmax(1).detach()  # [K, C]
    loss = F.cross_entropy(literal(batch[0]), p, reduction="none")  # [K]
    (loss * weights).mean().backward()
    before, streams = everything_of(model), global_streams()
    # labels that no network has: they are not read
    scorer.step(
        TASK, (batch[0], batch[1] + 1000), weights, trained=model,
        scoring=rd.Scoring(batchnorm=batchnorm, resolution=4),
    )  # fmt: skip
    assert global_streams() == streams
    assert_untouched(model, before)
    for mine, its in zip(student.parameters(), literal.parameters(), strict=True):
        assert its.grad is not None
        torch.testing.assert_close(mine, its - 0.5 * its.grad)


def test_the_reference_mode_moves_nothing_in_a_step() -> None:
    model = noisy()
    before = everything_of(model)
    student, scorer = student_of()
    start = clone(student).state_dict()
    reference = rd.Scoring(batchnorm="reference")
    scorer.step(TASK, images_of(K), torch.ones(K), trained=model, scoring=reference)
    assert_untouched(model, before)
    assert not torch.equal(student.state_dict()["1.weight"], start["1.weight"])


def test_a_distilled_scorer_in_the_loop_learns_what_the_model_says_in_training() -> None:
    """With dropout on and other inputs than its own, as training has them; before the update."""
    model = noisy()
    student, scorer = student_of()
    literal = clone(student)
    other, optimizer = SGD(literal.parameters()), torch.optim.SGD(model.parameters(), lr=0.1)
    batches = rd.SelectingLoader(
        DATA.loader(N_B, generator=torch.Generator()), model, rd.selector("rho"), keep=K,
        store=STORE, scorer=scorer,
    )  # fmt: skip
    for chosen in batches:
        torch.testing.assert_close(student.state_dict(), literal.state_dict())
        x, y = chosen.batch
        logits = model(x.flip(3))
        other.zero_grad()
        F.cross_entropy(literal(x), logits.detach().softmax(1)).backward()
        other.step()
        optimizer.zero_grad()
        F.cross_entropy(logits, y).backward()
        logits.data.zero_()  # what was heard is not moved by what comes after
        optimizer.step()
    torch.testing.assert_close(student.state_dict(), literal.state_dict())
    assert batches.step == N // N_B


def test_what_a_distilled_step_costs_is_charged_to_scoring() -> None:
    class Clock:
        now = 0.0

        def __call__(self) -> float:
            return self.now

    clock = Clock()

    class Slow(nn.Module):
        def __init__(self, seconds: float) -> None:
            super().__init__()
            self.net, self.seconds = nn.Sequential(nn.Flatten(), nn.Linear(256, C)), seconds
            self.rows: list[int] = []

        def forward(self, x: Tensor) -> Tensor:
            clock.now += self.seconds
            self.rows.append(len(x))
            return self.net(x)

    model, student, ledger = Slow(100), Slow(1), rd.Ledger(clock=clock)
    scorer = rd.CoTrained(student, SGD(student.parameters()), distil=True)
    batches = rd.SelectingLoader(
        DATA.loader(N_B), model, rd.selector("rho"), keep=K, store=STORE, scorer=scorer,
        ledger=ledger,
    )  # fmt: skip
    steps = len(list(batches))
    assert ledger.seconds["score"] == ledger.total == (100 + 1 + 1) * steps
    assert model.rows == [K] * steps  # the chosen ones, once


def test_a_follower_may_be_distilled() -> None:
    model, student = noisy(), nn.Sequential(nn.Flatten(), nn.Linear(256, C))
    lead = torch.optim.SGD(model.parameters(), lr=0.4)
    with pytest.raises(rd.ConfigurationError, match=r"learns from a model: pass trained=<it>"):
        rd.CoTrained.following(student, lead, lr_ratio=0.5, distil=True).step(
            TASK, images_of(K), torch.ones(K)
        )
    literal = clone(student)
    x, y = images_of(K)
    for distil in (True, False):
        copied = clone(student)
        rd.CoTrained.following(copied, lead, lr_ratio=0.5, distil=distil).step(
            TASK, (x, y), torch.ones(K), trained=model, scoring=rd.Scoring(batchnorm="running")
        )
        goal = clone(model).eval()(x).softmax(1).detach() if distil else y
        literal.zero_grad()
        F.cross_entropy(literal(x), goal).backward()
        weight = literal[1].weight
        torch.testing.assert_close(copied[1].weight, weight - 0.2 * weight.grad)


def test_models_of_other_classes_cannot_teach() -> None:
    _, scorer = student_of()
    other = nn.Sequential(nn.Flatten(), nn.Linear(256, 1))
    message = r"the scorer gives \(6, 10\), the model it is to learn from \(6, 1\)"
    with pytest.raises(rd.ConfigurationError, match=message):
        scorer.step(TASK, images_of(K), torch.ones(K), trained=other)


# -- saved and gone on with -----------------------------------------------------------------------


def _early(model: nn.Module) -> rd.CoTrained:
    return rd.early_exit(
        model, "4", num_classes=C, make_optimizer=lambda p: torch.optim.Adam(p, lr=0.05)
    )


def _distilled(_: nn.Module) -> rd.CoTrained:
    return student_of()[1]


@pytest.mark.parametrize("updates", [1, 2])
@pytest.mark.parametrize("stop", [3, 8])
@pytest.mark.parametrize("make", [_early, _distilled], ids=["early exit", "distilled"])
@pytest.mark.parametrize("name", ["lenet", "resnet-18-16"])
def test_stopping_and_going_on_is_never_having_stopped(
    name: str, make: Callable[[nn.Module], rd.CoTrained], stop: int, updates: int
) -> None:
    until, saved = 11, io.BytesIO()

    def setup() -> tuple[nn.Module, Any, Any]:
        model = model_of(name)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        batches = rd.SelectingLoader(
            DATA.loader(N_B, generator=torch.Generator().manual_seed(3)), model,
            rd.selector("rho"), keep=K, store=STORE, scorer=make(model),
            scoring=rd.Scoring(updates_per_scoring=updates),
        )  # fmt: skip
        return model, optimizer, batches

    def train(model: nn.Module, optimizer: Any, batches: Any) -> list[list[int]]:
        ids = []
        while batches.step < until:
            for chosen in batches:
                x, y = chosen.batch
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
                ids.append(chosen.ids.tolist())
                if batches.step == stop:
                    parts = (batches.state_dict(), model.state_dict(), optimizer.state_dict())
                    saved.seek(0)
                    torch.save(parts, saved)
                if batches.step == until:
                    break
        return ids

    model, optimizer, batches = setup()
    expected = train(model, optimizer, batches)
    saved.seek(0)
    states = torch.load(saved, weights_only=True)
    again, optimizer, resumed = setup()
    for part, state in zip((resumed, again, optimizer), states, strict=True):
        part.load_state_dict(state)
    assert train(again, optimizer, resumed) == expected[stop:]
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    ends = [b.state_dict()["measuring"]["scorer"]["model"] for b in (batches, resumed)]
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=0)
    assert len(expected) == until
