"""Labels of another store and rows that workers double are noticed as batches pass."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

import reducible as rd
from reducible.loop import inspection
from reducible.loop.build import check_data
from reducible.loop.inspection import Inspection, LabelInspection, WorkerInspection
from reducible.stores import LABEL_SAMPLE, fingerprint, label_sample, label_values

N, N_B, K = 96, 16, 4
QUIET: Any = {"epochs": 1, "progress": False}
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(N) * 7 % 3


class Unlabelled(Dataset[Any]):
    """Rows with labels, but no attribute that tells them beforehand."""

    def __init__(self, labels: Tensor) -> None:
        self.y = labels

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> Any:
        return (X[index], self.y[index])


class Labelled(Unlabelled):
    @property
    def targets(self) -> Tensor:
        return self.y


def _model() -> nn.Module:
    return nn.Linear(4, 3)


def _store(labels: Tensor = Y) -> rd.IrreducibleLossStore:
    holdout = rd.WithIds(torch.utils.data.TensorDataset(X[:8] + 1, Y[:8]))
    return rd.fit_irreducible_loss(_model, holdout, rd.WithIds(Labelled(labels)), **QUIET)


def _made(
    sample: dict[str, Any] | None, *, mark: str | None = None, header: Any = None
) -> rd.IrreducibleLossStore:
    mark = fingerprint(torch.arange(N), Y) if mark is None else mark
    header = {} if sample is None else {LABEL_SAMPLE: sample}
    return rd.IrreducibleLossStore.from_tensor(torch.zeros(N), fingerprint=mark, header=header)


def _loop(data: Any, store: Any, rule: str = "rho", **options: Any) -> Any:
    loader = options.pop("loader", None)
    if loader is None:
        loader = DataLoader(data, batch_size=N_B)
    model = options.pop("model", None) or _model()
    options = {"keep": K} | options
    return rd.SelectingLoader(loader, model, rd.selector(rule), store=store, **options)


def _passes(make: Callable[[], Any], count: int) -> None:
    loop = make()
    for _ in range(count):
        list(loop)


# -- the sample -----------------------------------------------------------------------------------


def test_a_fitted_store_keeps_the_labels_of_a_few_rows(tmp_path: Path) -> None:
    store = _store()
    assert store.header[LABEL_SAMPLE] == {"ids": list(range(N)), "labels": Y.tolist()}
    store.save(tmp_path / "store")
    loaded = rd.IrreducibleLossStore.load(tmp_path / "store")
    assert loaded.header[LABEL_SAMPLE] == store.header[LABEL_SAMPLE]


def test_the_sample_is_of_the_same_rows_in_any_order_and_of_all_parts_of_the_data() -> None:
    ids = torch.arange(50_000) * 3
    labels = ids % 11
    order = torch.randperm(50_000, generator=torch.Generator().manual_seed(0))
    sample = label_sample(ids, labels)
    assert label_sample(ids[order], labels[order].int()) == sample
    found = torch.tensor(sample["ids"])
    assert found.unique().numel() == 1024
    assert bool(torch.isin(found, ids).all())
    assert sample["labels"] == (found % 11).tolist()
    tenths = torch.bincount(found // 15_000, minlength=10)  # 102 expected, deviation 10
    assert 60 < int(tenths.min()) <= int(tenths.max()) < 145
    assert json.loads(json.dumps(sample)) == sample


def test_labels_are_compared_by_value() -> None:
    several = torch.tensor([[1, 0, 1], [0, 0, 1]])
    assert label_values(several.int()) == label_values(several.float())
    assert label_values(several)[0] != label_values(several)[1]
    assert label_values(torch.tensor([2, 0], dtype=torch.uint8)) == label_values(
        torch.tensor([2.0, 0.0])
    )


# -- labels of passing batches --------------------------------------------------------------------


def test_a_store_of_the_same_data_passes_without_a_word() -> None:
    for data in (Unlabelled(Y), Unlabelled(Y.int()), Labelled(Y)):
        loop = _loop(rd.WithIds(data), _store())
        assert sum(1 for _ in loop) == sum(1 for _ in loop) == N // N_B


@pytest.mark.parametrize("rule", ["rho", "uniform"])
def test_a_store_of_other_labels_is_refused_though_the_data_set_tells_none(rule: str) -> None:
    other = Y.clone()
    other[3] = (Y[3] + 1) % 3
    loop = _loop(rd.WithIds(Unlabelled(other)), _store(), rule, keep=N_B)
    wanted = rf"made for other labels: 1 of 16 .*id 3: {int(Y[3])} there, {int(other[3])} here"
    with pytest.raises(rd.StoreError, match=wanted):
        list(loop)


def test_several_labels_are_compared_too() -> None:
    several = torch.stack([Y, Y + 1], dim=1)

    class Several(rd.Task):
        def targets(self, batch: Any) -> Tensor:
            return batch[1]

        def forward(self, model: nn.Module, batch: Any, *, features: bool = False) -> Any:
            raise NotImplementedError

        def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
            raise NotImplementedError

    def look(labels: Tensor) -> None:
        part = LabelInspection(_made(label_sample(torch.arange(N), several)), Several())
        part.look(torch.arange(4), (X[:4], labels[:4]))

    look(several.float())
    with pytest.raises(rd.StoreError, match="4 of 4"):
        look(several.flip(1))


def test_mappings_whose_ids_are_known_only_in_the_batch_are_compared() -> None:
    def loader(labels: Tensor) -> list[Any]:
        rows = torch.arange(N).split(N_B)
        return [{"idx": r, "x": X[r], "label": labels[r]} for r in rows]

    def run(labels: Tensor) -> None:
        task = rd.Classification(inputs="x")
        list(_loop(None, _store(), loader=loader(labels), ids="idx", task=task))

    run(Y)
    with pytest.raises(rd.StoreError, match="made for other labels"):
        run(Y.flip(0))


class Counting:
    """A task that counts how often it is asked for labels."""

    def __init__(self) -> None:
        self.asked = 0
        self.task = rd.Classification(targets=self.labels)

    def labels(self, batch: Any) -> Tensor:
        self.asked += 1
        return batch[1]


def test_when_all_of_the_sample_has_passed_nothing_is_looked_at() -> None:
    few = {"ids": [2, 18], "labels": Y[[2, 18]].tolist()}
    counting = Counting()
    loop = _loop(rd.WithIds(Unlabelled(Y)), _made(few), "uniform", task=counting.task, keep=N_B)
    asked = [(chosen, counting.asked)[1] for chosen in loop]
    assert asked == [1, 2, 2, 2, 2, 2]
    list(loop)
    assert counting.asked == 2


def test_labels_are_looked_for_in_so_many_batches_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "_BATCHES", 2)
    counting = Counting()
    loop = _loop(rd.WithIds(Unlabelled(Y)), _store(), "uniform", task=counting.task, keep=N_B)
    list(loop)
    assert counting.asked == 2


@pytest.mark.parametrize(
    ("sample", "mark", "said"),
    [
        (None, None, "neither its fingerprint"),
        (None, fingerprint(torch.arange(N)), "neither its fingerprint"),
        ({"ids": [500], "labels": [1]}, None, "none of the rows"),
    ],
    ids=["no sample", "no labels", "other rows"],
)
def test_where_nothing_can_be_checked_that_is_said_once(sample: Any, mark: Any, said: str) -> None:
    with pytest.warns(UserWarning, match="cannot be checked: " + said) as found:
        _passes(lambda: _loop(rd.WithIds(Unlabelled(Y)), _made(sample, mark=mark)), 2)
    assert len(found) == 1


def test_batches_without_labels_are_said_once() -> None:
    class Inputs(Unlabelled):
        def __getitem__(self, index: int) -> Any:
            return (X[index], X[index], self.y[index])

    loop = _loop(rd.WithIds(Inputs(Y)), _store(), "irreducible_loss")
    with pytest.warns(UserWarning, match="cannot be checked: the batches carry no labels") as found:
        _passes(lambda: loop, 2)
    assert len(found) == 1


def test_a_store_without_fingerprint_is_left_unchecked_as_it_asks() -> None:
    list(_loop(rd.WithIds(Unlabelled(Y)), _made(None, mark="")))


@pytest.mark.parametrize("what", ["ids", "labels"])
def test_nothing_on_an_accelerator_is_waited_for(what: str) -> None:
    """The meta device holds no values, so that reading one would raise."""
    ids, y = torch.arange(4), Y[:4]
    if what == "ids":
        ids = ids.to("meta")
    else:
        y = y.to("meta")
    part = LabelInspection(_store(), rd.Classification())
    with pytest.warns(UserWarning, match="on an accelerator already"):
        part.look(ids, (X[:4], y))
    assert part.done


def test_what_was_compared_before_an_accelerator_is_enough() -> None:
    part = LabelInspection(_store(), rd.Classification())
    part.look(torch.arange(4), (X[:4], Y[:4]))
    part.look(torch.arange(4, 8), (X[:4], Y[4:8].to("meta")))
    assert part.done


# -- workers that double rows ---------------------------------------------------------------------


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
    return rd.SelectingLoader(loader, _model(), rd.selector("uniform"), keep=2)


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
        _passes(lambda: loop, 2)
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
    loop = rd.SelectingLoader(loader, _model(), rd.selector("uniform"), keep=2)
    passing = iter(loop)
    for _ in range(3):
        next(passing)
    state = loop.state_dict()
    again = rd.SelectingLoader(loader, _model(), rd.selector("uniform"), keep=2)
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


# -- when enough was seen -------------------------------------------------------------------------


def _sampled(ids: list[int]) -> LabelInspection:
    sample = {"ids": ids, "labels": Y[ids].tolist()}
    return LabelInspection(_made(sample), rd.Classification())


def test_labels_are_done_with_the_last_of_the_sample() -> None:
    part = _sampled([1, 5])
    part.look(torch.arange(4), (X[:4], Y[:4]))
    assert not part.done
    part.look(torch.arange(4, 8), (X[4:8], Y[4:8]))
    assert part.done


def test_a_label_is_compared_once() -> None:
    part = _sampled([1, 5])
    for wrong in (0, 1):  # as where a batch is augmented the second time
        part.look(torch.arange(4), (X[:4], Y[:4] + wrong))


def test_five_of_the_labels_that_differ_are_shown() -> None:
    part = _sampled(list(range(7)))
    with pytest.raises(rd.StoreError, match="7 of 7 labels") as told:
        part.look(torch.arange(7), (X[:7], Y[:7] + 1))
    assert str(told.value).count(" there, ") == 5


def test_labels_are_looked_for_in_2000_batches() -> None:
    part = _sampled([90])
    ids, batch = torch.arange(2), (X[:2], Y[:2])
    for _ in range(1999):
        part.look(ids, batch)
    assert not part.done
    with pytest.warns(UserWarning, match="none of the rows"):
        part.look(ids, batch)
    assert part.done


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
