"""Ids that are always chosen, beside what a rule chooses of the others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import reducible as rd

LOSS = torch.tensor([0.5, 0.1, 0.9, 0.3, 0.7, 0.2])


def _evidence(**more: Any) -> rd.Evidence:
    return rd.Evidence(
        ids=torch.arange(10, 16), loss=LOSS, context={"step": torch.tensor(1)}, **more
    )


def _select(rule: rd.Selector, k: int, seed: int = 0) -> rd.Selection:
    return rule.select(_evidence(), k, generator=torch.Generator().manual_seed(seed))


def test_they_are_chosen_and_the_rule_chooses_the_others() -> None:
    rule = rd.Always(rd.selector("train_loss"), [11, 13, 99])
    chosen = _select(rule, 4)
    assert chosen.index[:2].tolist() == [2, 4]  # the highest losses of those left
    assert sorted(chosen.index[2:].tolist()) == [1, 3]
    assert chosen.weight.tolist() == [1.0] * 4
    assert chosen.info["score"][:2].tolist() == pytest.approx([0.9, 0.7])
    assert bool(chosen.info["score"][2:].isnan().all())


def test_none_of_them_there_is_the_rule_alone() -> None:
    rule, plain = rd.Always(rd.selector("train_loss"), [99]), rd.selector("train_loss")
    assert _select(rule, 3).index.tolist() == _select(plain, 3).index.tolist()


def test_those_that_are_too_many_are_candidates_like_others() -> None:
    rule = rd.Always(rd.selector("train_loss"), torch.arange(10, 16), most=0.5)
    drawn: set[int] = set()
    for seed in range(20):
        index = _select(rule, 4, seed).index.tolist()
        others = [i for i in range(6) if i not in index[2:]]
        best = sorted(others, key=lambda i: -float(LOSS[i]))[:2]
        assert index[:2] == best
        drawn |= set(index[2:])
    assert drawn == set(range(6))  # by chance, not by place


def test_if_they_fill_the_batch_nothing_is_measured() -> None:
    rule = rd.Always(rd.selector("train_loss"), [10, 11, 12])
    asked: list[frozenset[str]] = []

    def look(needs: frozenset[str], rows: Any = None, *, samples: int = 0) -> rd.Evidence:
        asked.append(needs)
        return rd.Evidence(ids=torch.arange(10, 16))

    choice = rule.choose(look, 2, generator=torch.Generator())
    assert set(choice.positions.tolist()) <= {0, 1, 2}
    assert asked == [frozenset()]
    rule.observe(choice.evidence, choice.selection)  # the rule chose nothing


def test_the_rule_learns_from_its_own_choice() -> None:
    rule = rd.Always(rd.selector("rho_ema"), [11])
    alone = rd.selector("rho_ema")
    evidence = _evidence(irreducible_loss=torch.zeros(6))
    g = torch.Generator()
    chosen = rule.select(evidence, 3, generator=g)
    rule.observe(evidence, chosen)
    others = torch.tensor([0, 2, 3, 4, 5])
    own = alone.select(evidence.rows(others), 2, generator=g)
    alone.observe(evidence.rows(others), own)
    assert others[own.index].tolist() == chosen.index[:-1].tolist()
    assert rule.state_dict() == alone.state_dict()
    again = rd.Always(rd.selector("rho_ema"), [11])
    again.load_state_dict(rule.state_dict())
    assert again.state_dict() == rule.state_dict()


def test_a_rule_that_did_not_choose_learns_nothing() -> None:
    inner = rd.Scheduled(rd.selector("rho_ema"), start=5)
    rule = rd.Always(inner, [11])
    evidence = _evidence(irreducible_loss=torch.zeros(6))
    before = rule.state_dict()
    chosen = rule.select(evidence, 3, generator=torch.Generator())
    rule.observe(evidence, chosen)
    assert rule.state_dict() == before
    assert 1 in chosen.index.tolist()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: rd.Always(rd.selector("infobatch"), [1]),
            "InfoBatch does not decide by candidate",
        ),
        (lambda: rd.Always(rd.selector("grad_norm_is", tau_gate=True), [1]), "learns from rows"),
        (lambda: rd.Always(rd.selector("rho"), torch.ones(1)), "ids are int64"),
        (lambda: rd.Always(rd.selector("rho"), torch.ones(0, dtype=torch.int64)), "ids are int64"),
        (lambda: rd.Always(rd.selector("rho"), [1], most=0.0), "most"),
    ],
)
def test_what_cannot_be(make: Any, message: str) -> None:
    with pytest.raises(rd.ConfigurationError, match=message):
        make()


def test_the_trusted_rows_of_a_plan_are_in_every_update() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(432, 3, generator=g)
    data = rd.WithIds(TensorDataset(x, (x[:, 0] > 0).long()))
    store = rd.IrreducibleLossStore.from_tensor(torch.rand(432, generator=g))
    trusted = torch.arange(400, 432)
    plan = rd.Plan.toward(store, range(400), trusted=trusted, keep=0.5, share=1 / 16)
    loader = DataLoader(data, 64, sampler=plan.sampler(data, generator=g), drop_last=True)
    model = torch.nn.Linear(3, 2)
    rule = rd.Always(rd.selector("rho"), trusted)
    batches = rd.SelectingLoader(loader, model, rule, keep=16, store=store)
    store_of_all = 0
    for chosen in batches:
        here = int(torch.isin(chosen.ids, trusted).sum())
        assert here >= 2
        assert chosen.ids.numel() == 16
        store_of_all += 1
    assert store_of_all == 3
