"""Irreducible losses per group: a model for each, what the store says, how many groups."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Subset

import reducible as rd
from fitting_toys import QUIET, sgd_at
from group_toys import DATA, HOLD, HOLDOUT, TRAIN, D, G, N, Unlabelled, small_net
from reducible.stores import fingerprint


def _linear() -> nn.Module:
    return nn.Linear(D, G)


def _zeros() -> nn.Module:
    model = _linear()
    for p in model.parameters():
        nn.init.zeros_(p)
    return model


def _literal(
    group_of: Tensor, group: int, gamma: float, epochs: int, lr: float
) -> tuple[Tensor, list[float], list[float]]:
    """Full-batch descent on Σ (1 + γ[g_i = c])·L_i / B; losses at the lowest weighted one on D."""
    w, b = torch.zeros(G, D, requires_grad=True), torch.zeros(G, requires_grad=True)
    best, lowest = torch.empty(0), float("inf")
    weighted, plain = [], []
    for _ in range(epochs):
        loss = torch.zeros(())
        for i in range(HOLDOUT):
            nll = -(DATA.inputs[i] @ w.T + b).log_softmax(0)[DATA.targets[i]]
            loss = loss + (1 + gamma * (int(group_of[i]) == group)) * nll / HOLDOUT
        grad_w, grad_b = torch.autograd.grad(loss, (w, b))
        with torch.no_grad():
            w -= lr * grad_w
            b -= lr * grad_b
            x, y = TRAIN.inputs, TRAIN.targets
            losses = F.cross_entropy(x @ w.T + b, y, reduction="none")
        share = 1 + gamma * (group_of[HOLDOUT:N] == group)
        weighted.append(float((losses * share).sum() / share.sum()))
        plain.append(float(losses.mean()))
        if weighted[-1] < lowest:
            lowest, best = weighted[-1], losses
    return best, weighted, plain


@pytest.mark.parametrize("by_id", [False, True], ids=["classes", "groups by id"])
@pytest.mark.parametrize("gamma", [0.0, 4.0])
def test_a_model_per_group_against_a_literal_loop(by_id: bool, gamma: float) -> None:
    group_of = DATA.targets
    if by_id:
        group_of = torch.randint(2, (N,), generator=torch.Generator().manual_seed(2))
    store = rd.fit_group_irreducible_loss(
        _zeros, HOLD, TRAIN, groups=group_of if by_id else None, gamma=gamma,
        epochs=8, batch_size=HOLDOUT, make_optimizer=sgd_at(0.9), **QUIET,
    )  # fmt: skip
    groups = 2 if by_id else G
    assert store.groups == groups
    assert store.values.shape == (N - HOLDOUT, groups)
    assert store.ids.tolist() == list(range(HOLDOUT, N))
    for group in range(groups):
        expected, weighted, _ = _literal(group_of, group, gamma, epochs=8, lr=0.9)
        torch.testing.assert_close(store.values[:, group], expected, rtol=1e-4, atol=1e-5)
        assert store.header["mean_losses"][group] == pytest.approx(weighted, rel=1e-4)
        assert store.header["kept_epoch"][group] == 1 + weighted.index(min(weighted))
    differ = not torch.allclose(store.values[:, 0], store.values[:, 1])
    assert differ == (gamma > 0)  # without extra weight all models are one


def test_the_checkpoint_is_that_of_the_lowest_weighted_loss() -> None:
    """Of this problem weighted and plain loss have their lowest at different epochs."""
    options: dict[str, Any] = {"epochs": 30, "batch_size": HOLDOUT, "make_optimizer": sgd_at(1.5)}
    store = rd.fit_group_irreducible_loss(_zeros, HOLD, TRAIN, gamma=9.0, **options, **QUIET)
    told_apart = 0
    for group in range(G):
        expected, weighted, plain = _literal(DATA.targets, group, 9.0, epochs=30, lr=1.5)
        by_weighted, by_plain = (1 + c.index(min(c)) for c in (weighted, plain))
        assert store.header["kept_epoch"][group] == by_weighted
        torch.testing.assert_close(store.values[:, group], expected, rtol=1e-3, atol=1e-4)
        told_apart += by_weighted != by_plain
    assert told_apart > 0


@pytest.mark.parametrize("shared", [False, True])
def test_a_group_is_easier_for_its_own_column(shared: bool) -> None:
    store = rd.fit_group_irreducible_loss(
        _linear, HOLD, TRAIN, gamma=9.0, shared=shared, epochs=40, batch_size=8,
        make_optimizer=sgd_at(0.05), **QUIET,
    )  # fmt: skip
    for group in range(G):
        mean = store.values[TRAIN.targets == group].mean(0)  # [G], by column
        assert int(mean.argmin()) == group


# -- what the store says --------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
def test_the_header_and_the_fingerprint(shared: bool) -> None:
    ledger = rd.Ledger()
    store = rd.fit_group_irreducible_loss(
        small_net, HOLD, TRAIN, gamma=4.0, shared=shared, rank=3, epochs=2, batch_size=8, seed=3,
        ledger=ledger, **QUIET,
    )  # fmt: skip
    header = store.header
    assert json.loads(json.dumps(header)) == header
    expected = {
        "method": "shared network with adapters" if shared else "a model per group",
        "model": "GroupAdapters" if shared else "Sequential",
        "groups": G,
        "gamma": 4.0,
        "holdout_examples": HOLDOUT,
        "checkpoint": "lowest weighted mean loss on the scored set",
        "mode": "eval",
        "updates": 2 * 3 * (1 if shared else G),
        "seed": 3,
    } | ({"rank": 3} if shared else {})
    assert {k: header[k] for k in expected} == expected
    assert len(header["kept_epoch"]) == (1 if shared else G)
    assert header["seconds"] == ledger.seconds["irreducible_loss"] > 0
    assert header["flops"] == ledger.counts.flops_irreducible_loss > 0
    assert store.fingerprint == fingerprint(TRAIN.ids, TRAIN.targets)
    store.check_data(TRAIN.ids, TRAIN.targets)


@pytest.mark.parametrize("shared", [False, True])
def test_same_seed_same_losses_and_streams_left_alone(
    shared: bool, global_streams: Callable[[], Any]
) -> None:
    values = []
    for seed, stream in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(stream)
        streams = global_streams()
        store = rd.fit_group_irreducible_loss(
            small_net, HOLD, TRAIN, shared=shared, epochs=2, seed=seed, **QUIET
        )
        assert global_streams() == streams
        values.append(store.values)
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])


# -- how many groups ------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
def test_groups_may_be_more_than_there_are(shared: bool) -> None:
    store = rd.fit_group_irreducible_loss(
        small_net, HOLD, TRAIN, num_groups=5, shared=shared, epochs=1, **QUIET
    )
    assert store.groups == 5


def test_groups_are_counted_in_both_sets() -> None:
    groups = torch.zeros(N, dtype=torch.int64)
    groups[N - 1] = 3  # in the train set alone
    store = rd.fit_group_irreducible_loss(small_net, HOLD, TRAIN, groups=groups, epochs=1, **QUIET)
    assert store.groups == 4


def test_classes_that_cannot_be_counted_are_asked_for() -> None:
    data = rd.WithIds(Unlabelled())
    holdout, train = Subset(data, range(HOLDOUT)), Subset(data, range(HOLDOUT, N))
    with pytest.raises(rd.ConfigurationError, match=r"have no \.targets .* pass num_groups="):
        rd.fit_group_irreducible_loss(small_net, holdout, train, epochs=1, **QUIET)
    store = rd.fit_group_irreducible_loss(
        small_net, holdout, train, num_groups=G, epochs=1, **QUIET
    )
    assert store.groups == G


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": -1.0}, r"gamma must be a number in \[0.0"),
        ({"gamma": float("inf")}, "gamma must be a number"),
        ({"rank": 0, "shared": True}, "rank must be a whole number in"),
        ({"num_groups": 0}, "num_groups must be a whole number in"),
        ({"num_groups": 2}, "num_groups=2, but there is a group 2"),
        ({"num_groups": 1, "groups": torch.arange(N) % 2}, "num_groups=1, but there is a group 1"),
        ({"start_from": {}}, "start_from is of one model"),
        ({"save_model": "x"}, "save_model is of one model"),
        ({"gama": 3.0}, r"no such options of fitting: \['gama'\]"),
    ],
)
def test_settings_that_cannot_work(options: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"epochs": 1} | QUIET | options
    with pytest.raises(rd.ConfigurationError, match=message):
        rd.fit_group_irreducible_loss(small_net, HOLD, TRAIN, **given)


def test_sets_that_cannot_work() -> None:
    with pytest.raises(rd.DataError, match="share 1 examples of one data set, ids 24"):
        rd.fit_group_irreducible_loss(
            small_net, DATA.subset(torch.arange(HOLDOUT + 1)), TRAIN, **QUIET
        )
    empty = Subset(rd.WithIds(Unlabelled()), [])
    with pytest.raises(rd.DataError, match="the holdout set is empty"):
        rd.fit_group_irreducible_loss(small_net, empty, TRAIN, **QUIET)
