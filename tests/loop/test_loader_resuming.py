"""After a stop the loop goes on as without one."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import reducible as rd
from toys import (
    FULL,
    Rotating,
    batches_of,
    ids_over,
    loader_of,
    small_model,
)

# -- stopping and resuming ------------------------------------------------------------------------


def _setup(rule: str, kind: str, workers: int) -> tuple[nn.Module, Any, Any]:
    own = {"rotating": Rotating(), "resting": rd.Scheduled(rd.selector("rho"), every=3)}
    selector = own[rule] if rule in own else rd.selector(rule)
    model = small_model()
    batches = batches_of(selector, loader_of(kind, workers=workers), model=model, seed=2)
    return model, torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9), batches


def _train(
    model: nn.Module, optimizer: Any, batches: Any, until: int, save_at: int = -1
) -> tuple[list[list[int]], bytes]:
    """Ids chosen up to step ``until``; updates draw from the global stream, as dropout does."""
    ids, saved = [], io.BytesIO()
    while batches.step < until:
        for chosen in batches:
            x, y = chosen.batch
            noise = 1 + 0.1 * torch.randn(len(y))
            loss = rd.weighted_mean(
                F.cross_entropy(model(x), y, reduction="none") * noise, chosen.weights
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            ids.append(chosen.ids.tolist())
            if batches.step == save_at:
                state = {
                    "loader": batches.state_dict(),
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "stream": torch.get_rng_state(),
                }
                torch.save(state, saved)
            if batches.step == until:
                break
    return ids, saved.getvalue()


CASES = [
    ("uniform", "own", 0),
    ("uniform", "own", 2),
    ("uniform", "global", 0),
    ("uniform", "global", 2),
    ("uniform", "tensors", 0),
    ("uniform", "opaque", 0),
    ("uniform", "opaque-global", 0),
    ("uniform", "list", 0),
    ("rho", "own", 0),
    ("rho", "own", 2),
    ("rho", "global", 0),
    ("rho", "global", 2),
    ("rho", "tensors", 0),
    ("rho", "opaque", 0),
    ("rho", "opaque-global", 0),
    ("rho", "opaque-global", 2),
    ("rho", "list", 0),
    ("rotating", "own", 0),
    ("resting", "own", 0),
    ("resting", "own", 2),
    ("resting", "global", 0),
]


@pytest.mark.parametrize(("rule", "kind", "workers"), CASES)
@pytest.mark.parametrize("stop", [FULL + 2, 2 * FULL], ids=["inside an epoch", "at its end"])
def test_resuming_equals_never_having_stopped(
    rule: str, kind: str, workers: int, stop: int
) -> None:
    until = 3 * FULL - 1
    torch.manual_seed(21)
    model, optimizer, batches = _setup(rule, kind, workers)
    expected, saved = _train(model, optimizer, batches, until, save_at=stop)
    end = torch.get_rng_state()

    torch.manual_seed(99)  # a new process
    state = torch.load(io.BytesIO(saved), weights_only=True)
    again, optimizer, batches = _setup(rule, kind, workers)
    batches.load_state_dict(state["loader"])
    again.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["stream"])
    assert batches.step == stop
    chosen, _ = _train(again, optimizer, batches, until)
    assert chosen == expected[stop:]
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), end)


@pytest.mark.parametrize("rule", ["uniform", "rho"])
@pytest.mark.parametrize("kind", ["own", "global"])
def test_resuming_between_epochs(rule: str, kind: str) -> None:
    torch.manual_seed(3)
    batches = batches_of(rule, loader_of(kind))
    ids_over(batches)
    state, stream = batches.state_dict(), torch.get_rng_state()
    expected = ids_over(batches, epochs=2)
    torch.manual_seed(4)
    again = batches_of(rule, loader_of(kind))
    again.load_state_dict(state)
    torch.set_rng_state(stream)
    assert ids_over(again, epochs=2) == expected
    assert again.epoch == 2


def test_a_state_does_not_move_with_the_loop() -> None:
    batches = batches_of(Rotating())
    walk = iter(batches)
    next(walk)
    state = batches.state_dict()
    position, seconds = state["passes"]["position"], dict(state["ledger"]["seconds"])
    for _ in walk:
        pass
    assert state["passes"]["position"] == position == 1
    assert state["ledger"]["seconds"] == seconds


def test_breaking_off_an_epoch_begins_a_new_one() -> None:
    batches = batches_of("rho")
    for _ in batches:
        break
    assert len(ids_over(batches)) == FULL
    assert batches.epoch == 1
    assert batches.step == FULL + 1
