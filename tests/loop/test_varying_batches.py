"""Candidate batches of varying size: what is handed out, left out and refused."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset, default_collate
from torchdata.stateful_dataloader import StatefulDataLoader

import reducible as rd
from varying_toys import DATA, Examples, N, Opaque, batches_of, ids_of

RULES = ["uniform", "rho", "scheduled"]
KINDS = ["sampler", "list", "opaque", "stream"]


class Stream(IterableDataset[rd.Candidates]):
    """Gives whole batches, or rows."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def _cut(sizes: list[int]) -> list[list[int]]:
    bounds = [0, *accumulate(sizes)]
    return [list(range(a, b)) for a, b in pairwise(bounds)]


def _loader(sizes: list[int], kind: str = "sampler", **options: Any) -> Any:
    """Batches of ``sizes``, rows in order."""
    rows = _cut(sizes)
    if kind == "list":
        return list(DataLoader(DATA, batch_sampler=rows))
    if kind == "stream":
        whole = [default_collate([DATA[i] for i in batch]) for batch in rows]
        return DataLoader(Stream(whole), batch_size=None, **options)
    make = Opaque if kind == "opaque" else DataLoader
    return make(DATA, batch_sampler=rows, **options)


def _share(keep: float, size: int) -> int:
    return max(1, math.floor(keep * size + 0.5))


