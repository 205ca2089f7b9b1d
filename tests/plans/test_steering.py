"""Plans steered by a trusted set: what is kept of the pool, and how often both come."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import reducible as rd
from reducible.plans.steering import first_copies, lowest

LOSS = torch.tensor([2.0, 0.3, 9.0, 0.1, 0.3, 5.0])


def store_of(values: Tensor = LOSS, **settings: Any) -> rd.IrreducibleLossStore:
    return rd.IrreducibleLossStore.from_tensor(values, **settings)


def toward(**settings: Any) -> rd.Plan:
    return rd.Plan.toward(store_of(), range(6), **settings)


# -- by hand --------------------------------------------------------------------------------------


def test_the_lowest_losses_are_kept_and_the_trusted_set_has_its_share() -> None:
    plan = toward(trusted=[11, 10], keep=0.5, share=0.4)
    assert plan.ids.tolist() == [1, 3, 4, 10, 11]
    # Five draws: 0.6 of them for three of the pool, 0.4 for two trusted.
    assert plan.weight.tolist() == pytest.approx([1.0, 1.0, 1.0, 1.0, 1.0])
    plan = toward(trusted=[11, 10], keep=0.5)  # a quarter
    assert plan.weight.tolist() == pytest.approx([1.25, 1.25, 1.25, 0.625, 0.625])
    assert plan.dropped.tolist() == [2, 5, 0]  # the farthest first
    assert plan.report["threshold"] == pytest.approx(0.3)
    assert (plan.report["examples"], plan.report["kept"], plan.report["trusted"]) == (6, 3, 2)


def test_without_a_trusted_set_to_train_on_it_is_a_filter() -> None:
    plan = toward(keep=1 / 3)
    assert plan.ids.tolist() == [1, 3]  # of equal losses the lower id
    assert plan.weight.tolist() == [1.0, 1.0]
    assert plan.report["share"] == 0.0


def test_nothing_of_the_pool_is_the_trusted_set_alone() -> None:
    for plan in (toward(trusted=[7, 9], keep=0.0), toward(trusted=[7, 9], share=1.0)):
        assert plan.ids.tolist() == [7, 9]
        assert plan.weight.tolist() == [1.0, 1.0]
    assert toward(trusted=[7, 9], keep=0.0).report["threshold"] is None
    plan = toward(trusted=[7, 9], keep=0.5, share=0.0)
    assert plan.ids.tolist() == [1, 3, 4]


def test_the_difference_to_a_model_of_the_pool() -> None:
    pool = torch.tensor([4.0, 0.1, 9.5, 0.0, 1.3, 1.0])  # differences −2, .2, −.5, .1, −1, 4
    plan = toward(against=store_of(pool), keep=0.5)
    assert plan.ids.tolist() == [0, 2, 4]
    assert plan.dropped.tolist() == [5, 1, 3]
    assert plan.report["threshold"] == pytest.approx(-0.5)


def test_of_each_group_its_share() -> None:
    plan = toward(by=[0, 0, 1, 0, 1, 1], keep=1 / 3)
    assert plan.ids.tolist() == [3, 4]
    assert plan.report["by"] == [
        {"group": 0, "examples": 3, "kept": 1},
        {"group": 1, "examples": 3, "kept": 1},
    ]
    assert toward(by=[0, 1, 2, 2, 2, 2], keep=0.1).ids.tolist() == [0, 1, 3]  # one at least


def test_of_copies_the_one_with_the_lowest_loss() -> None:
    plan = toward(copies=[7, 7, 8, 9, 9, 5], keep=1.0)
    assert plan.ids.tolist() == [1, 2, 3, 5]
    assert plan.report["copies"] == 2


def test_what_the_trusted_model_is_sure_of_is_shown_less() -> None:
    plan = toward(keep=0.5, exponent=1.0, trusted=[8], share=0.25)
    raw = [1.02 - p for p in torch.tensor([0.3, 0.1, 0.3]).neg().exp().tolist()]
    expected = [4 * 0.75 * r / sum(raw) for r in raw]
    assert plan.weight.tolist() == pytest.approx([*expected, 1.0], rel=1e-6)


def test_the_trusted_set_is_shown_no_more_often_than_it_may() -> None:
    plan = toward(trusted=[8, 9], keep=0.5, share=0.5, most_shown=10, draws=100)
    assert plan.report["share"] == pytest.approx(0.2)  # 2 · 10 of 100 draws
    assert plan.report["share_asked"] == 0.5
    assert plan.report["trusted_shown"] == pytest.approx(10.0)
    few = toward(trusted=[8, 9], keep=0.5, share=0.5, most_shown=90, draws=100)
    assert few.report["share"] == 0.5


def test_order_of_ids_does_not_matter() -> None:
    mixed = torch.tensor([4, 0, 5, 2, 1, 3])
    groups, copies = torch.tensor([0, 0, 1, 0, 1, 1]), torch.tensor([7, 7, 8, 9, 9, 5])
    both = [
        rd.Plan.toward(store_of(), rows, by=groups[rows], copies=copies[rows], keep=0.5)
        for rows in (torch.arange(6), mixed)
    ]
    assert torch.equal(both[0].ids, both[1].ids)
    assert torch.equal(both[0].dropped, both[1].dropped)


# -- against the plainest code --------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 2), st.integers(0, 4)), min_size=1, max_size=30
    ),
    st.floats(0.0, 1.0),
)
def test_kept_is_what_sorting_each_group_keeps(
    rows: list[tuple[int, int, int]], keep: float
) -> None:
    score, by, copies = torch.tensor(rows).T
    single = first_copies(score.double(), copies)
    got = lowest(score.double(), keep, among=single, by=by)
    wanted: set[int] = set()
    first = {
        min((i for i in range(len(rows)) if rows[i][2] == c), key=lambda i: (rows[i][0], i))
        for c in {row[2] for row in rows}
    }
    for group in {row[1] for row in rows}:
        own = [i for i in range(len(rows)) if rows[i][1] == group]
        count = max(1, round(keep * len(own))) if keep > 0 else 0
        wanted |= set(sorted((i for i in own if i in first), key=lambda i: (rows[i][0], i))[:count])
    assert set(got.nonzero().flatten().tolist()) == wanted


# -- in a loader ----------------------------------------------------------------------------------


def test_every_batch_has_its_share_of_the_trusted_set() -> None:
    g = torch.Generator().manual_seed(0)
    store = store_of(torch.rand(2000, generator=g))
    plan = rd.Plan.toward(store, range(2000), trusted=range(2000, 2050), keep=0.2)
    data = rd.WithIds(TensorDataset(torch.arange(2050)))
    seen = torch.zeros(2050)
    loader = DataLoader(data, 32, sampler=plan.sampler(data, generator=g), drop_last=True)
    for ids, _ in loader:
        assert 5 <= int((ids >= 2000).sum()) <= 11  # 8 in the mean
        assert ids.unique().numel() == 32
        seen[ids] += 1
    assert int(seen[2000:].max()) <= 3
    assert not bool(seen[:2000][~torch.isin(torch.arange(2000), plan.ids)].any())


def test_a_plan_that_steers_survives_its_file(tmp_path: Path) -> None:
    plan = toward(trusted=[8], keep=0.5, by=[0, 0, 1, 0, 1, 1])
    plan.save(tmp_path / "plan.safetensors")
    again = rd.Plan.load(tmp_path / "plan.safetensors")
    assert torch.equal(again.ids, plan.ids)
    assert torch.equal(again.weight, plan.weight)
    assert again.report == json.loads(json.dumps(plan.report))
    more = again.including(torch.tensor([20, 21]))
    assert more.ids.tolist()[-2:] == [20, 21]
    assert more.report["included"] == 2


# -- what cannot be ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep": 1.5}, "keep"),
        ({"share": -0.1, "trusted": [9]}, "share"),
        ({"exponent": -1.0}, "exponent"),
        ({"share": 0.5}, "for no trusted examples"),
        ({"keep": 0.0}, "nothing to train on"),
        ({"most_shown": 4, "trusted": [9]}, "pass draws="),
        ({"most_shown": 0, "trusted": [9], "draws": 10}, "most_shown"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(rd.ConfigurationError, match=message):
        toward(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trusted": [3, 9, 4]}, r"2 ids are trusted and in the pool too: 3, 4.*ids of its own"),
        ({"trusted": [9, 9]}, "9"),
        ({"by": [0, 1]}, "by needs a whole number for each of the 6 ids"),
        ({"copies": [0.5] * 6}, "copies needs a whole number"),
    ],
)
def test_bad_examples(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(rd.DataError, match=message):
        toward(**settings)


def test_losses_that_are_no_cross_entropies_weigh_nothing() -> None:
    store = store_of(LOSS - 1)
    assert rd.Plan.toward(store, range(6), keep=0.5).ids.tolist() == [1, 3, 4]
    with pytest.raises(rd.DataError, match="Pass exponent=0"):
        rd.Plan.toward(store, range(6), keep=0.5, exponent=0.5)


def test_stores_that_do_not_fit() -> None:
    with pytest.raises(rd.ConfigurationError, match="not groups"):
        rd.Plan.toward(store_of(torch.rand(6, 2)), range(6))
    with pytest.raises(rd.StoreError, match="without irreducible loss"):
        rd.Plan.toward(store_of(), range(7))
    with pytest.raises(rd.StoreError, match="without irreducible loss"):
        toward(against=store_of(torch.rand(5)))


def test_it_has_no_noise_floor() -> None:
    with pytest.raises(rd.ConfigurationError, match="steered by a trusted set"):
        _ = toward().noise_floor
