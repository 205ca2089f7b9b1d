"""Rows that workers double are noticed as batches pass."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

import reducible as rd
from inspection_toys import Labelled, N, X, Y, linear_model, walk_passes
from reducible.loop import inspection
from reducible.loop.build import check_data
from reducible.loop.inspection import Inspection, WorkerInspection


class Stream(IterableDataset[rd.Candidates]):
    """Rows 0 … N−1 in one of several ways of not sharing them among workers, or of sharing."""

    def __init__(self, how: str, rows: int = N) -> None:
        self.how, self.rows = how, rows

    def __iter__(self) -> Iterator[rd.Candidates]:
        info = get_worker_info()
        me, all_of_us = (0, 1) if info is None else (info.id, info.num_workers)
        order = torch.arange(self.rows)
        seeded = torch.Generator().manual_seed(me)
        if self.how == "shared":
            order = order[me::all_of_us]
        elif self.how == "shuffled":
            order = order[torch.randperm(self.rows, generator=seeded)]
        elif self.how == "overlapping":
            order = torch.cat([order[: self.rows // 4], order[self.rows // 4 :][me::all_of_us]])
        elif self.how == "oversampling":  # rare rows come often, and never twice in a batch
            often = order[:4].repeat(self.rows // 8)
            mine = order[4:][torch.randperm(self.rows - 4, generator=seeded)][: often.numel()]
            order = torch.stack([often, mine], dim=1).flatten()
        for i in order.tolist():
            yield rd.Candidates(torch.tensor(i), (X[i % N], Y[i % N]))


def _stream(how: str, workers: int = 2, rows: int = N, batch_size: int = 8) -> Any:
    loader = DataLoader(Stream(how, rows), batch_size=batch_size, num_workers=workers)
    return rd.SelectingLoader(loader, linear_model(), rd.selector("uniform"), keep=2)


def test_workers_that_yield_the_same_rows_are_noticed_at_once() -> None:
    loop = _stream("doubled", rows=256, batch_size=64)
    with pytest.raises(rd.DataError, match=r"two of the loader's 2 workers.*get_worker_info\(\)"):
        list(loop)
    assert loop.step == 1


def test_the_first_rows_may_be_the_same_of_purpose(monkeypatch: pytest.MonkeyPatch) -> None:
    """63 rows are not yet enough, 64 are."""
    monkeypatch.setattr(inspection, "_ROWS", 10**6)
    for first, error in ((63, False), (64, True)):
        part = WorkerInspection(DataLoader(Stream("shared"), num_workers=2))
        part.look(torch.arange(first))
        if error:
            with pytest.raises(rd.DataError, match="the same rows of Stream"):
                part.look(torch.arange(first))
        else:
            part.look(torch.arange(first))


MORE_THAN_CORES = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@MORE_THAN_CORES
@pytest.mark.parametrize("workers", [2, 3])
def test_workers_that_shuffle_all_rows_are_noticed_at_the_end_of_a_pass(workers: int) -> None:
    with pytest.raises(rd.DataError, match="same rows of Stream"):
        list(_stream("shuffled", workers))


def test_rows_that_some_workers_share_are_warned_of_once() -> None:
    loop = _stream("overlapping", rows=128)
    with pytest.warns(UserWarning, match=r"32 ids came from two .*get_worker_info\(\)") as found:
        walk_passes(lambda: loop, 2)
    assert len(found) == 1


@MORE_THAN_CORES
@pytest.mark.parametrize(
    ("how", "workers"), [("shared", 2), ("shared", 3), ("oversampling", 2), ("doubled", 1)]
)
def test_rows_that_are_shared_out_or_meant_to_repeat_pass(how: str, workers: int) -> None:
    assert sum(1 for _ in _stream(how, workers)) >= 10


def test_a_pass_that_is_gone_on_with_is_not_compared() -> None:
    """Where its workers' batches begin is not known."""
    loader = DataLoader(Stream("shared"), batch_size=8, num_workers=2)
    loop = rd.SelectingLoader(loader, linear_model(), rd.selector("uniform"), keep=2)
    passing = iter(loop)
    for _ in range(3):
        next(passing)
    state = loop.state_dict()
    again = rd.SelectingLoader(loader, linear_model(), rd.selector("uniform"), keep=2)
    again.load_state_dict(state)
    rest = [c.ids.tolist() for c in again]
    assert rest == [c.ids.tolist() for c in passing]
    list(again)


