"""Plans, drawn: every id as often as its weight says, none twice in a batch, in any loader."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader

import reducible as rd
from reducible.lab.data import TensorSet
from reducible.plans.sampler import systematic_counts


def _of(weight: Tensor, ids: Tensor | None = None) -> rd.Plan:
    """A plan of given weights."""
    ids = torch.arange(len(weight)) if ids is None else ids
    return rd.Plan(ids, weight / weight.mean(), torch.empty(0, dtype=torch.int64), {})


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -- how often ------------------------------------------------------------------------------------

WEIGHTS = st.lists(st.floats(0.01, 50.0), min_size=1, max_size=60)


@settings(deadline=None, max_examples=100)
@given(raw=WEIGHTS, seed=st.integers(0, 2**32))
def test_counts_are_the_weight_rounded_down_or_up(raw: list[float], seed: int) -> None:
    weight = torch.tensor(raw, dtype=torch.float64)
    weight = weight / weight.mean()
    count = systematic_counts(weight, generator=_generator(seed))
    assert int(count.sum()) == len(raw)
    slack = 1e-9  # a weight that is whole but for rounding
    assert bool((count >= (weight - slack).floor()).all())
    assert bool((count <= (weight + slack).ceil()).all())


def test_counts_are_the_weight_in_the_mean() -> None:
    weight = torch.tensor([0.1, 0.4, 2.5, 1.0, 0.75, 1.25], dtype=torch.float64)
    generator, draws = _generator(), 4000
    total = sum(systematic_counts(weight, generator=generator) for _ in range(draws))
    # a count is ⌊w⌋ plus a coin: its variance is at most 1/4
    assert float((torch.as_tensor(total) / draws - weight).abs().max()) < 5 * 0.5 / draws**0.5


def test_neighbours_are_not_tied() -> None:
    """Ids side by side are drawn together no more often than ids far apart."""
    weight = torch.full((40,), 0.5, dtype=torch.float64).repeat_interleave(2)
    weight[::2] = 1.5
    generator = _generator()
    counts = torch.stack([systematic_counts(weight, generator=generator) for _ in range(2000)])
    correlation = torch.corrcoef(counts.T.double())
    beside = correlation.diagonal(1).mean()
    assert abs(float(beside)) < 0.05


# -- the sampler ----------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(50, 400),
    spread=st.floats(0.0, 3.0),
    share=st.floats(0.1, 1.0),
    seed=st.integers(0, 10**6),
)
def test_no_id_twice_in_any_batch(n: int, spread: float, share: float, seed: int) -> None:
    weight = torch.rand(n, generator=_generator(seed), dtype=torch.float64) * spread + 0.5
    plan = _of(weight)
    most = math.ceil(float(plan.weight.max()))
    # a window holds its share of every count, give or take a draw
    size = max(1, int(share * n / most) - most - 1)
    for batch in BatchSampler(plan.sampler(_ids_only(n), generator=_generator(seed)), size, False):
        assert len(set(batch)) == len(batch)


def _ids_only(n: int) -> Any:
    return TensorSet(torch.zeros(n, 1), torch.zeros(n, dtype=torch.int64))


def test_repeats_are_evenly_spaced() -> None:
    weight = torch.cat([torch.full((300,), 0.7), torch.full((100,), 3.0)]).double()
    plan = _of(weight)
    drawn = list(plan.sampler(_ids_only(400), generator=_generator()))
    at: dict[int, list[int]] = {}
    for place, position in enumerate(drawn):
        at.setdefault(position, []).append(place)
    for places in at.values():
        for a, b in itertools.pairwise(places):
            assert abs((b - a) - 400 / len(places)) <= 4


def test_every_id_comes_as_often_as_its_weight() -> None:
    weight = torch.linspace(0.2, 3.0, 100, dtype=torch.float64)
    plan = _of(weight, ids=torch.arange(100) * 3 + 7)
    data = TensorSet(torch.zeros(100, 1), torch.zeros(100).long(), ids=plan.ids.flip(0))
    sampler = plan.sampler(data, generator=_generator())
    assert len(sampler) == 100
    counts: Counter[int] = Counter()
    for _ in range(50):
        epoch = Counter(int(data.ids[p]) for p in sampler)
        assert epoch.total() == 100
        for i, w in zip(plan.ids.tolist(), plan.weight.tolist(), strict=True):
            assert math.floor(w) <= epoch[i] <= math.ceil(w)
        counts.update(epoch)
    seen = torch.tensor([counts[i] / 50 for i in plan.ids.tolist()]).double()
    assert float((seen - plan.weight).abs().max()) < 5 * 0.5 / 50**0.5


def test_equal_weights_are_a_shuffle_that_moves_on() -> None:
    plan = _of(torch.ones(30, dtype=torch.float64))
    sampler = plan.sampler(_ids_only(30), generator=_generator(1))
    first, second = list(sampler), list(sampler)
    assert sorted(first) == sorted(second) == list(range(30))
    assert first != second != list(range(30))
    again = plan.sampler(_ids_only(30), generator=_generator(1))
    assert [list(again), list(again)] == [first, second]


def test_a_sampler_moves_no_global_stream(global_streams: Any) -> None:
    streams = global_streams()
    weight = torch.tensor([0.5, 1.5, 1.0, 0.25, 1.75, 1.0]).double()
    list(_of(weight).sampler(_ids_only(6), generator=_generator()))
    assert global_streams() == streams


def test_ids_that_the_data_set_lacks() -> None:
    plan = _of(torch.ones(8, dtype=torch.float64))
    with pytest.raises(rd.DataError, match=r"lacks 3 ids of the plan: 5, 6, 7\. The plan is of"):
        plan.sampler(_ids_only(5), generator=_generator())
    no_ids = nn.Identity()
    with pytest.raises(rd.DataError, match="carries no ids"):
        plan.sampler(no_ids, generator=_generator())


def test_batches_that_a_plan_cannot_fill() -> None:
    plan = _of(torch.tensor([1.0] * 90 + [11.0] * 10).double())
    assert float(plan.weight.max()) == 5.5
    with pytest.raises(rd.ConfigurationError, match=r"weight is 5\.5 brings that id every 16 draw"):
        plan.sampler(_ids_only(100), generator=_generator(), batch_size=17)
    with pytest.raises(rd.ConfigurationError, match="batches of 101 from the 100 examples"):
        plan.sampler(_ids_only(100), generator=_generator(), batch_size=101)
    assert len(plan.sampler(_ids_only(100), generator=_generator(), batch_size=16)) == 100
    evenly = _of(torch.ones(9).double())
    assert len(evenly.sampler(_ids_only(9), generator=_generator(), batch_size=9)) == 9
    fives = _of(torch.tensor([0.75] * 80 + [2.0] * 20).double())  # twice in 100 draws at most
    assert float(fives.weight.max()) == 2.0
    assert len(fives.sampler(_ids_only(100), generator=_generator(), batch_size=50)) == 100
    with pytest.raises(rd.ConfigurationError, match=r"weight is 2 brings that id every 50 draws"):
        fives.sampler(_ids_only(100), generator=_generator(), batch_size=51)
    single = _of(torch.ones(1).double())
    assert list(single.sampler(_ids_only(1), generator=_generator())) == [0]


@pytest.mark.parametrize("seed", range(3))
def test_an_epoch_is_drawn_as_described(seed: int) -> None:
    """One tick a draw, at the same place between whole numbers; then repeats spread evenly."""
    weight = torch.cat([torch.linspace(0.3, 0.9, 9), torch.linspace(1.0, 4.5, 6)]).double()
    plan = _of(weight, ids=torch.arange(15) * 2)
    size, w = 15, plan.weight.tolist()
    g = _generator(seed)
    order = torch.randperm(size, generator=g).tolist()
    shift = float(torch.rand(1, dtype=torch.float64, generator=g))
    count, edge, before = [0] * size, 0.0, 0
    for i in order:
        edge += w[i]
        ticks = size if i == order[-1] else sum(j + shift < edge for j in range(size))
        count[i], before = ticks - before, ticks
    mixed = torch.randperm(size, generator=g).tolist()
    start = torch.rand(len(set(count)), dtype=torch.float64, generator=g).tolist()
    when: list[tuple[float, int]] = []
    for begun, often in zip(start, sorted(set(count)), strict=True):
        alike = [i for i in mixed if count[i] == often]
        for nth, i in enumerate(alike):
            offset = (nth + begun) / len(alike)
            when += [((repeat + offset) / often, i) for repeat in range(often)]
    data = TensorSet(torch.zeros(40, 1), torch.zeros(40).long())
    sampler = plan.sampler(data, generator=_generator(seed))
    assert list(sampler) == [2 * i for _, i in sorted(when)]
    assert sampler.each_once is None
    assert torch.equal(sampler.generator.get_state(), g.get_state())


def test_where_all_weigh_the_same_an_epoch_has_each_once() -> None:
    plan = _of(torch.full((6,), 0.5).double(), ids=torch.tensor([1, 2, 3, 5, 7, 8]))
    data = TensorSet(torch.zeros(9, 1), torch.zeros(9).long(), ids=torch.arange(9).flip(0))
    positions = plan.sampler(data, generator=_generator()).each_once
    assert positions is not None
    assert positions.tolist() == [7, 6, 5, 3, 1, 0]


def test_the_last_id_of_a_data_set_may_be_missing_too() -> None:
    plan = _of(torch.ones(2).double(), ids=torch.tensor([2, 9]))
    data = TensorSet(torch.zeros(3, 1), torch.zeros(3).long(), ids=torch.tensor([8, 2, 5]))
    with pytest.raises(rd.DataError, match=r"lacks 1 ids of the plan: 9\."):
        plan.sampler(data, generator=_generator())


# -- in the loop ----------------------------------------------------------------------------------

N, N_B, K = 120, 20, 5


def _data(kind: str, plan: rd.Plan) -> Any:
    """A loader over more examples than the plan has, in the order of the plan."""
    g = _generator(1)
    x, y = torch.randn(N + 30, 4, generator=g), torch.randint(3, (N + 30,), generator=g)
    tensors = TensorSet(x, y)
    if kind == "tensors":
        order = plan.sampler(tensors, generator=_generator(3))
        batches = BatchSampler(order, N_B, True)
        return DataLoader(tensors, batch_size=None, sampler=batches, collate_fn=_whole)
    items: Any = list(zip(x, y.tolist(), strict=True))
    data = rd.WithIds(items)
    return DataLoader(data, batch_size=N_B, sampler=plan.sampler(data, generator=_generator(3)))


def _whole(batch: Any) -> Any:
    return batch


def _batches(kind: str, rule: str, plan: rd.Plan) -> Any:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
    return rd.SelectingLoader(_data(kind, plan), model, rd.selector(rule), keep=K)


@pytest.mark.parametrize("kind", ["tensors", "with-ids"])
@pytest.mark.parametrize("rule", ["train_loss", "uniform"])
def test_a_loader_in_the_order_of_a_plan_resumes(kind: str, rule: str) -> None:
    plan = _of(torch.linspace(0.5, 2.0, N, dtype=torch.float64), torch.arange(N) + 20)
    batches, expected, states = _batches(kind, rule, plan), [], []
    for _ in range(2):
        for chosen in batches:
            expected.append(chosen.ids.tolist())
            states.append(batches.state_dict())
            assert set(expected[-1]) <= set(plan.ids.tolist())
    assert len(expected) == 2 * N // N_B
    for stop in (2, N // N_B + 3):
        again = _batches(kind, rule, plan)
        again.load_state_dict(states[stop - 1])
        rest = [c.ids.tolist() for c in again]
        while len(rest) < len(expected) - stop:
            rest += [c.ids.tolist() for c in again]
        assert rest == expected[stop:]


def test_a_plan_orders_the_candidates_as_it_draws_them() -> None:
    plan = _of(torch.linspace(0.5, 2.0, N, dtype=torch.float64))
    drawn: Counter[int] = Counter()
    loader = _data("tensors", plan)
    for ids, _ in loader:
        assert ids.unique().numel() == N_B
        drawn.update(ids.tolist())
    for i, w in enumerate(plan.weight.tolist()):
        assert math.floor(w) <= drawn[i] <= math.ceil(w)
