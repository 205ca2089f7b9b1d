"""RS2: without replacement across epochs."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch

import reducible as rd


def _run(size: int, k: int, epochs: int, seed: int = 0) -> list[list[int]]:
    rule, evidence = rd.selector("rs2"), rd.Evidence(ids=torch.arange(50, 50 + size))
    generator, chosen = torch.Generator().manual_seed(seed), []
    for _ in range(epochs):
        selection = rule.select(evidence, k, generator=generator)
        assert selection.weight.tolist() == [1.0] * k
        rule.observe(evidence, selection)
        chosen.append(selection.index.tolist())
    return chosen


@pytest.mark.parametrize(
    ("size", "k"), [(12, 3), (12, 4), (10, 3), (10, 7), (7, 7), (5, 4), (1, 1), (9, 1)]
)
def test_nothing_twice_until_all_are_used(size: int, k: int) -> None:
    """The picks in a row fall into rounds: each epoch without repeats, each round a permutation.

    Where an epoch goes over the end of a round, its first picks finish the round and the rest
    begin the next one.
    """
    epochs = _run(size, k, 3 * size)
    used: set[int] = set()
    for index in epochs:
        assert len(set(index)) == k
        left = set(range(size)) - used
        finishing, beginning = index[: min(k, len(left))], index[min(k, len(left)) :]
        assert set(finishing) <= left
        used |= set(finishing)
        if len(used) == size:
            used = set(beginning)
    everything = Counter(i for index in epochs for i in index)
    assert max(everything.values()) - min(everything.values()) <= 1 + (size % k > 0)


def test_what_was_not_handed_out_is_not_used() -> None:
    """Of six planned of ten, four are handed out: two of the six come again in the round."""
    rule, evidence = rd.selector("rs2"), rd.Evidence(ids=torch.arange(10))
    generator, stream = torch.Generator().manual_seed(3), []
    for _ in range(10):
        planned = rule.select(evidence, 6, generator=generator)
        rule.observe(evidence, rd.Selection(planned.index[:4], planned.weight[:4]))
        stream += planned.index[:4].tolist()
    for start in range(0, 40, 10):
        assert sorted(stream[start : start + 10]) == list(range(10))


def test_where_k_divides_every_round_is_a_partition() -> None:
    epochs = _run(12, 4, 6)
    for start in (0, 3):
        assert sorted(i for index in epochs[start : start + 3] for i in index) == list(range(12))
    assert epochs[:3] != epochs[3:]


def test_every_id_as_often_in_the_first_epoch() -> None:
    counts = np.zeros(6)
    for seed in range(2000):
        counts[_run(6, 2, 1, seed)[0]] += 1
    error = math.sqrt(2000 * (1 / 3) * (2 / 3))
    assert bool((abs(counts - 2000 / 3) <= 4 * error).all())


def test_the_state_says_what_is_used() -> None:
    rule, evidence = rd.selector("rs2"), rd.Evidence(ids=torch.arange(5))
    assert rule.state_dict() == {"used": None}
    rule.observe(evidence, rd.Selection(torch.tensor([3, 1]), torch.ones(2)))
    assert rule.state_dict()["used"].tolist() == [False, True, False, True, False]
    rule.observe(evidence, rd.Selection(torch.tensor([0, 4]), torch.ones(2)))
    assert rule.state_dict()["used"].tolist() == [True, True, False, True, True]
    chosen = rule.select(evidence, 2, generator=torch.Generator())
    assert chosen.index[0].item() == 2  # what is left of the round comes first
    rule.observe(evidence, rd.Selection(torch.tensor([2, 4]), torch.ones(2)))
    assert rule.state_dict()["used"].tolist() == [False, False, False, False, True]


def test_another_pool_begins_anew() -> None:
    rule = rd.selector("rs2")
    rule.load_state_dict({"used": torch.tensor([True, False])})
    chosen = rule.select(rd.Evidence(ids=torch.arange(4)), 4, generator=torch.Generator())
    assert sorted(chosen.index.tolist()) == [0, 1, 2, 3]


def test_it_looks_at_nothing_and_decides_by_epoch() -> None:
    assert rd.selector("rs2").needs == frozenset()
    assert rd.selector("rs2").horizon == "epoch"
    assert rd.selector("rs2").keeps_order
    assert not rd.selector("rs2").takes_all


@pytest.mark.parametrize("k", [0, 5])
def test_k_out_of_range(k: int) -> None:
    with pytest.raises(rd.SelectionError, match=f"cannot choose {k} of 4"):
        rd.selector("rs2").select(rd.Evidence(ids=torch.arange(4)), k, generator=torch.Generator())
