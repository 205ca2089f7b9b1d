"""InfoBatch: what is dropped, what the kept ones weigh, and that the sum stays unbiased."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import reducible as rd


def _evidence(loss: Any, step: int = 0, total: int = 100) -> rd.Evidence:
    values = torch.as_tensor(loss, dtype=torch.float64)
    return rd.Evidence(
        ids=torch.arange(len(values)),
        loss=values,
        context={"step": torch.tensor(step), "total_steps": torch.tensor(total)},
    )


def _select(rule: rd.Selector, evidence: rd.Evidence, seed: int = 0) -> rd.Selection:
    k = evidence.ids.numel()
    return rule.select(evidence, k, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("share", "gone"), [(0.5, 10), (0.25, 5), (0.2, 4), (0.9, 18), (0.0, 0)])
def test_the_share_removed_is_the_share_of_the_ids_below_the_mean(share: float, gone: int) -> None:
    loss = np.concatenate([np.linspace(0.1, 0.2, 20), np.linspace(5.0, 6.0, 10)])  # mean 1.93
    rule = rd.selector("infobatch", prune_below_mean=share)
    dropped = np.zeros(30)
    for seed in range(50):
        chosen = _select(rule, _evidence(loss), seed)
        index = chosen.index.tolist()
        assert len(index) == len(set(index)) == 30 - gone
        assert set(range(20, 30)) <= set(index)
        weight = [1.0 / (1.0 - share) if i < 20 else 1.0 for i in index]
        assert chosen.weight.tolist() == pytest.approx(weight)
        dropped[sorted(set(range(30)) - set(index))] += 1
    assert bool((dropped[:20] > 0).all()) is (gone > 0)  # at random, afresh each epoch
    assert not dropped[20:].any()


def test_weights_by_hand() -> None:
    """Losses (1, 1, 4): mean 2; one of the first two goes, the other counts twice."""
    chosen = _select(rd.selector("infobatch"), _evidence([1.0, 1.0, 4.0]))
    weights = dict(zip(chosen.index.tolist(), chosen.weight.tolist(), strict=True))
    assert weights.pop(2) == 1.0
    assert list(weights.values()) == [2.0]


@pytest.mark.parametrize(("size", "share"), [(12, 0.5), (13, 0.3), (5, 0.9), (2, 0.95)])
def test_the_weighted_sum_is_unbiased(size: int, share: float) -> None:
    """Also where share · count is not whole, and where all below the mean may go."""
    loss = np.random.default_rng(0).exponential(size=size)
    rule, evidence = rd.selector("infobatch", prune_below_mean=share), _evidence(loss)
    generator, draws = torch.Generator().manual_seed(1), 10_000
    sums = []
    for _ in range(draws):
        chosen = rule.select(evidence, size, generator=generator)
        sums.append(float((chosen.weight * evidence.require("loss")[chosen.index]).sum()))
    error = np.std(sums) / math.sqrt(draws)
    assert error > 0
    assert abs(np.mean(sums) - loss.sum()) <= 4 * error


@pytest.mark.parametrize("share", [0.5, 0.3, 0.9])
@pytest.mark.parametrize("k", [1, 5, 12, 17, 20])
def test_the_weighted_sum_over_k_is_an_unbiased_mean_for_any_k(k: int, share: float) -> None:
    """Whether more ids stay than are asked for, fewer, or now these and now those."""
    loss = np.random.default_rng(0).exponential(size=20)
    rule, evidence = rd.selector("infobatch", prune_below_mean=share), _evidence(loss)
    generator, draws = torch.Generator().manual_seed(1), 1_500
    means = []
    for _ in range(draws):
        chosen = rule.select(evidence, k, generator=generator)
        means.append(float((chosen.weight * evidence.require("loss")[chosen.index]).sum()) / k)
    error = np.std(means) / math.sqrt(draws)
    assert error > 0
    assert abs(np.mean(means) - loss.mean()) <= 4 * error


def test_the_mean_of_a_tenth_of_many_losses() -> None:
    """20,000 losses, of which 2,000 are asked for: each estimate is within a few per cent."""
    loss = np.random.default_rng(3).exponential(0.3, size=20_000)
    evidence = _evidence(loss)
    chosen = rd.selector("infobatch").select(evidence, 2_000, generator=torch.Generator())
    assert chosen.index.numel() == 2_000
    mean = rd.weighted_mean(evidence.require("loss")[chosen.index], chosen.weight)
    assert float(mean) == pytest.approx(loss.mean(), rel=0.1)  # three standard errors are 0.08


def test_ids_never_seen_are_kept_and_do_not_move_the_mean() -> None:
    loss = [math.nan] * 5 + [1.0] * 8 + [3.0] * 8
    for seed in range(20):
        chosen = _select(rd.selector("infobatch"), _evidence(loss), seed)
        index = chosen.index.tolist()
        assert set(range(5)) <= set(index)
        assert len(index) == 5 + 4 + 8
        weight = [2.0 if 5 <= i < 13 else 1.0 for i in index]
        assert chosen.weight.tolist() == weight


def test_nothing_seen_yet() -> None:
    chosen = _select(rd.selector("infobatch"), _evidence([math.nan] * 6))
    assert sorted(chosen.index.tolist()) == list(range(6))
    assert chosen.weight.tolist() == [1.0] * 6


@pytest.mark.parametrize(
    ("anneal", "step", "kept"),
    [
        (0.125, 0, 15),
        (0.125, 86, 15),
        (0.125, 87, 15),
        (0.125, 88, 20),
        (0.25, 74, 15),
        (0.25, 75, 20),
        (0.0, 99, 15),
        (1.0, 0, 20),
    ],
)
def test_everything_is_kept_at_the_end(anneal: float, step: int, kept: int) -> None:
    evidence = _evidence([1.0] * 10 + [2.0] * 10, step)
    chosen = _select(rd.selector("infobatch", anneal=anneal), evidence)
    assert len(chosen.index) == kept
    if kept == 20:
        assert chosen.weight.tolist() == [1.0] * 20


@pytest.mark.parametrize(("anneal", "total", "border"), [(0.45, 100, 55), (0.07, 100, 93)])
def test_the_last_part_begins_where_it_says(anneal: float, total: int, border: int) -> None:
    """(1 − 0.45) · 100 is a little above 55 in floating point."""
    rule = rd.selector("infobatch", anneal=anneal)
    sizes = [
        len(_select(rule, _evidence([1.0, 1.0, 4.0], step, total)).index)
        for step in (border - 1, border)
    ]
    assert sizes == [2, 3]


def test_a_pruned_epoch_ends_where_the_last_part_begins() -> None:
    rule = rd.selector("infobatch")
    for losses, step, ends in (
        ([1.0] * 10 + [2.0] * 10, 0, 88),
        ([1.0] * 10 + [2.0] * 10, 87, 88),
        ([1.0] * 10 + [2.0] * 10, 88, None),  # the last part
        ([1.0] * 20, 0, None),  # nothing is dropped
        ([math.nan] * 20, 0, None),
    ):
        evidence = _evidence(losses, step)
        assert rule.ends_at(evidence, _select(rule, evidence)) == ends


def test_an_epoch_that_happens_to_keep_all_but_weighs_them_is_a_pruned_one() -> None:
    """Of one id below the mean, half is dropped: it goes, or stays and counts twice."""
    rule, evidence, kept = rd.selector("infobatch"), _evidence([1.0, 2.0, 2.0]), set()
    for seed in range(20):
        chosen = _select(rule, evidence, seed)
        kept.add(len(chosen.index))
        assert rule.ends_at(evidence, chosen) == 88
    assert kept == {2, 3}


@pytest.mark.parametrize("loss", [[0.5] * 8, [0.0] * 8, [1e30] * 8, [0.7]])
def test_equal_losses_are_all_kept(loss: list[float]) -> None:
    chosen = _select(rd.selector("infobatch"), _evidence(loss))
    assert sorted(chosen.index.tolist()) == list(range(len(loss)))
    assert chosen.weight.tolist() == [1.0] * len(loss)


def test_where_more_stay_than_are_asked_for_chance_decides() -> None:
    rule, evidence = rd.selector("infobatch"), _evidence([1.0] * 10 + [2.0] * 10)
    counts, generator = np.zeros(20), torch.Generator().manual_seed(0)
    for _ in range(2000):
        chosen = rule.select(evidence, 6, generator=generator)
        assert chosen.index.unique().numel() == 6
        # 15 of 20 stay, so that a row counts 15/20 of what it does if all are asked for
        assert chosen.weight.tolist() == [1.5 if i < 10 else 0.75 for i in chosen.index.tolist()]
        counts[chosen.index] += 1
    # 15 stay, of which each is drawn with 6/15; those below the mean stay in half of the epochs
    share = np.array([0.2] * 10 + [0.4] * 10)
    assert bool((abs(counts - 2000 * share) <= 4 * np.sqrt(2000 * share * (1 - share))).all())


def test_what_it_refuses() -> None:
    with pytest.raises(rd.SelectionError, match="remembered loss is infinite for ids 1"):
        _select(rd.selector("infobatch"), _evidence([1.0, math.inf]))
    with pytest.raises(rd.SelectionError, match="cannot choose 3 of 2"):
        rd.selector("infobatch").select(_evidence([1.0, 2.0]), 3, generator=torch.Generator())


def test_it_decides_by_epoch() -> None:
    assert rd.selector("infobatch").horizon == "epoch"
    assert rd.selector("infobatch").takes_all
    assert rd.selector("infobatch").needs == {"loss", "step", "total_steps"}
    defaults = {"prune_below_mean": 0.5, "anneal": 0.125}
    assert rd.SELECTORS["infobatch"].hyperparameters == defaults


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_have_the_losses_dtype(dtype: torch.dtype) -> None:
    evidence = rd.Evidence(
        ids=torch.arange(3),
        loss=torch.tensor([1.0, 1.0, 4.0], dtype=dtype),
        context={"step": torch.tensor(0), "total_steps": torch.tensor(9)},
    )
    assert _select(rd.selector("infobatch"), evidence).weight.dtype == dtype


def test_the_mean_is_taken_in_double() -> None:
    """In single precision the mean of 1 and the next number is 1, and nothing lies below it."""
    loss = torch.tensor([1.0] * 10 + [1.0 + 2.0**-23] * 10)
    context = {"step": torch.tensor(0), "total_steps": torch.tensor(9)}
    evidence = rd.Evidence(ids=torch.arange(20), loss=loss, context=context)
    assert len(_select(rd.selector("infobatch"), evidence).index) == 15
