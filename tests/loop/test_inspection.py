"""Labels of another store are noticed as batches pass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import reducible as rd
from inspection_toys import N_B, K, Labelled, N, Unlabelled, X, Y, linear_model, walk_passes
from reducible.loop import inspection
from reducible.loop.inspection import LabelInspection
from reducible.stores import LABEL_SAMPLE, fingerprint, label_sample, label_values

QUIET: Any = {"epochs": 1, "progress": False}


def _store(labels: Tensor = Y) -> rd.IrreducibleLossStore:
    holdout = rd.WithIds(torch.utils.data.TensorDataset(X[:8] + 1, Y[:8]))
    return rd.fit_irreducible_loss(linear_model, holdout, rd.WithIds(Labelled(labels)), **QUIET)


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
    model = options.pop("model", None) or linear_model()
    options = {"keep": K} | options
    return rd.SelectingLoader(loader, model, rd.selector(rule), store=store, **options)


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
        walk_passes(lambda: _loop(rd.WithIds(Unlabelled(Y)), _made(sample, mark=mark)), 2)
    assert len(found) == 1


def test_batches_without_labels_are_said_once() -> None:
    class Inputs(Unlabelled):
        def __getitem__(self, index: int) -> Any:
            return (X[index], X[index], self.y[index])

    loop = _loop(rd.WithIds(Inputs(Y)), _store(), "irreducible_loss")
    with pytest.warns(UserWarning, match="cannot be checked: the batches carry no labels") as found:
        walk_passes(lambda: loop, 2)
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