def test_what_is_kept_of_a_long_pass_is_bounded() -> None:
    part = WorkerInspection(DataLoader(Stream("shared"), num_workers=2))
    batches = 0
    while not part.done:
        part.look(torch.arange(batches * 512, (batches + 1) * 512))
        batches += 1
    assert batches == 4096 // 512
    assert part._given == []


def test_rows_of_a_long_pass_that_come_in_another_order_are_warned_of() -> None:
    part = WorkerInspection(DataLoader(Stream("shuffled"), num_workers=2))
    drawn = [
        torch.randperm(5000, generator=torch.Generator().manual_seed(s))[:2048] for s in (0, 1)
    ]
    *others, last = (
        rows for pair in zip(*(d.split(512) for d in drawn), strict=True) for rows in pair
    )
    for rows in others:
        part.look(rows)
    shared = set(drawn[0].tolist()) & set(drawn[1].tolist())
    assert len(shared) > 500
    with pytest.warns(UserWarning, match=f"{len(shared)} ids came from two"):
        part.look(last)
    assert part.done


def test_a_pass_broken_off_says_nothing_of_the_next() -> None:
    part = WorkerInspection(DataLoader(Stream("shared"), num_workers=2))
    looked = Inspection(workers=part)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            looked.begin(resuming=False)
            looked.look(torch.arange(8), None)  # of worker 0, each time
        looked.look(torch.arange(8, 16), None)
        looked.end()


def test_map_style_loaders_are_not_watched() -> None:
    data = rd.WithIds(Labelled(Y))
    assert not WorkerInspection.watches(DataLoader(data, num_workers=2))
    assert not WorkerInspection.watches(DataLoader(Stream("doubled"), num_workers=1))
    assert not WorkerInspection.watches([])
    assert WorkerInspection.watches(DataLoader(Stream("doubled"), num_workers=2))


def test_chained_streams_that_tell_no_length_are_taken() -> None:
    chained = torch.utils.data.ChainDataset([Stream("split"), Stream("split")])
    with pytest.raises(TypeError):
        len(chained)
    assert not check_data(DataLoader(chained, batch_size=4), None, None)


def _two_workers() -> WorkerInspection:
    return WorkerInspection(DataLoader(Stream("shared"), num_workers=2))


@pytest.mark.parametrize("rows", [1, 3])
def test_a_short_pass_is_compared_at_its_end(rows: int) -> None:
    part = _two_workers()
    part.look(torch.arange(rows))
    part.look(torch.arange(rows).flip(0))
    with pytest.raises(rd.DataError, match="two of the loader's 2 workers yield the same rows"):
        part.end()


def test_ids_on_an_accelerator_end_the_comparison_of_workers() -> None:
    part = _two_workers()
    part.look(torch.arange(4).to("meta"))
    assert part.done


def test_a_pass_is_compared_from_its_own_beginning() -> None:
    part = _two_workers()
    looked = Inspection(workers=part)
    looked.begin(resuming=False)
    looked.look(torch.arange(3), None)
    looked.begin(resuming=False)
    assert part._given == [[], []]
    looked.look(torch.arange(5), None)
    assert part._given == [[0, 1, 2, 3, 4], []]
    looked.look(torch.arange(5, 8), None)
    looked.end()


def test_after_enough_rows_workers_are_looked_at_no_more() -> None:
    looked = Inspection(workers=_two_workers())
    looked.begin(resuming=False)
    for batch in range(20):
        looked.look(torch.arange(batch * 256, (batch + 1) * 256), None)
