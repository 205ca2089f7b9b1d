"""InfoBatch by epoch: what it drops, how it weighs the rest, and the losses it is told."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import reducible as rd
from epoch_toys import (
    N_B,
    PROXY,
    C,
    K,
    N,
    batches_of,
    batches_without_model,
    easy_loss,
    epoch_of,
    flat_ids,
    loader_of,
    rows_of,
    small_net,
)
from reducible.lab.data import TensorSet


def test_infobatch_weighs_what_it_keeps_of_the_easy_ones() -> None:
    """keep=1: a first epoch sees all; then half of those below the mean go, the others count 2."""
    x = torch.randn(128, 4)
    loader = TensorSet(x, torch.arange(128) % C).loader(16)
    batches = batches_of("infobatch", loader, keep=1.0, total_steps=1000)
    first = epoch_of(batches, easy_loss)
    assert sorted(flat_ids(first)) == list(range(128))
    assert all(c.weights.tolist() == [1.0] * 16 for c in first)
    for _ in range(3):
        later = epoch_of(batches, easy_loss)
        for c in later:
            expected = [1.0 if i % 2 else 2.0 for i in c.ids.tolist()]
            assert c.weights.tolist() == expected  # handed out with their rows
        # 64 odd ones and 32 of 64 even ones: 96, six batches
        ids = flat_ids(later)
        assert [sum(i % 2 == parity for i in ids) for parity in (0, 1)] == [32, 64]


def test_infobatch_trains_on_all_at_the_end_of_the_run() -> None:
    x = torch.randn(64, 4)
    loader = TensorSet(x, torch.arange(64) % C).loader(16)
    batches = batches_of("infobatch", loader, keep=1.0, total_steps=8)  # the last one of eight
    sizes = []
    while batches.step < 8 + 3:
        chosen = epoch_of(batches, easy_loss)
        sizes.append((batches.step, len(chosen)))
    # 4 updates of all, 3 of three quarters, then 7 of 8 planned are done: everything
    assert sizes == [(4, 4), (7, 3), (11, 4)]


def _recorded(
    batches: Any, until: int, loss_of: Callable[[Tensor], Tensor]
) -> list[tuple[int, list[Any]]]:
    """The length announced of every epoch, and its updates, up to the ``until``-th in all."""
    epochs: list[tuple[int, list[Any]]] = []
    while batches.step < until:
        updates: list[Any] = []
        for c in batches:
            batches.remember(c.ids, loss_of(c.ids))
            updates.append(c)
            if batches.step == until:
                break
        epochs.append((len(batches), updates))
    return epochs


@settings(max_examples=100, deadline=None)
@given(
    n=st.integers(8, 60),
    n_b=st.integers(1, 12),
    total=st.integers(1, 60),
    anneal=st.sampled_from([0.0, 0.05, 0.125, 0.3, 0.45, 1.0]),
    share=st.sampled_from([0.2, 0.5, 0.7]),
    seed=st.integers(0, 5),
)
def test_infobatchs_last_part_comes_from_epochs_of_all_data(
    n: int, n_b: int, total: int, anneal: float, share: float, seed: int
) -> None:
    """Whatever the sizes; and an epoch has as many updates as its length says."""
    assume(n - math.ceil(share * (n - 1)) >= n_b)  # or a pruned epoch might hold no update
    losses = torch.rand(7 * n, generator=torch.Generator().manual_seed(seed))
    rule = rd.selector("infobatch", prune_below_mean=share, anneal=anneal)
    batches = rd.SelectingLoader(
        rows_of(n, n_b), nn.Identity(), rule, keep=1.0, total_steps=total, seed=seed
    )
    step = 0
    for announced, updates in _recorded(batches, total, lambda ids: losses[ids]):
        step += len(updates)
        ids, weights = flat_ids(updates), [w for c in updates for w in c.weights.tolist()]
        assert len(set(ids)) == len(ids)
        assert len(updates) == announced or step == total
        if step - 1 >= (1.0 - anneal) * total - 1e-6:  # its last update lies in the last part
            assert set(weights) == {1.0}
            assert announced == n // n_b


def test_infobatchs_last_part_of_640_rows() -> None:
    """A pruned epoch of 13 updates would run from the 46th on; the last seven of 56 see all."""
    losses = torch.rand(640, generator=torch.Generator().manual_seed(0)) ** 3
    x = torch.zeros(640, 1)
    loader = TensorSet(x, torch.zeros(640).long()).loader(32)
    batches = batches_without_model("infobatch", loader, total_steps=56)
    epochs = _recorded(batches, 56, lambda ids: losses[ids])
    last = [c for _, updates in epochs for c in updates][-7:]
    assert all(c.weights.tolist() == [1.0] * 32 for c in last)
    assert len(set(flat_ids(last))) == 7 * 32
    assert [len(updates) for _, updates in epochs][:2] == [20, 13]
    assert [n for n, _ in epochs][-1] == 20
    assert sum(len(updates) for _, updates in epochs[:-1]) == 49  # cut there
    assert any(2.0 in c.weights.tolist() for c in epochs[-2][1])


@pytest.mark.parametrize(("n", "n_b"), [(48, 8), (50, 8), (50, 7), (53, 20)])
def test_the_sum_over_an_epoch_of_infobatch_is_unbiased(n: int, n_b: int) -> None:
    """Also where a last, short batch is dropped: rows are dropped at random.

    n/3 rows above the mean, the others below; half of them go. The mean of an update is the mean
    loss times N/M, and there are M/N as many of them.
    """
    below = n // 3 * 2 // 2 * 2  # an even number, so that M is the same in each epoch
    rank = torch.arange(n)
    losses = torch.where(rank < below, 0.1 + rank / n, 3.0 + rank / n).double()
    kept = n - below // 2
    loader = TensorSet(torch.zeros(n, 1), torch.zeros(n).long()).loader(n_b)
    batches = batches_without_model("infobatch", loader, total_steps=10**6)
    epoch_of(batches, lambda ids: losses[ids])
    batches.remember(rank, losses)  # those of the first epoch's last batch were not seen
    means, plain = [], []
    for _ in range(400):
        updates = list(batches)
        assert len(updates) == kept // n_b
        means.append(np.mean([float(rd.weighted_mean(losses[c.ids], c.weights)) for c in updates]))
        plain.append(np.mean([float(losses[c.ids].mean()) for c in updates]))
    expected = float(losses.mean()) * n / kept
    error = np.std(means) / math.sqrt(len(means))
    assert error < 0.05
    assert abs(np.mean(means) - expected) <= 4 * error + 1e-9
    assert abs(np.mean(plain) - expected) > 4 * error  # the weights are needed


@pytest.mark.parametrize("keep", [N_B - 1, 5, 0.25, 0.9])
def test_infobatch_with_a_share_of_the_rows_is_refused(keep: float) -> None:
    message = rf"keep={keep} of batches of 20, .*Pass keep=1\.0, and give the loader the batch size"
    with pytest.raises(rd.ConfigurationError, match=message):
        batches_of("infobatch", loader_of(), keep=keep)


@pytest.mark.parametrize("rule", ["rs2", "svp", "uniform"])
def test_other_rules_want_to_know_what_to_keep(rule: str) -> None:
    with pytest.raises(rd.ConfigurationError, match="keep is missing: pass the rows to train on"):
        rd.SelectingLoader(loader_of(), small_net(), rd.selector(rule), proxy=PROXY)


def test_an_epoch_too_small_for_an_update() -> None:
    data = TensorSet(torch.zeros(8, 1), torch.zeros(8).long())
    with pytest.raises(rd.ConfigurationError, match=r"train on 2 of 8 rows, .*no update of 5\."):
        batches_without_model("rs2", data.loader(20, drop_last=False), keep=5)
    batches = batches_without_model("infobatch", data.loader(7), total_steps=100)
    epoch_of(batches, lambda ids: (ids >= 2).float())
    batches.remember(torch.arange(8), torch.tensor([0.0] * 6 + [9.0] * 2))  # three of six go
    with pytest.raises(rd.SelectionError, match=r"leaves 5 of 8 rows .* no update of 7\."):
        next(iter(batches))


def test_infobatch_reads_the_loss_that_was_reported_last() -> None:
    x = torch.randn(64, 4)
    loader = TensorSet(x, torch.arange(64) % C).loader(16)
    batches = batches_of("infobatch", loader, keep=1.0, total_steps=1000)
    epoch_of(batches, easy_loss)
    everything = torch.arange(64)
    batches.remember(everything, 1 - easy_loss(everything))  # what was easy is hard now
    ids = flat_ids(epoch_of(batches, easy_loss))
    assert [sum(i % 2 == parity for i in ids) for parity in (0, 1)] == [32, 16]


def test_infobatch_without_any_loss_is_refused_in_the_second_epoch() -> None:
    batches = batches_of("infobatch")
    assert len(list(batches)) == N // K
    with pytest.raises(rd.SelectionError, match=r"After each forward call batches\.remember\(ch"):
        next(iter(batches))


def test_losses_that_are_reduced_or_of_other_ids() -> None:
    batches = batches_of("infobatch")
    chosen = next(iter(batches))
    with pytest.raises(rd.DataError, match=r"a loss of shape \(\) for 5 rows: it is already"):
        batches.remember(chosen.ids, torch.tensor(1.0))
    with pytest.raises(rd.DataError, match="ids 130, 131 are not of this data set"):
        batches.remember(torch.tensor([130, 131]), torch.ones(2))


@pytest.mark.parametrize("rule", ["rs2", "uniform", "rho"])
def test_rules_without_memory_do_not_mind_being_told(rule: str) -> None:
    store = rd.IrreducibleLossStore.from_tensor(torch.zeros(N)) if rule == "rho" else None
    batches = batches_of(rule, store=store)
    told = [c.ids.tolist() for c in epoch_of(batches)]
    assert told == [c.ids.tolist() for c in batches_of(rule, store=store)]