# -- a share, or a number of rows ------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("sizes", [[64] + 14 * [32], 14 * [32] + [64], [5, 40, 1, 40, 7]])
def test_a_share_is_one_of_each_batch(rule: str, sizes: list[int], kind: str) -> None:
    batches = batches_of(_loader(sizes, kind), rule, 0.25)
    chosen = ids_of(batches)
    assert [len(ids) for ids in chosen] == [_share(0.25, size) for size in sizes]
    for ids, rows in zip(chosen, _cut(sizes), strict=True):
        assert set(ids) <= set(rows)
        assert len(set(ids)) == len(ids)
    if kind != "stream":
        assert len(batches) == len(sizes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", RULES)
def test_a_number_of_rows_is_had_from_every_batch_but_a_last_one(rule: str, kind: str) -> None:
    batches = batches_of(_loader([20, 9, 30, 8, 7], kind), rule, 8)
    assert [len(ids) for ids in ids_of(batches)] == [8] * 4
    if kind != "stream":
        assert len(batches) == 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", RULES)
def test_a_batch_with_fewer_rows_in_the_middle_is_refused(rule: str, kind: str) -> None:
    batches = batches_of(_loader([20, 7, 20], kind), rule, 8)
    walk = iter(batches)
    assert len(next(walk).ids) == 8
    message = r"keep=8 rows, but the candidate batch has 7\..*keep as a share.*Only the last"
    with pytest.raises(rd.DataError, match=message):
        next(walk)


@pytest.mark.parametrize("kind", ["sampler", "opaque"])
@pytest.mark.parametrize("rule", RULES)
def test_workers_see_the_same(rule: str, kind: str) -> None:
    sizes = [20, 9, 31, 8, 3]
    workers = batches_of(_loader(sizes, kind, num_workers=2), rule, 0.3)
    assert ids_of(workers) == ids_of(batches_of(_loader(sizes, kind), rule, 0.3))
    last = batches_of(_loader(sizes, kind, num_workers=2), rule, 8)
    assert [len(ids) for ids in ids_of(last)] == [8] * 4
    middle = batches_of(_loader([20, 3, 20, 20], kind, num_workers=2), rule, 8)
    with pytest.raises(rd.DataError, match="the candidate batch has 3"):
        ids_of(middle)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", RULES)
def test_several_updates_of_each_batch(rule: str, kind: str) -> None:
    scoring = rd.Scoring(updates_per_scoring=3)
    sizes = [20, 3, 7, 30]
    batches = batches_of(_loader(sizes, kind), rule, 0.3, scoring=scoring)
    rows = [k for k in (6, 1, 2, 9) for _ in range(3)]
    assert [len(ids) for ids in ids_of(batches)] == rows
    batches = batches_of(_loader([20, 12, 11], kind), rule, 4, scoring=scoring)
    assert [len(ids) for ids in ids_of(batches)] == [4] * 6
    batches = batches_of(_loader([20, 11, 12], kind), rule, 4, scoring=scoring)
    message = "updates_per_scoring=3 of 4 rows each from 11 candidates.*Only the last"
    with pytest.raises(rd.DataError, match=message):
        ids_of(batches)


def test_rounding_up_does_not_ask_for_more_rows_than_there_are() -> None:
    scoring = rd.Scoring(updates_per_scoring=4)
    batches = batches_of(_loader([7, 6, 4]), "rho", 0.25, scoring=scoring)  # 1.75 is 2, 4 · 2 > 7
    assert [len(ids) for ids in ids_of(batches)] == [1] * 12
    batches = batches_of(_loader([8, 3, 8]), "rho", 0.25, scoring=scoring)
    with pytest.raises(rd.DataError, match=r"at least a row for each update.*batch has 3"):
        ids_of(batches)
    with pytest.raises(rd.ConfigurationError, match=r"updates_per_scoring=4 of a share of 0.3"):
        batches_of(_loader([8, 8]), "rho", 0.3, scoring=scoring)


def test_shadows_choose_as_many_of_each_batch() -> None:
    shadows = {"loss": rd.selector("train_loss")}
    batches = batches_of(_loader([20, 4, 10]), "rho", 0.5, shadows=shadows)
    assert [len(chosen.shadows["loss"]) for chosen in batches] == [10, 2, 5]


def test_a_gate_lets_through_a_share_of_each_batch() -> None:
    held_out = list(DataLoader(Examples(), batch_size=64))
    sizes = [40, 10, 24, 40, 16] * 3
    rows = _cut(sizes[:5]) * 3
    for make in (DataLoader, Opaque):
        loader = make(DATA, batch_sampler=rows)
        batches = batches_of(loader, "rho", 0.25, gate="auto", held_out=held_out)
        assert [len(ids) for ids in ids_of(batches)] == [_share(0.25, size) for size in sizes]


def test_a_gate_that_selects_from_fewer_keeps_the_share_of_all() -> None:
    held_out = list(DataLoader(Examples(), batch_size=64))
    gate = rd.Gate()
    gate.state, gate.candidates = "selecting", 16
    loader = _loader([40, 20, 32])
    batches = batches_of(loader, "rho", 0.25, gate=gate, held_out=held_out)
    chosen = ids_of(batches)
    assert [len(ids) for ids in chosen] == [10, 5, 8]
    firsts = [rows[:16] for rows in _cut([40, 20, 32])]
    assert all(set(ids) <= set(rows) for ids, rows in zip(chosen, firsts, strict=True))


# -- a loader that cuts evenly ---------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*set_vital")
@pytest.mark.parametrize("make", [DataLoader, Opaque, StatefulDataLoader])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("keep", [0.5, 5])
def test_the_short_rest_of_an_even_cut_is_left_out(make: Any, rule: str, keep: float) -> None:
    loader = make(DATA, batch_size=20, sampler=range(50))
    batches = batches_of(loader, rule, keep)
    assert len(batches) == 2
    assert [max(ids) < 40 for ids in ids_of(batches)] == [True, True]


def _readable(items: list[Any]) -> Any:
    """Leaves out rows whose id is in the second fifth of 20, or a whole hundred."""
    return default_collate([i for i in items if not (4 <= i.ids % 20 < 8 or i.ids == 40)])


@pytest.mark.parametrize("make", [DataLoader, Opaque])
@pytest.mark.parametrize("workers", [0, 2])
def test_rows_left_out_by_the_collate_function_make_no_batch_short(make: Any, workers: int) -> None:
    def loader(rows: int) -> Any:
        options: dict[str, Any] = {"collate_fn": _readable, "num_workers": workers}
        return make(DATA, batch_size=20, sampler=range(rows), **options)

    for rule, keep in (("rho", 0.25), ("rho", 4)):
        for rows in (60, 70):
            batches = batches_of(loader(rows), rule, keep)
            chosen = ids_of(batches)
            assert len(batches) == len(chosen) == 3
            assert [len(ids) for ids in chosen] == [4, 4, 4]  # of 16, 16 and 15 rows
    chosen = ids_of(batches_of(loader(70), "uniform", 0.25))
    assert len(chosen) == 3
    assert all(ids for ids in chosen)


def _first_half_is_gone(items: list[Any]) -> Any:
    return default_collate([item for item in items if int(item.ids) >= 20 or item.ids < 3])


def test_rows_drawn_before_loading_that_do_not_come() -> None:
    loader = DataLoader(DATA, batch_size=20, sampler=range(40), collate_fn=_first_half_is_gone)
    message = r"drew its rows before they were loaded, and \d of them came.*Subset"
    with pytest.raises(rd.DataError, match=message):
        ids_of(batches_of(loader, "uniform", 19))
    assert len(ids_of(batches_of(loader, "rho", 3))) == 2


def test_rows_drawn_before_loading_are_shared_out_among_updates() -> None:
    loader = DataLoader(DATA, batch_size=20, sampler=range(60), collate_fn=_readable)
    scoring = rd.Scoring(updates_per_scoring=3)
    batches = batches_of(loader, "uniform", 0.3, scoring=scoring)
    sizes = [len(ids) for ids in ids_of(batches)]
    assert len(sizes) == 9
    for part in (sizes[:3], sizes[3:6], sizes[6:]):
        assert max(part) - min(part) <= 1
        assert sum(part) in range(13, 17)  # of 18 drawn, 2 to 5 do not come


@pytest.mark.parametrize("rule", ["rs2", "infobatch"])
def test_rules_by_epoch_name_what_they_cannot_plan(rule: str) -> None:
    keep = 1.0 if rule == "infobatch" else 0.5
    options = {"total_steps": 10} if rule == "infobatch" else {}
    with pytest.raises(rd.ConfigurationError, match="batches of varying size"):
        batches_of(_loader([20, 30]), rule, keep, **options)
    loader = DataLoader(DATA, batch_size=20, collate_fn=_readable)
    with pytest.raises(rd.DataError, match=r"planned \d+ rows for an update, but the batch has"):
        ids_of(batches_of(loader, rule, keep, **options))


@pytest.mark.parametrize("rows", [50, 12])
def test_the_short_rest_of_a_stream_is_left_out(rows: int) -> None:
    loader = DataLoader(Stream([DATA[i] for i in range(rows)]), batch_size=20)
    assert [len(ids) for ids in ids_of(batches_of(loader, "rho", 0.5))] == ([10, 10], [6])[
        rows == 12
    ]


class Shared(IterableDataset[rd.Candidates]):
    """Each worker streams its own rows, so each ends in a short batch."""

    def __iter__(self) -> Iterator[Any]:
        info = torch.utils.data.get_worker_info()
        assert info is not None
        return (DATA[i] for i in range(info.id, 50, info.num_workers))


def test_every_workers_short_batch_of_a_stream_is_handed_out() -> None:
    loader = DataLoader(Shared(), batch_size=20, num_workers=2)
    assert [len(ids) for ids in ids_of(batches_of(loader, "rho", 0.5))] == [10, 10, 3, 3]
    with pytest.raises(rd.DataError, match="keep=8 rows, but the candidate batch has 5"):
        ids_of(batches_of(loader, "rho", 8))


# -- passes that hand out nothing ------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["uniform", "rho"])
def test_a_pass_that_hands_out_nothing_says_why(rule: str) -> None:
    few = DataLoader(DATA, batch_size=N + 1, drop_last=True)
    with pytest.raises(rd.DataError, match=r"the loader gave no batch.*drop_last=True"):
        ids_of(batches_of(few, rule))
    with pytest.raises(rd.DataError, match="the loader gave no batch"):
        ids_of(batches_of([], rule))
    with pytest.raises(rd.DataError, match=r"hands out nothing: keep=8 rows, but .* has 7"):
        ids_of(batches_of(_loader([7]), rule, 8))
    once = batches_of(iter(_loader([20, 20], "list")), rule)
    assert len(ids_of(once)) == 2
    with pytest.raises(rd.DataError, match="an iterator that is used up"):
        ids_of(once)


def test_a_pass_that_is_resumed_at_its_end_hands_out_nothing() -> None:
    batches = batches_of(_loader([20, 10]))
    states = [batches.state_dict() for _ in batches]
    again = batches_of(_loader([20, 10]))
    again.load_state_dict(states[-1])
    assert ids_of(again) == []
    assert len(ids_of(again)) == 2


# -- resuming --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("was", "now", "message"),
    [
        (20, 40, "candidate batches of 20 rows, but this one has candidate batches of 40 rows"),
        (20, None, "candidate batches of 20 rows, but this one has candidate batches of varying"),
        (None, 20, "of varying size, but this one has candidate batches of 20 rows"),
    ],
)
def test_a_state_of_another_batch_size_is_refused(
    was: int | None, now: int | None, message: str
) -> None:
    def make(size: int | None) -> Any:
        loader = _loader([20, 20]) if size is None else DataLoader(DATA, batch_size=size)
        return batches_of(loader, keep=5)

    batches = make(was)
    next(iter(batches))
    with pytest.raises(rd.ConfigurationError, match=f"batch size: {was} in the state, {now} here"):
        make(now).load_state_dict(batches.state_dict())
    with pytest.raises(rd.ConfigurationError, match=message):
        make(now)._passes.load_state_dict(batches._passes.state_dict(again=False))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_rows_are_handed_out_as_without_a_stop(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=8), label="sizes")
    kind = data.draw(st.sampled_from(KINDS), label="kind")
    rule = data.draw(st.sampled_from(RULES), label="rule")
    updates = data.draw(st.sampled_from([1, 1, 2, 3]), label="updates")
    keep: float = data.draw(
        st.one_of(st.integers(1, 12), st.floats(0.02, 1 / updates)), label="keep"
    )
    scoring = rd.Scoring(updates_per_scoring=updates)

    def make() -> Any:
        return batches_of(_loader(sizes, kind), rule, keep, scoring=scoring)

    batches, ids, states = make(), [], [make().state_dict()]
    needed = updates * keep if isinstance(keep, int) else updates
    enough = [size >= needed for size in sizes]
    if not all(enough[:-1]) or not any(enough):
        with pytest.raises(rd.DataError):
            ids_of(batches)
        return
    for _ in range(2):
        for chosen in batches:
            ids.append(chosen.ids.tolist())
            states.append(batches.state_dict())
    whole = [rows for rows, fits in zip(_cut(sizes), enough, strict=True) if fits]
    assert len(ids) == 2 * updates * len(whole)
    for given_out, rows in zip(ids, [r for r in whole * 2 for _ in range(updates)], strict=True):
        size = len(rows)
        k = keep if isinstance(keep, int) else max(1, min(_share(keep, size), size // updates))
        assert len(given_out) == k
        assert set(given_out) <= set(rows)
    stop = data.draw(st.integers(0, len(ids)), label="stop")
    again = make()
    again.load_state_dict(states[stop])
    rest = ids_of(again)
    if stop < len(ids) // 2 or (stop == len(ids) // 2 and stop):
        rest += ids_of(again)
    assert rest == ids[stop:]
