"""Rules that decide by epoch over what a sampler yields, and the loaders that they refuse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    default_collate,
)

import reducible as rd
from epoch_toys import (
    N_B,
    PROXY,
    RULES,
    C,
    Examples,
    K,
    N,
    batches_of,
    batches_without_model,
    epoch_of,
    flat_ids,
    loader_of,
    size_of,
    small_net,
)
from reducible.lab.data import TensorSet

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
    order, size = KNOWN[name](base), size_of(rule)
    if whole:
        base = TensorSet(data.x, data.targets)
        batching: dict[str, Any] = {
            "batch_size": None,
            "sampler": BatchSampler(order, size, drop_last=True),
            "collate_fn": lambda batch: batch,
        }
    else:
        batching = {"batch_size": size, "sampler": order}
    batches = batches_of(rule, DataLoader(base, **batching), total_steps=10**4)
    updates = {"infobatch": 13, "rs2": 3, "svp": 3}[rule]  # a quarter of 65 is 16
    assert len(batches) == updates
    seen: set[int] = set()
    for _ in range(6):
        chosen = epoch_of(batches)
        assert len(chosen) == updates
        for c in chosen:
            assert torch.equal(c.batch[0], data.x[c.ids])
        seen |= set(flat_ids(chosen))
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
        batches = batches_without_model(rule, loader, keep=32, total_steps=10**4)
        ids = {i for _ in range(4) for i in flat_ids(epoch_of(batches))}
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
    loader = DataLoader(base, batch_size=size_of(rule), sampler=order(base))
    with pytest.raises(rd.ConfigurationError, match=message):
        batches_of(rule, loader)


@pytest.mark.parametrize("rule", RULES)
def test_batches_of_ones_own_making_are_named(rule: str) -> None:
    data: Any = rd.WithIds(Examples())
    ours = Bucketed(SequentialSampler(data), size_of(rule), False)
    with pytest.raises(rd.ConfigurationError, match="of Bucketed it does not know which"):
        batches_of(rule, DataLoader(data, batch_sampler=ours))
    lists = DataLoader(data, batch_sampler=[[0, 1], [2, 3, 4]])
    with pytest.raises(rd.ConfigurationError, match=r"with batches of varying size \(list\)"):
        batches_of(rule, lists)


@pytest.mark.parametrize("rule", RULES)
def test_rows_that_share_an_id_are_named_at_construction(rule: str) -> None:
    data: Any = rd.WithIds(Examples())
    loader = DataLoader(data, batch_size=size_of(rule), sampler=[5, 6, 5, *range(10, 40)])
    with pytest.raises(rd.DataError, match="ids 5 occur more than once"):
        batches_of(rule, loader)


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
    next(iter(batches_of("svp", loader, proxy=proxy)))
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
            batches_of(rule, loader)


@pytest.mark.parametrize("rule", RULES)
def test_data_without_ids(rule: str) -> None:
    with pytest.raises(rd.DataError, match="Examples carries no ids: wrap it as"):
        batches_of(rule, DataLoader(Examples(), batch_size=N_B))


def test_infobatch_needs_to_know_how_long_a_run_is() -> None:
    with pytest.raises(rd.ConfigurationError, match="needs total_steps=<planned updates>"):
        batches_of("infobatch", total_steps=None)


@pytest.mark.parametrize("rule", RULES)
def test_a_keep_that_cannot_work(rule: str) -> None:
    with pytest.raises(rd.ConfigurationError, match="keep=21 rows, but the candidate batch has"):
        batches_of(rule, keep=N_B + 1)


@pytest.mark.parametrize("rule", RULES)
def test_a_state_taken_before_the_first_epoch_begins_it(rule: str) -> None:
    state = batches_of(rule, loader_of()).state_dict()
    again = batches_of(rule, loader_of())
    again.load_state_dict(state)
    assert flat_ids(epoch_of(again)) == flat_ids(epoch_of(batches_of(rule, loader_of())))


def test_an_epoch_that_holds_an_example_twice_is_refused() -> None:
    """However well-behaved the loader: the order is the rule's own."""

    class Same(rd.Selector):
        horizon = "epoch"

        def select(self, evidence: Any, k: int, *, generator: torch.Generator) -> Any:
            return rd.Selection(torch.zeros(k, dtype=torch.int64), torch.ones(k))

    batches = rd.SelectingLoader(loader_of(), small_net(), Same(), keep=K)
    with pytest.raises(rd.DataError, match="ids 0 occur more than once"):
        next(iter(batches))
