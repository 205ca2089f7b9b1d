"""Rows drawn before they are loaded, rules that rest, and the streams that choices come from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reducible as rd
from reducible.loop.seeds import stream_seed
from toys import (
    FULL,
    N_B,
    Examples,
    K,
    N,
    Spy,
    batches_of,
    ids_over,
    loader_of,
)

# -- uniform costs nothing ------------------------------------------------------------------------


class NoForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("a forward pass was run")


@pytest.mark.parametrize("kind", ["own", "global"])
def test_uniform_loads_only_what_it_hands_out_and_runs_no_forward(kind: str) -> None:
    data = Examples()
    batches = batches_of("uniform", loader_of(kind, dataset=rd.WithIds(data)), model=NoForward())
    handed_out = ids_over(batches, epochs=2)
    assert len(handed_out) == 2 * FULL
    assert data.loaded == [i for row in handed_out for i in row]
    assert batches.ledger.counts.examples_scored == 0
    assert batches.ledger.counts.forwards_scored == 0
    assert batches.ledger.counts.flops_score == 0
    assert batches.ledger.counts.examples_trained == 2 * FULL * K


def test_a_rule_that_scores_loads_all_candidates() -> None:
    data = Examples()
    ids_over(batches_of("rho", loader_of(dataset=rd.WithIds(data))))
    assert sorted(data.loaded) == list(range(N))


@pytest.mark.parametrize("kind", ["own", "global", "tensors"])
@pytest.mark.parametrize("workers", [0, 2])
def test_uniform_draws_from_the_candidates_that_other_rules_see(kind: str, workers: int) -> None:
    """Paired runs: the same order of candidates, whatever the rule."""
    spy = Spy(rd.selector("rho"))
    torch.manual_seed(11)
    ids_over(batches_of(spy, loader_of(kind, workers=workers)), epochs=3)
    torch.manual_seed(11)
    uniform = ids_over(batches_of("uniform", loader_of(kind, workers=workers)), epochs=3)
    assert len(uniform) == len(spy.candidates) == 3 * FULL
    for chosen, candidates in zip(uniform, spy.candidates, strict=True):
        assert set(chosen) < set(candidates)
    assert uniform[0] != spy.candidates[0][:K]  # drawn, not the first ones


def test_uniform_chooses_the_same_where_it_cannot_read_ahead() -> None:
    ahead = ids_over(batches_of("uniform", loader_of("own")), epochs=2)
    assert ids_over(batches_of("uniform", loader_of("opaque")), epochs=2) == ahead


# -- a rule that rests ----------------------------------------------------------------------------

RESTS = pytest.mark.parametrize(
    ("schedule", "asked"),
    [
        ({"end": 2}, [0, 1]),
        ({"start": 4}, [4, 5]),
        ({"every": 3, "mix": 0.5}, [0, 3]),
        ({"end": 4, "anneal": 4}, [0, 1, 2, 3]),  # of five rows 5, 3.75, 2.5 and 1.25
    ],
    ids=str,
)


def _scheduled(kind: str = "own", **options: Any) -> tuple[Examples, Any]:
    data = Examples()
    schedule = options.pop("schedule")
    rule = rd.Scheduled(rd.selector("rho"), **schedule)
    return data, batches_of(rule, loader_of(kind, dataset=rd.WithIds(data)), **options)


@RESTS
def test_a_scheduled_rule_loads_and_scores_candidates_only_where_it_is_asked(
    schedule: dict[str, Any], asked: list[int]
) -> None:
    data, batches = _scheduled(schedule=schedule)
    spy = Spy(rd.selector("rho"))
    ids_over(batches_of(spy))
    expected: list[int] = []
    for step, row in enumerate(ids_over(batches)):
        expected += spy.candidates[step] if step in asked else row
        assert len(set(row)) == K
        assert set(row) < set(spy.candidates[step])  # paired with every other rule
    assert data.loaded == expected
    assert batches.ledger.counts.examples_scored == len(asked) * N_B
    assert batches.ledger.counts.examples_trained == FULL * K


@RESTS
@pytest.mark.parametrize("updates", [1, 2])
def test_a_scheduled_rule_chooses_the_same_where_it_cannot_read_ahead(
    schedule: dict[str, Any], asked: list[int], updates: int
) -> None:
    scoring = rd.Scoring(updates_per_scoring=updates)
    _, ahead = _scheduled(schedule=schedule, scoring=scoring)
    data, behind = _scheduled("opaque", schedule=schedule, scoring=scoring)
    assert ids_over(ahead, epochs=2) == ids_over(behind, epochs=2)
    assert sorted(data.loaded) == sorted([*range(N)] * 2)
    assert ahead.ledger.counts.examples_scored == behind.ledger.counts.examples_scored


def test_with_a_shadow_every_candidate_is_seen_though_the_rule_rests() -> None:
    _, alone = _scheduled(schedule={"end": 2})
    shadows = {"hard": rd.selector("train_loss")}
    data, watched = _scheduled(schedule={"end": 2}, shadows=shadows)
    assert ids_over(watched) == ids_over(alone)
    assert sorted(data.loaded) == list(range(N))


# -- seeds and streams ----------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["uniform", "rho", "irreducible_loss"])
def test_same_seed_same_picks(rule: str) -> None:
    torch.manual_seed(1)
    first = ids_over(batches_of(rule, seed=4), epochs=2)
    torch.manual_seed(2)
    assert ids_over(batches_of(rule, seed=4), epochs=2) == first


def test_another_seed_another_choice() -> None:
    assert ids_over(batches_of("uniform", seed=4)) != ids_over(batches_of("uniform", seed=5))
    flat = rd.IrreducibleLossStore.from_tensor(torch.zeros(N))  # every score ties
    tied = [ids_over(batches_of("irreducible_loss", store=flat, seed=s)) for s in (4, 5, 4)]
    assert tied[0] == tied[2] != tied[1]


def test_every_step_has_a_seed_of_its_own() -> None:
    seeds = {stream_seed(seed, step) for seed in range(20) for step in range(200)}
    assert len(seeds) == 4000
    assert all(0 <= s < 2**63 for s in seeds)


@pytest.mark.parametrize("rule", ["uniform", "rho"])
@pytest.mark.parametrize("kind", ["own", "global", "opaque-global", "tensors"])
@pytest.mark.parametrize("workers", [0, 2])
def test_global_streams_move_only_as_the_loader_moves_them(
    rule: str, kind: str, workers: int, global_streams: Callable[[], Any]
) -> None:
    plain, batches = loader_of(kind, workers=workers), None
    wrapped = batches_of(rule, loader_of(kind, workers=workers))
    after = []
    for batches in (plain, wrapped):
        torch.manual_seed(9)
        for _ in range(2):
            for _ in batches:
                pass
        after.append(global_streams())
    assert after[0] == after[1]


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3)).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    ids_over(batches_of("rho", model=model))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert all(m.training for m in model.modules())
