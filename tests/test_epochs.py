"""Rules that decide by epoch: what an epoch holds, in which order, and after a stop."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

import reducible as rd
from reducible.data import TensorSet

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
