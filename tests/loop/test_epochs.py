"""Rules that decide by epoch: what an epoch holds, in which order, and after a stop."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
    default_collate,
)

import reducible as rd
from reducible.lab.data import TensorSet

N, N_B, K, C = 130, 20, 5, 3
UPDATES = 6  # a quarter of 130 is 33 rows (rounded half up), six updates of five
TOTAL = 400  # planned updates
SHARES = ["rs2", "svp"]  # train on a quarter of the data an epoch
RULES = [*SHARES, "infobatch"]  # the last on all of it, or on what it does not drop


class Examples(Dataset[tuple[Tensor, int]]):
    """(x, y) pairs that remember which of them were loaded, in this process."""

    def __init__(self) -> None:
        self.x = torch.randn(N, 4, generator=torch.Generator().manual_seed(1))
        self.targets = (self.x.sum(1) > 0).long() + (self.x[:, 0] > 1).long()
        self.loaded: list[int] = []

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.loaded.append(index)
        return self.x[index], int(self.targets[index])


KINDS = ["pairs", "global", "tensors", "subset"]


def _loader(
    kind: str = "pairs", *, size: int = N_B, workers: int = 0, data: Examples | None = None
) -> Any:
    examples = data or Examples()
    own = torch.Generator().manual_seed(3)
    if kind == "tensors":
        return TensorSet(examples.x, examples.targets).loader(size, generator=own)
    base: Any = rd.WithIds(examples)
    if kind == "subset":  # ids are not positions
        base = Subset(base, list(range(N - 1, -1, -1)))
    generator = None if kind == "global" else own
    return DataLoader(base, size, shuffle=True, generator=generator, num_workers=workers)


def _size(rule: str) -> int:
    """The batch size of the loader that a rule is given, for updates of K rows."""
    return K if rule == "infobatch" else N_B


def _updates(rule: str) -> int:
    """Of the first epoch."""
    return N // K if rule == "infobatch" else UPDATES


def _net(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, C))


PROXY = _net(9)


def _batches(rule: str, loader: Any = None, **options: Any) -> Any:
    options = {"total_steps": TOTAL, "proxy": PROXY} | options
    if rule != "infobatch":
        options.setdefault("keep", K)
    model = options.pop("model", None) or _net()
    loader = _loader(size=_size(rule)) if loader is None else loader
    return rd.SelectingLoader(loader, model, rd.selector(rule), **options)


def _epoch(batches: Any, loss_of: Callable[[Tensor], Tensor] | None = None) -> list[Any]:
    """One epoch, in which the losses of the rows handed out are reported."""
    chosen = []
    for c in batches:
        batches.remember(c.ids, torch.ones(len(c.ids)) if loss_of is None else loss_of(c.ids))
        chosen.append(c)
    return chosen


def _flat(chosen: list[Any]) -> list[int]:
    return [i for c in chosen for i in c.ids.tolist()]


# -- what an epoch holds --------------------------------------------------------------------------


@pytest.mark.parametrize("rule", SHARES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_is_a_share_of_the_data_without_repeats(
    rule: str, kind: str, workers: int
) -> None:
    examples = Examples()
    batches = _batches(rule, _loader(kind, workers=workers if kind != "tensors" else 0))
    assert len(batches) == UPDATES
    for _ in range(2):
        chosen = _epoch(batches)
        assert [c.ids.numel() for c in chosen] == [K] * UPDATES
        assert len(batches) == UPDATES
        assert len(set(_flat(chosen))) == K * UPDATES
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
    assert len(_epoch(_batches(rule, keep=keep))) == UPDATES


@pytest.mark.parametrize("rule", ["rs2", "infobatch"])
@pytest.mark.parametrize("keep", [1.0, N_B])
def test_everything_is_kept_where_keep_is_one(rule: str, keep: float) -> None:
    chosen = _epoch(_batches(rule, _loader(), keep=keep))
    assert [c.ids.numel() for c in chosen] == [N_B] * (N // N_B)
    assert len(set(_flat(chosen))) == N_B * (N // N_B)


@pytest.mark.parametrize("rule", RULES)
def test_the_order_is_shuffled_by_seed(rule: str) -> None:
    first = _flat(_epoch(_batches(rule, seed=1)))
    assert _flat(_epoch(_batches(rule, seed=1))) == first
    other = _flat(_epoch(_batches(rule, seed=2)))
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
    loader = _loader(kind, size=_size(rule), data=data)
    batches = _batches(rule, loader, model=NoForward())
    handed_out = _flat(_epoch(batches)) + _flat(_epoch(batches))
    assert data.loaded == handed_out
    assert batches.ledger.counts.examples_scored == 0


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["pairs", "tensors"])
def test_global_streams_stay_where_the_order_is_ones_own(
    rule: str, kind: str, global_streams: Callable[[], Any]
) -> None:
    batches = _batches(rule, _loader(kind, size=_size(rule)))
    streams = global_streams()
    _epoch(batches)
    _epoch(batches)
    assert global_streams() == streams


# -- rs2 ------------------------------------------------------------------------------------------


def test_rs2_repeats_nothing_before_everything_was_chosen() -> None:
    """Four epochs of 32 are the 128 examples; the fifth begins again."""
    x = torch.randn(128, 4)
    loader = TensorSet(x, torch.arange(128) % C).loader(16)
    batches = _batches("rs2", loader, keep=4)
    epochs = [_flat(_epoch(batches)) for _ in range(8)]
    for half in (epochs[:4], epochs[4:]):
        assert sorted(i for e in half for i in e) == list(range(128))
    assert set(epochs[0]) != set(epochs[4])


def _rows(n: int, size: int) -> Any:
    """A loader of n examples whose ids are not their positions."""
    data = TensorSet(torch.zeros(n, 1), torch.zeros(n).long(), ids=7 * torch.arange(n) + 3)
    return data.loader(size)


def _plain(rule: str, loader: Any, **options: Any) -> Any:
    return rd.SelectingLoader(loader, nn.Identity(), rd.selector(rule), **options)


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
    batches = _plain("rs2", _rows(n, size), keep=n_b, seed=seed)
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
            batches = _plain("rs2", _rows(n, size), keep=n_b, seed=seed)
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
    batches = _plain("rs2", _rows(n, 320), keep=32)
    seen = [_flat(list(batches)) for _ in range(11)]
    assert [len(ids) for ids in seen] == [1984] * 11
    stream = [i for ids in seen for i in ids]
    assert len(set(stream[:n])) == n  # the 160 come first in the eleventh
    assert len(set(stream[n:])) == len(stream) - n


def test_a_broken_off_epoch_leaves_the_rest_unused() -> None:
    batches = _plain("rs2", _rows(40, 20), keep=5)  # epochs of 10
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
    batches = rd.SelectingLoader(_rows(12, 12), nn.Identity(), rule, keep=5)  # of 5, two go begging
    first = _epoch(batches, lambda ids: ids.float())
    assert [s[1:] for s in rule.seen] == [([(i - 3) // 7 for i in _flat(first)], 0)]
    assert all(math.isnan(x) for x in rule.seen[0][0])
    memory = [7.0 * i + 3 if 7 * i + 3 in _flat(first) else math.nan for i in range(12)]
    half = next(iter(batches))
    batches.remember(half.ids, torch.full((5,), -1.0))
    assert len(rule.seen) == 1
    if resumed:
        state, rule = _through_a_file(batches.state_dict() | {"selector": {}}), Told()
        batches = rd.SelectingLoader(_rows(12, 12), nn.Identity(), rule, keep=5)
        batches.load_state_dict(state)
        assert list(batches) == []  # it was the epoch's only update
    else:
        next(iter(batches))
    losses, index, epoch = rule.seen[-1]
    np.testing.assert_array_equal(losses, memory)
    assert (index, epoch) == ([(i - 3) // 7 for i in half.ids.tolist()], 1)


# -- infobatch ------------------------------------------------------------------------------------


def _easy(ids: Tensor) -> Tensor:
    """Loss 0 for even ids, 1 for odd ones."""
    return (ids % 2).float()


def test_infobatch_weighs_what_it_keeps_of_the_easy_ones() -> None:
    """keep=1: a first epoch sees all; then half of those below the mean go, the others count 2."""
    x = torch.randn(128, 4)
    loader = TensorSet(x, torch.arange(128) % C).loader(16)
    batches = _batches("infobatch", loader, keep=1.0, total_steps=1000)
    first = _epoch(batches, _easy)
    assert sorted(_flat(first)) == list(range(128))
    assert all(c.weights.tolist() == [1.0] * 16 for c in first)
    for _ in range(3):
        later = _epoch(batches, _easy)
        for c in later:
            expected = [1.0 if i % 2 else 2.0 for i in c.ids.tolist()]
            assert c.weights.tolist() == expected  # handed out with their rows
        # 64 odd ones and 32 of 64 even ones: 96, six batches
        ids = _flat(later)
        assert [sum(i % 2 == parity for i in ids) for parity in (0, 1)] == [32, 64]


def test_infobatch_trains_on_all_at_the_end_of_the_run() -> None:
    x = torch.randn(64, 4)
    loader = TensorSet(x, torch.arange(64) % C).loader(16)
    batches = _batches("infobatch", loader, keep=1.0, total_steps=8)  # the last one of eight
    sizes = []
    while batches.step < 8 + 3:
        chosen = _epoch(batches, _easy)
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
        _rows(n, n_b), nn.Identity(), rule, keep=1.0, total_steps=total, seed=seed
    )
    step = 0
    for announced, updates in _recorded(batches, total, lambda ids: losses[ids]):
        step += len(updates)
        ids, weights = _flat(updates), [w for c in updates for w in c.weights.tolist()]
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
    batches = _plain("infobatch", loader, total_steps=56)
    epochs = _recorded(batches, 56, lambda ids: losses[ids])
    last = [c for _, updates in epochs for c in updates][-7:]
    assert all(c.weights.tolist() == [1.0] * 32 for c in last)
    assert len(set(_flat(last))) == 7 * 32
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
    batches = _plain("infobatch", loader, total_steps=10**6)
    _epoch(batches, lambda ids: losses[ids])
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
        _batches("infobatch", _loader(), keep=keep)


@pytest.mark.parametrize("rule", ["rs2", "svp", "uniform"])
def test_other_rules_want_to_know_what_to_keep(rule: str) -> None:
    with pytest.raises(rd.ConfigurationError, match="keep is missing: pass the rows to train on"):
        rd.SelectingLoader(_loader(), _net(), rd.selector(rule), proxy=PROXY)


def test_an_epoch_too_small_for_an_update() -> None:
    data = TensorSet(torch.zeros(8, 1), torch.zeros(8).long())
    with pytest.raises(rd.ConfigurationError, match=r"train on 2 of 8 rows, .*no update of 5\."):
        _plain("rs2", data.loader(20, drop_last=False), keep=5)
    batches = _plain("infobatch", data.loader(7), total_steps=100)
    _epoch(batches, lambda ids: (ids >= 2).float())
    batches.remember(torch.arange(8), torch.tensor([0.0] * 6 + [9.0] * 2))  # three of six go
    with pytest.raises(rd.SelectionError, match=r"leaves 5 of 8 rows .* no update of 7\."):
        next(iter(batches))


def test_infobatch_reads_the_loss_that_was_reported_last() -> None:
    x = torch.randn(64, 4)
    loader = TensorSet(x, torch.arange(64) % C).loader(16)
    batches = _batches("infobatch", loader, keep=1.0, total_steps=1000)
    _epoch(batches, _easy)
    everything = torch.arange(64)
    batches.remember(everything, 1 - _easy(everything))  # what was easy is hard now
    ids = _flat(_epoch(batches, _easy))
    assert [sum(i % 2 == parity for i in ids) for parity in (0, 1)] == [32, 16]


def test_infobatch_without_any_loss_is_refused_in_the_second_epoch() -> None:
    batches = _batches("infobatch")
    assert len(list(batches)) == N // K
    with pytest.raises(rd.SelectionError, match=r"After each forward call batches\.remember\(ch"):
        next(iter(batches))


def test_losses_that_are_reduced_or_of_other_ids() -> None:
    batches = _batches("infobatch")
    chosen = next(iter(batches))
    with pytest.raises(rd.DataError, match=r"a loss of shape \(\) for 5 rows: it is already"):
        batches.remember(chosen.ids, torch.tensor(1.0))
    with pytest.raises(rd.DataError, match="ids 130, 131 are not of this data set"):
        batches.remember(torch.tensor([130, 131]), torch.ones(2))


@pytest.mark.parametrize("rule", ["rs2", "uniform", "rho"])
def test_rules_without_memory_do_not_mind_being_told(rule: str) -> None:
    store = rd.IrreducibleLossStore.from_tensor(torch.zeros(N)) if rule == "rho" else None
    batches = _batches(rule, store=store)
    told = [c.ids.tolist() for c in _epoch(batches)]
    assert told == [c.ids.tolist() for c in _batches(rule, store=store)]


# -- svp ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_svp_keeps_the_most_uncertain_once(kind: str) -> None:
    data = Examples()
    proxy = _net(9).train()
    with torch.no_grad():
        p = PROXY.eval()(data.x).softmax(1)
    uncertain = (-(p * p.log()).sum(1)).argsort(descending=True)[:33].tolist()
    loader = _loader(kind, data=data)
    batches = _batches("svp", loader, proxy=proxy)
    epochs = [_flat(_epoch(batches)) for _ in range(4)]
    for epoch in epochs:
        assert set(epoch) < set(uncertain)  # 30 of the 33, in whole batches
    assert epochs[0] != epochs[1]  # in another order
    assert set().union(*epochs) == set(uncertain)  # the left-over ones take turns
    if kind != "tensors":
        assert len(data.loaded) == N + 4 * K * UPDATES  # all are looked at once
    assert all(m.training for m in proxy.modules())


def test_svp_asks_for_a_proxy_at_construction() -> None:
    with pytest.raises(rd.ConfigurationError, match=r"pass proxy=<model trained on the train set"):
        _batches("svp", proxy=None)


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
    model = _net()
    loader = _loader(kind, size=_size(rule), workers=workers)
    batches = _batches(rule, loader, model=model, seed=4)
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
    batches = _batches(rule)
    _epoch(batches, _easy)
    _epoch(batches, _easy)
    state = batches.state_dict()
    expected = [_flat(_epoch(batches, _easy)) for _ in range(3)]
    again = _batches(rule)
    again.load_state_dict(state)
    assert [_flat(_epoch(again, _easy)) for _ in range(3)] == expected


# -- what the loader's sampler yields -------------------------------------------------------------


HALF = torch.randperm(N, generator=torch.Generator().manual_seed(6))[: N // 2]  # [65]


def _filtering(base: Any, weight: Tensor | None = None) -> Any:
    ones = torch.ones(N // 2, dtype=torch.float64)
    nothing = torch.empty(0, dtype=torch.int64)
    plan = rd.Plan(HALF.sort().values, ones if weight is None else weight, nothing, {})
    return plan.sampler(base, generator=torch.Generator())


class Declared(Sampler[int]):
    """Says which rows an epoch has once each."""

    each_once = HALF

    def __iter__(self) -> Iterator[int]:
        return iter(HALF.tolist())


KNOWN: dict[str, Callable[[Any], Any]] = {
    "random subset": lambda base: SubsetRandomSampler(HALF.tolist()),
    "list": lambda base: HALF.tolist(),
    "tensor": lambda base: HALF,
    "plan": _filtering,
    "declared": lambda base: Declared(),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("whole", [False, True], ids=["items", "batches"])
@pytest.mark.parametrize("name", KNOWN)
def test_only_rows_of_the_sampler_are_trained_on(name: str, whole: bool, rule: str) -> None:
    """In the training part of a split; all of them, over enough epochs."""
    data = Examples()
    base: Any = rd.WithIds(data)
    order, size = KNOWN[name](base), _size(rule)
    if whole:
        base = TensorSet(data.x, data.targets)
        batching: dict[str, Any] = {
            "batch_size": None,
            "sampler": BatchSampler(order, size, drop_last=True),
            "collate_fn": lambda batch: batch,
        }
    else:
        batching = {"batch_size": size, "sampler": order}
    batches = _batches(rule, DataLoader(base, **batching), total_steps=10**4)
    updates = {"infobatch": 13, "rs2": 3, "svp": 3}[rule]  # a quarter of 65 is 16
    assert len(batches) == updates
    seen: set[int] = set()
    for _ in range(6):
        chosen = _epoch(batches)
        assert len(chosen) == updates
        for c in chosen:
            assert torch.equal(c.batch[0], data.x[c.ids])
        seen |= set(_flat(chosen))
    expected = set(HALF.tolist())
    if rule == "svp":  # the 16 that the proxy is least certain of, out of the half
        with torch.no_grad():
            p = PROXY.eval()(data.x[HALF]).softmax(1)
        expected = set(HALF[(-(p * p.log()).sum(1)).topk(16).indices].tolist())
    assert seen == expected
    assert whole or set(data.loaded) <= set(HALF.tolist())


@pytest.mark.parametrize("rule", ["rs2", "infobatch"])
def test_a_validation_part_is_never_trained_on(rule: str) -> None:
    data = TensorSet(torch.zeros(512, 1), torch.zeros(512).long())
    size = 32 if rule == "infobatch" else 64
    for order in (
        SubsetRandomSampler(range(400)),
        RandomSampler(range(400)),
        SequentialSampler(range(400)),
        range(400),
    ):
        loader = DataLoader(data, sampler=order, batch_size=size)
        batches = _plain(rule, loader, keep=32, total_steps=10**4)
        ids = {i for _ in range(4) for i in _flat(_epoch(batches))}
        assert max(ids) < 400
        assert len(ids) == (400 if rule == "rs2" else len(ids)) > 350


class Buckets(Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(N))


class Bucketed(BatchSampler):
    """Batches of its own making."""


WITHOUT_PLAN: dict[str, tuple[Callable[[Any], Any], str]] = {
    "weighted": (
        lambda base: WeightedRandomSampler([1.0] * N, N),
        "WeightedRandomSampler draws with replacement",
    ),
    "replaced": (
        lambda base: RandomSampler(base, replacement=True),
        "RandomSampler draws with replacement",
    ),
    "some": (
        lambda base: RandomSampler(base, num_samples=60),
        "RandomSampler draws num_samples=60 rows, others every epoch",
    ),
    "ranks": (
        lambda base: DistributedSampler(base, num_replicas=2, rank=0),
        "DistributedSampler gives each rank other rows every epoch",
    ),
    "weighted plan": (
        lambda base: _filtering(base, torch.linspace(0.5, 1.5, N // 2).double()),
        "this PlanSampler draws some rows more often than others",
    ),
    "one's own": (lambda base: Buckets(), "of Buckets it does not know which those are"),
    "outside": (lambda base: [3, 4, N], f"list yields position {N} of a data set of {N} rows"),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", WITHOUT_PLAN)
def test_samplers_that_cannot_be_planned_over_are_named(name: str, rule: str) -> None:
    order, message = WITHOUT_PLAN[name]
    base: Any = rd.WithIds(Examples())
    loader = DataLoader(base, batch_size=_size(rule), sampler=order(base))
    with pytest.raises(rd.ConfigurationError, match=message):
        _batches(rule, loader)


@pytest.mark.parametrize("rule", RULES)
def test_batches_of_ones_own_making_are_named(rule: str) -> None:
    data: Any = rd.WithIds(Examples())
    ours = Bucketed(SequentialSampler(data), _size(rule), False)
    with pytest.raises(rd.ConfigurationError, match="of Bucketed it does not know which"):
        _batches(rule, DataLoader(data, batch_sampler=ours))
    lists = DataLoader(data, batch_sampler=[[0, 1], [2, 3, 4]])
    with pytest.raises(rd.ConfigurationError, match=r"with batches of varying size \(list\)"):
        _batches(rule, lists)


@pytest.mark.parametrize("rule", RULES)
def test_rows_that_share_an_id_are_named_at_construction(rule: str) -> None:
    data: Any = rd.WithIds(Examples())
    loader = DataLoader(data, batch_size=_size(rule), sampler=[5, 6, 5, *range(10, 40)])
    with pytest.raises(rd.DataError, match="ids 5 occur more than once"):
        _batches(rule, loader)


def test_the_proxy_reads_batches_as_the_loader_collates_them() -> None:
    def doubled(items: list[Any]) -> rd.Candidates:
        ids, (x, y) = default_collate(items)
        return rd.Candidates(ids, (2 * x, y))

    seen: list[Tensor] = []

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        seen.append(x)
        return torch.zeros(len(x), C)

    proxy, data = nn.Identity(), Examples()
    proxy.forward = MethodType(forward, proxy)
    loader = DataLoader(rd.WithIds(data), N_B, shuffle=True, collate_fn=doubled)
    next(iter(_batches("svp", loader, proxy=proxy)))
    assert torch.equal(torch.cat(seen), 2 * data.x)


# -- what cannot work -----------------------------------------------------------------------------


class Opaque(DataLoader[Any]):
    """A subclass may do anything, so its order is not re-planned."""


class Stream(IterableDataset[rd.Candidates]):
    def __iter__(self) -> Iterator[rd.Candidates]:
        yield from (rd.Candidates(torch.tensor(i), torch.zeros(4)) for i in range(4))


@pytest.mark.parametrize("rule", RULES)
def test_loaders_whose_order_is_not_theirs_to_plan(rule: str) -> None:
    data: Any = rd.WithIds(Examples())
    for loader in (
        Opaque(data, batch_size=N_B),
        DataLoader(Stream(), batch_size=N_B),
        list(DataLoader(data, batch_size=N_B)),
        DataLoader(data, batch_sampler=[[0, 1], [2, 3]]),  # says no size
    ):
        with pytest.raises(rd.ConfigurationError, match=r"decides by epoch, so it re-plans the or"):
            _batches(rule, loader)


@pytest.mark.parametrize("rule", RULES)
def test_data_without_ids(rule: str) -> None:
    with pytest.raises(rd.DataError, match="Examples carries no ids: wrap it as"):
        _batches(rule, DataLoader(Examples(), batch_size=N_B))


def test_infobatch_needs_to_know_how_long_a_run_is() -> None:
    with pytest.raises(rd.ConfigurationError, match="needs total_steps=<planned updates>"):
        _batches("infobatch", total_steps=None)


@pytest.mark.parametrize("rule", RULES)
def test_a_keep_that_cannot_work(rule: str) -> None:
    with pytest.raises(rd.ConfigurationError, match="keep=21 rows, but the candidate batch has"):
        _batches(rule, keep=N_B + 1)


@pytest.mark.parametrize("rule", RULES)
def test_a_state_taken_before_the_first_epoch_begins_it(rule: str) -> None:
    state = _batches(rule, _loader()).state_dict()
    again = _batches(rule, _loader())
    again.load_state_dict(state)
    assert _flat(_epoch(again)) == _flat(_epoch(_batches(rule, _loader())))


def test_an_epoch_that_holds_an_example_twice_is_refused() -> None:
    """However well-behaved the loader: the order is the rule's own."""

    class Same(rd.Selector):
        horizon = "epoch"

        def select(self, evidence: Any, k: int, *, generator: torch.Generator) -> Any:
            return rd.Selection(torch.zeros(k, dtype=torch.int64), torch.ones(k))

    batches = rd.SelectingLoader(_loader(), _net(), Same(), keep=K)
    with pytest.raises(rd.DataError, match="ids 0 occur more than once"):
        next(iter(batches))
