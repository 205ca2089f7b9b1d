"""Rules that decide by epoch: what an epoch holds, in which order, and after a stop."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import reducible as rd
from epoch_toys import (
    KINDS,
    N_B,
    PROXY,
    RULES,
    SHARES,
    UPDATES,
    C,
    Examples,
    K,
    N,
    batches_of,
    batches_without_model,
    easy_loss,
    epoch_of,
    flat_ids,
    loader_of,
    rows_of,
    size_of,
    small_net,
)
from reducible.lab.data import TensorSet


def _updates(rule: str) -> int:
    """Of the first epoch."""
    return N // K if rule == "infobatch" else UPDATES


# -- what an epoch holds --------------------------------------------------------------------------


@pytest.mark.parametrize("rule", SHARES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_is_a_share_of_the_data_without_repeats(
    rule: str, kind: str, workers: int
) -> None:
    examples = Examples()
    batches = batches_of(rule, loader_of(kind, workers=workers if kind != "tensors" else 0))
    assert len(batches) == UPDATES
    for _ in range(2):
        chosen = epoch_of(batches)
        assert [c.ids.numel() for c in chosen] == [K] * UPDATES
        assert len(batches) == UPDATES
        assert len(set(flat_ids(chosen))) == K * UPDATES
        for c in chosen:
            x, y = c.batch
            assert torch.equal(x, examples.x[c.ids])
            assert y.tolist() == examples.targets[c.ids].tolist()
            assert c.weights.shape == (K,)
    assert batches.step == 2 * UPDATES
    assert batches.ledger.counts.examples_trained == 2 * UPDATES * K


@pytest.mark.parametrize("keep", [K, K / N_B])
@pytest.mark.parametrize("rule", SHARES)
def test_keep_is_rows_of_a_candidate_batch_or_a_share(rule: str, keep: float) -> None:
    assert len(epoch_of(batches_of(rule, keep=keep))) == UPDATES


@pytest.mark.parametrize("rule", ["rs2", "infobatch"])
@pytest.mark.parametrize("keep", [1.0, N_B])
def test_everything_is_kept_where_keep_is_one(rule: str, keep: float) -> None:
    chosen = epoch_of(batches_of(rule, loader_of(), keep=keep))
    assert [c.ids.numel() for c in chosen] == [N_B] * (N // N_B)
    assert len(set(flat_ids(chosen))) == N_B * (N // N_B)


@pytest.mark.parametrize("rule", RULES)
def test_the_order_is_shuffled_by_seed(rule: str) -> None:
    first = flat_ids(epoch_of(batches_of(rule, seed=1)))
    assert flat_ids(epoch_of(batches_of(rule, seed=1))) == first
    other = flat_ids(epoch_of(batches_of(rule, seed=2)))
    assert other != first
    if rule == "svp":  # the same examples in another order, but for the last short batch
        assert len(set(other) & set(first)) >= K * UPDATES - 3


@pytest.mark.parametrize("rule", ["rs2", "infobatch"])
@pytest.mark.parametrize("kind", ["pairs", "global", "subset"])
def test_only_the_chosen_rows_are_loaded_and_no_forward_is_run(rule: str, kind: str) -> None:
    class NoForward(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("a forward pass was run")

    data = Examples()
    loader = loader_of(kind, size=size_of(rule), data=data)
    batches = batches_of(rule, loader, model=NoForward())
    handed_out = flat_ids(epoch_of(batches)) + flat_ids(epoch_of(batches))
    assert data.loaded == handed_out
    assert batches.ledger.counts.examples_scored == 0


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["pairs", "tensors"])
def test_global_streams_stay_where_the_order_is_ones_own(
    rule: str, kind: str, global_streams: Callable[[], Any]
) -> None:
    batches = batches_of(rule, loader_of(kind, size=size_of(rule)))
    streams = global_streams()
    epoch_of(batches)
    epoch_of(batches)
    assert global_streams() == streams


# -- rs2 ------------------------------------------------------------------------------------------


def test_rs2_repeats_nothing_before_everything_was_chosen() -> None:
    """Four epochs of 32 are the 128 examples; the fifth begins again."""
    x = torch.randn(128, 4)
    loader = TensorSet(x, torch.arange(128) % C).loader(16)
    batches = batches_of("rs2", loader, keep=4)
    epochs = [flat_ids(epoch_of(batches)) for _ in range(8)]
    for half in (epochs[:4], epochs[4:]):
        assert sorted(i for e in half for i in e) == list(range(128))
    assert set(epochs[0]) != set(epochs[4])


def _through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_rs2_hands_out_round_after_round(data: st.DataObject) -> None:
    """Every n ids in a row are all n, whatever the sizes, breaks and resumes; no batch repeats."""
    n = data.draw(st.integers(1, 30), "n")
    size = data.draw(st.integers(1, n), "n_B")
    n_b = data.draw(st.integers(1, size), "n_b")
    seed = data.draw(st.integers(0, 3), "seed")
    batches = batches_without_model("rs2", rows_of(n, size), keep=n_b, seed=seed)
    handed_out: list[int] = []
    for _ in range(data.draw(st.integers(1, 8), "walks")):
        begun, stop = batches.step, data.draw(st.integers(1, len(batches) + 1), "stop")
        for chosen in batches:
            assert len(set(chosen.ids.tolist())) == n_b
            handed_out += chosen.ids.tolist()
            if batches.step - begun == stop:  # left there: the next walk is another epoch
                break
        if data.draw(st.booleans(), "resume"):  # the next walk goes on in this epoch
            state = _through_a_file(batches.state_dict())
            batches = batches_without_model("rs2", rows_of(n, size), keep=n_b, seed=seed)
            batches.load_state_dict(state)
    assert len(handed_out) == batches.step * n_b
    everything = set(range(3, 7 * n, 7))
    for start in range(0, len(handed_out), n):
        part = handed_out[start : start + n]
        assert len(set(part)) == len(part)
        assert set(part) <= everything


def test_rs2_trains_on_what_was_dropped_at_the_end_of_an_epoch() -> None:
    """62 updates of 32 are 1,984 of the 2,000 planned: in ten epochs 160 rows are left out."""
    n = 20_000
    batches = batches_without_model("rs2", rows_of(n, 320), keep=32)
    seen = [flat_ids(list(batches)) for _ in range(11)]
    assert [len(ids) for ids in seen] == [1984] * 11
    stream = [i for ids in seen for i in ids]
    assert len(set(stream[:n])) == n  # the 160 come first in the eleventh
    assert len(set(stream[n:])) == len(stream) - n


def test_a_broken_off_epoch_leaves_the_rest_unused() -> None:
    batches = batches_without_model("rs2", rows_of(40, 20), keep=5)  # epochs of 10
    first = next(iter(batches)).ids.tolist()
    rest = [i for _ in range(4) for c in batches for i in c.ids.tolist()]
    assert sorted(first + rest[:35]) == sorted(range(3, 280, 7))
    assert set(rest[35:]).isdisjoint(rest[30:35])


@pytest.mark.parametrize("resumed", [False, True])
def test_a_rule_observes_what_was_handed_out_with_the_evidence_it_chose_by(resumed: bool) -> None:
    class Told(rd.Selector):
        needs = frozenset({"loss"})
        horizon = "epoch"

        def __init__(self) -> None:
            self.seen: list[tuple[list[float], list[int], int]] = []

        def select(self, evidence: Any, k: int, *, generator: torch.Generator) -> Any:
            return rd.Selection(torch.arange(k), torch.ones(k))

        def observe(self, evidence: Any, selection: Any) -> None:
            losses = evidence.require("loss").tolist()
            epoch = int(evidence.require("epoch"))
            self.seen.append((losses, selection.index.tolist(), epoch))

    rule = Told()
    batches = rd.SelectingLoader(
        rows_of(12, 12), nn.Identity(), rule, keep=5
    )  # of 5, two go begging
    first = epoch_of(batches, lambda ids: ids.float())
    assert [s[1:] for s in rule.seen] == [([(i - 3) // 7 for i in flat_ids(first)], 0)]
    assert all(math.isnan(x) for x in rule.seen[0][0])
    memory = [7.0 * i + 3 if 7 * i + 3 in flat_ids(first) else math.nan for i in range(12)]
    half = next(iter(batches))
    batches.remember(half.ids, torch.full((5,), -1.0))
    assert len(rule.seen) == 1
    if resumed:
        state, rule = _through_a_file(batches.state_dict() | {"selector": {}}), Told()
        batches = rd.SelectingLoader(rows_of(12, 12), nn.Identity(), rule, keep=5)
        batches.load_state_dict(state)
        assert list(batches) == []  # it was the epoch's only update
    else:
        next(iter(batches))
    losses, index, epoch = rule.seen[-1]
    np.testing.assert_array_equal(losses, memory)
    assert (index, epoch) == ([(i - 3) // 7 for i in half.ids.tolist()], 1)


# -- svp ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_svp_keeps_the_most_uncertain_once(kind: str) -> None:
    data = Examples()
    proxy = small_net(9).train()
    with torch.no_grad():
        p = PROXY.eval()(data.x).softmax(1)
    uncertain = (-(p * p.log()).sum(1)).argsort(descending=True)[:33].tolist()
    loader = loader_of(kind, data=data)
    batches = batches_of("svp", loader, proxy=proxy)
    epochs = [flat_ids(epoch_of(batches)) for _ in range(4)]
    for epoch in epochs:
        assert set(epoch) < set(uncertain)  # 30 of the 33, in whole batches
    assert epochs[0] != epochs[1]  # in another order
    assert set().union(*epochs) == set(uncertain)  # the left-over ones take turns
    if kind != "tensors":
        assert len(data.loaded) == N + 4 * K * UPDATES  # all are looked at once
    assert all(m.training for m in proxy.modules())


def test_svp_asks_for_a_proxy_at_construction() -> None:
    with pytest.raises(rd.ConfigurationError, match=r"pass proxy=<model trained on the train set"):
        batches_of("svp", proxy=None)


# -- stopping and resuming ------------------------------------------------------------------------


def _train(batches: Any, model: nn.Module, optimizer: Any, until: int, at: int = -1) -> Any:
    """Ids and weights of every update up to ``until``, and what was saved at step ``at``."""
    rows, saved = [], io.BytesIO()
    while batches.step < until:
        for c in batches:
            x, y = c.batch
            loss = F.cross_entropy(model(x), y, reduction="none")
            batches.remember(c.ids, loss)
            optimizer.zero_grad()
            rd.weighted_mean(loss, c.weights).backward()
            optimizer.step()
            rows.append((c.ids.tolist(), c.weights.tolist()))
            if batches.step == at:
                parts = (batches.state_dict(), model.state_dict(), optimizer.state_dict())
                torch.save((*parts, torch.get_rng_state()), saved)
            if batches.step == until:
                break
    return rows, saved


def _setup(rule: str, kind: str, workers: int) -> tuple[Any, nn.Module, Any]:
    model = small_net()
    loader = loader_of(kind, size=size_of(rule), workers=workers)
    batches = batches_of(rule, loader, model=model, seed=4)
    return batches, model, torch.optim.SGD(model.parameters(), lr=0.5)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("kind", "workers"), [("pairs", 0), ("pairs", 2), ("global", 0), ("tensors", 0), ("subset", 0)]
)
@pytest.mark.parametrize("place", ["inside", "at the end"])
def test_resumed_equals_never_stopped(rule: str, kind: str, workers: int, place: str) -> None:
    updates = _updates(rule)
    stop, until = updates + (2 if place == "inside" else 0), 3 * updates + 3
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        batches, model, optimizer = _setup(rule, kind, workers)
        expected, saved = _train(batches, model, optimizer, until, stop)

        torch.manual_seed(2)
        again, other, optimizer = _setup(rule, kind, workers)
        saved.seek(0)
        state, model_state, optimizer_state, stream = torch.load(saved, weights_only=True)
        again.load_state_dict(state)
        other.load_state_dict(model_state)
        optimizer.load_state_dict(optimizer_state)
        torch.set_rng_state(stream)
        rows, _ = _train(again, other, optimizer, until)
    assert rows == expected[stop:]
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("rule", RULES)
def test_resumed_between_epochs(rule: str) -> None:
    batches = batches_of(rule)
    epoch_of(batches, easy_loss)
    epoch_of(batches, easy_loss)
    state = batches.state_dict()
    expected = [flat_ids(epoch_of(batches, easy_loss)) for _ in range(3)]
    again = batches_of(rule)
    again.load_state_dict(state)
    assert [flat_ids(epoch_of(again, easy_loss)) for _ in range(3)] == expected
