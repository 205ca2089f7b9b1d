"""Cheap scoring by remembered losses: how old they may be, and what is scored all the same."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

import reducible as rd
from reducible.lab.data import TensorSet
from scoring_toys import (
    DATA,
    FULL,
    N_B,
    STORE,
    K,
    Known,
    N,
    Net,
    Spy,
    assert_resumes,
    batches_of,
    loader_of,
    losses_of,
)


def test_only_old_rows_are_scored() -> None:
    """The same candidates at every step: scored anew when the last pass is older than max_age."""
    model = Net()
    batches = batches_of("rho", model, Known(loader_of(repeat=8)), scoring={"max_age": 2})
    list(batches)
    # scored at step 0, remembered at 1 and 2, and so on
    assert model.scored == [N_B] * 3
    assert batches.ledger.counts.examples_scored == 3 * N_B
    assert batches.ledger.counts.forwards_scored == 3


def test_losses_that_training_saw_are_used() -> None:
    model, spy = Net(), Spy(rd.selector("train_loss"))
    batches = batches_of(spy, model, Known(loader_of(repeat=3)), scoring={"max_age": 5})
    walk = iter(batches)
    chosen = next(walk)
    told = torch.arange(K) + 100.0
    batches.remember(chosen.ids, told)
    again = next(walk)
    assert model.scored == [N_B]
    assert sorted(again.ids.tolist()) == sorted(chosen.ids.tolist())  # these are the largest now
    assert sorted(again.info["score"].tolist()) == told.tolist()
    at_first, later = (e.require("loss") for e in spy.evidence)
    others = ~torch.isin(spy.evidence[0].ids, chosen.ids)
    assert torch.equal(at_first[others], later[others])


def test_what_training_saw_is_as_old_as_its_batch() -> None:
    model = Net()
    batches = batches_of(
        "train_loss", model, Known(loader_of(repeat=4)), keep=N_B, scoring={"max_age": 1}
    )
    for step, chosen in enumerate(batches):
        if step == 0:
            batches.remember(chosen.ids, torch.ones(N_B))
    # seen at step 0, still young at 1, scored at 2, young at 3
    assert model.scored == [N_B, N_B]


def test_remembered_and_fresh_losses_stand_in_their_places() -> None:
    model, spy = Net(), Spy(rd.selector("rho"))
    batches = batches_of(spy, model, scoring={"max_age": 10**6})
    for chosen in batches:
        batches.remember(chosen.ids, chosen.ids.float())
    assert model.scored == [N_B] * FULL
    told = {i for e in spy.evidence for i in e.ids.tolist()}
    assert told == set(range(N))
    fresh = losses_of(model, torch.arange(N))
    first_pass = len(spy.evidence)
    for _ in batches:
        pass
    assert model.scored == [N_B] * FULL  # nothing new in the second pass
    for evidence in spy.evidence[first_pass:]:
        loss, ids = evidence.require("loss"), evidence.ids
        known = loss == ids.float()
        torch.testing.assert_close(loss[~known], fresh[ids][~known])
        assert torch.equal(evidence.require("irreducible_loss"), STORE.lookup(ids))
    given = sum(int((e.require("loss") == e.ids.float()).sum()) for e in spy.evidence[first_pass:])
    assert given == FULL * K  # those trained on in the first pass


def test_a_share_is_scored_all_the_same() -> None:
    steps, refresh = 200, 0.3
    model = Net()
    scoring = {"max_age": 10**6, "rescore": refresh}
    batches = batches_of("rho", model, Known(loader_of(repeat=steps + 1)), scoring=scoring)
    list(batches)
    assert model.scored[0] == N_B
    n = steps * N_B
    share = sum(model.scored[1:]) / n
    assert abs(share - refresh) < 5 * math.sqrt(refresh * (1 - refresh) / n)
    everything = Net()
    scoring = {"max_age": 10**6, "rescore": 1.0}
    list(batches_of("rho", everything, Known(loader_of(repeat=3)), scoring=scoring))
    assert everything.scored == [N_B] * 3


@pytest.mark.parametrize("stop", [4, FULL, FULL + 3])
def test_memories_resume(stop: int) -> None:
    def make() -> tuple[Net, Any]:
        model = Net()
        return model, batches_of("rho", model, scoring={"max_age": FULL, "rescore": 0.2})

    assert_resumes(make, stop=stop, until=3 * FULL - 1, remember=True)


def test_memory_goes_with_a_live_irreducible_loss_model() -> None:
    model, live, spy = Net(), Net(1), Spy(rd.selector("rho_updating"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = batches_of(
        spy, model, scoring={"max_age": 3}, irreducible_model=live, optimizer=optimizer
    )
    for _ in range(2):
        for chosen in batches:
            assert chosen.ids.numel() == K
    for evidence in spy.evidence:
        assert evidence.require("irreducible_loss").shape == (N_B,)
    assert len(live.trained) == 2 * FULL


@pytest.mark.parametrize("rule", ["grad_norm", "rho_entropy", "bald", "divbs", "rho_divbs"])
def test_rules_that_read_more_than_losses_cannot_remember(rule: str) -> None:
    with pytest.raises(rd.ConfigurationError, match=r"max_age=3 remembers losses, but .* needs \["):
        batches_of(rule, Net(), scoring={"max_age": 3})


def test_memory_needs_ids_beforehand() -> None:
    with pytest.raises(rd.ConfigurationError, match="max_age needs ids known beforehand"):
        batches_of("rho", Net(), loader_of(repeat=2), scoring={"max_age": 3})


@pytest.mark.parametrize(
    ("batchnorm", "norm", "later"),
    [("candidates", True, 32), ("running", True, 0), ("candidates", False, 0)],
)
def test_enough_rows_are_scored_for_batch_statistics(
    batchnorm: str, norm: bool, later: int
) -> None:
    rows = 50
    data = TensorSet(torch.rand(rows, *DATA.inputs.shape[1:]), torch.arange(rows) % 2)
    store = rd.IrreducibleLossStore.from_tensor(torch.zeros(rows))

    class Again(list[Any]):
        dataset = data

    model, spy = Net(norm=norm).train(), Spy(rd.selector("rho"))
    loader = Again([data[list(range(rows))]] * 3)
    scoring = {"max_age": 9, "batchnorm": batchnorm}
    list(batches_of(spy, model, loader, keep=K, store=store, scoring=scoring))
    assert model.scored == [rows, *[later] * 2] if later else model.scored == [rows]
    losses = [evidence.require("loss") for evidence in spy.evidence]
    for before, loss in itertools.pairwise(losses):
        moved = int((loss != before).sum())  # 32 rows' own statistics are not those of all 50
        assert 0 < moved <= 32 if later else moved == 0
