"""Batches shared among ranks: each row once, as many for each, for every size."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DistributedSampler, SequentialSampler

import reducible as rd
from reducible.loading.ranks import RankBatches, candidate_loader


@given(rows=st.integers(1, 200), size=st.integers(1, 20), ranks=st.integers(1, 4))
def test_no_row_comes_to_two_ranks_and_each_has_as_many(rows: int, size: int, ranks: int) -> None:
    order = torch.randperm(rows).tolist()
    batches = BatchSampler(order, size, drop_last=True)
    shares = [list(RankBatches(batches, rank, ranks)) for rank in range(ranks)]
    assert {len(share) for share in shares} == {rows // size // ranks}
    assert all(len(share) == len(RankBatches(batches, 0, ranks)) for share in shares)
    seen = [i for share in shares for batch in share for i in batch]
    assert len(seen) == len(set(seen))
    in_turn = [batch for group in zip(*shares, strict=True) for batch in group]
    assert in_turn == list(batches)[: len(in_turn)]


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_walk_over_one_order_and_another_in_every_pass(ranks: int) -> None:
    loaders = [candidate_loader(range(60), 5, seed=7, rank=r, ranks=ranks) for r in range(ranks)]
    passes = [torch.cat([torch.cat(list(loader)) for loader in loaders]).tolist() for _ in range(2)]
    for order in passes:
        assert sorted(order) == list(range(60))
    assert passes[0] != passes[1]


def test_an_order_that_shuffles_by_epoch_is_told_of_it() -> None:
    order = DistributedSampler(range(12), num_replicas=1, rank=0, seed=3)  # pyright: ignore[reportArgumentType]
    batches = RankBatches(BatchSampler(order, 2, drop_last=True), 0, 2)
    first = list(batches)
    batches.set_epoch(1)
    assert list(batches) != first
    RankBatches(BatchSampler(SequentialSampler(range(4)), 2, False), 0, 2).set_epoch(1)


def test_bad_input() -> None:
    with pytest.raises(rd.ConfigurationError, match="a candidate batch has 40 rows for each of 2"):
        candidate_loader(range(60), 40, seed=0, rank=0, ranks=2)
    with pytest.raises(rd.ConfigurationError, match="rank"):
        RankBatches([[1]], 2, 2)
