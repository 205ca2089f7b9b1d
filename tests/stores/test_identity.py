"""Which example is which: ids through subsets, loaders and workers, overlap, fingerprints."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import reducible as rd
from reducible.lab.data import TensorSet
from reducible.stores import (
    fingerprint,
    has_distinct_ids,
    ids_of,
    labels_of,
    origin_of,
    require_disjoint,
    require_ids,
)


class Pairs(Dataset[tuple[torch.Tensor, int]]):
    """Map-style: item i is (tensor of i, i mod 3); counts how it was asked."""

    def __init__(self, n: int = 12) -> None:
        self.n = n
        self.targets = [i % 3 for i in range(n)]

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.tensor([float(index)]), self.targets[index]


class Rows(Dataset[dict[str, Any]]):
    """As Hugging Face data sets are: dict items, and many at once by ``__getitems__``."""

    def __init__(self, n: int = 12) -> None:
        self.n = n
        self.asked_at_once = 0

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": torch.tensor([float(index)]), "label": index % 3, "text": f"row {index}"}

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        self.asked_at_once += 1
        return [self[i] for i in indices]


def _batches(dataset: Any, **options: Any) -> list[rd.Candidates]:
    loader = DataLoader(dataset, batch_size=4, **options)
    out = list(loader)
    assert all(type(b) is rd.Candidates for b in out)  # default collate keeps the type
    return out


def test_an_item_carries_its_id() -> None:
    ids, (x, y) = rd.WithIds(Pairs())[5]
    assert ids.item() == 5
    assert ids.dtype == torch.int64
    assert (x.item(), y) == (5.0, 2)


def test_collated_batches_keep_ids_beside_their_rows() -> None:
    batches = _batches(rd.WithIds(Pairs()), shuffle=True, generator=torch.Generator())
    assert [b.ids.dtype for b in batches] == [torch.int64] * 3
    for ids, (x, y) in batches:
        assert x.squeeze(1).tolist() == ids.tolist()
        assert y.tolist() == (ids % 3).tolist()
    assert torch.cat([b.ids for b in batches]).sort().values.tolist() == list(range(12))


def test_a_subset_has_the_same_ids_inside_and_outside() -> None:
    d, positions = Pairs(), [7, 2, 9, 4]
    outside, inside = Subset(rd.WithIds(d), positions), rd.WithIds(Subset(d, positions))
    for dataset in (outside, inside):
        assert ids_of(dataset).tolist() == positions
        (batch,) = _batches(dataset)
        assert batch.ids.tolist() == positions
        assert batch.batch[0].squeeze(1).tolist() == [7.0, 2.0, 9.0, 4.0]
        assert origin_of(dataset) is d
        labels = labels_of(dataset)
        assert labels is not None
        assert labels.tolist() == [1, 2, 0, 1]


def test_subsets_of_subsets() -> None:
    d = Pairs()
    inner, outer = [7, 2, 9, 4], [3, 0]
    for dataset in (
        rd.WithIds(Subset(Subset(d, inner), outer)),
        Subset(rd.WithIds(Subset(d, inner)), outer),
        Subset(Subset(rd.WithIds(d), inner), outer),
    ):
        assert ids_of(dataset).tolist() == [4, 7]
        assert _batches(dataset)[0].ids.tolist() == [4, 7]
        labels = labels_of(dataset)
        assert labels is not None
        assert labels.tolist() == [1, 1]


def test_many_rows_are_asked_for_at_once_where_the_data_set_can() -> None:
    rows = Rows()
    batches = _batches(rd.WithIds(rows))
    assert rows.asked_at_once == 3
    assert batches[1].ids.tolist() == [4, 5, 6, 7]
    assert batches[1].batch["text"] == [f"row {i}" for i in range(4, 8)]
    assert batches[1].batch["label"].tolist() == [1, 2, 0, 1]
    subset = _batches(Subset(rd.WithIds(rows), [11, 3]))
    assert subset[0].batch["text"] == ["row 11", "row 3"]
    assert subset[0].ids.tolist() == [11, 3]


def test_pickles_with_its_base() -> None:
    data = rd.WithIds(Subset(Pairs(), [5, 1]))
    copy = pickle.loads(pickle.dumps(data))
    assert copy.ids.tolist() == [5, 1]
    assert copy[0].ids.item() == 5
    assert copy.origin is copy.dataset.dataset
    batch = rd.Candidates(torch.tensor([2**53 + 1]), {"x": torch.ones(1)})
    assert pickle.loads(pickle.dumps(batch)).ids.item() == 2**53 + 1


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_hand_over_the_same_candidates(start: str) -> None:
    # TensorDataset, as spawned workers must import what they unpickle
    base = TensorDataset(torch.arange(8.0), torch.arange(8))
    alone = _batches(rd.WithIds(base))
    apart = _batches(rd.WithIds(base), num_workers=1, multiprocessing_context=start)
    assert [b.ids.tolist() for b in apart] == [b.ids.tolist() for b in alone]
    assert [b.batch[0].tolist() for b in apart] == [b.batch[0].tolist() for b in alone]


def test_what_cannot_carry_ids_is_refused() -> None:
    class Stream(IterableDataset[int]):
        def __iter__(self) -> Iterator[int]:
            return iter([1])

    with pytest.raises(rd.DataError, match=r"needs a map-style data set.*got Stream"):
        rd.WithIds(Stream())
    with pytest.raises(rd.DataError, match="the data set Pairs is empty"):
        rd.WithIds(Pairs(0))
    with pytest.raises(rd.DataError, match=r"Pairs carries no ids: wrap it as reducible\.WithIds"):
        ids_of(Subset(Pairs(), [1]))


def test_labels_that_are_no_labels_are_not_taken() -> None:
    class Odd(Pairs):
        targets: Any

    odd = Odd()
    for wrong in (None, ["cat"] * 12, [[1, 2]] * 12, [1, 2]):
        odd.targets = wrong
        assert labels_of(rd.WithIds(odd)) is None


# -- overlap --------------------------------------------------------------------------------------


def test_overlap_is_found_and_named_however_the_cut_was_made() -> None:
    d = Pairs()
    outer = rd.WithIds(d)
    for first in (Subset(outer, [0, 1, 2, 3]), rd.WithIds(Subset(d, [0, 1, 2, 3]))):
        for second in (Subset(outer, [3, 4, 2]), rd.WithIds(Subset(d, [3, 4, 2]))):
            with pytest.raises(rd.DataError, match=r"share 2 examples of one data set, ids 2, 3:"):
                require_disjoint(first, second)
        require_disjoint(first, Subset(outer, [4, 5]))


def test_equal_ids_of_two_data_sets_are_no_overlap() -> None:
    require_disjoint(rd.WithIds(Pairs()), rd.WithIds(Pairs()))
    x, y = torch.zeros(4, 1), torch.tensor([0, 1, 0, 1])
    require_disjoint(TensorSet(x, y), TensorSet(x, y))


def test_sets_of_one_named_origin_overlap() -> None:
    x, y = torch.zeros(4, 1), torch.tensor([0, 1, 0, 1])
    one = TensorSet(x, y, origin="mine/train")
    other = TensorSet(x, y, origin="".join(["mine", "/train"]))  # equal, not the same object
    with pytest.raises(rd.DataError, match="share 4 examples"):
        require_disjoint(one, other)
    require_disjoint(one.subset(torch.tensor([0, 1])), other.subset(torch.tensor([2, 3])))
    whole = TensorSet(x, y)
    with pytest.raises(rd.DataError, match="share 1 examples of one data set, ids 2"):
        require_disjoint(whole.subset(torch.tensor([0, 2])), whole.subset(torch.tensor([2, 3])))


# -- ids ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.tensor([0.0, 1.0]), r"must be int64 of shape \[B\], got torch.float32"),
        (torch.tensor([0, 1], dtype=torch.int32), "got torch.int32"),
        (torch.tensor([[0, 1]]), r"of shape \(1, 2\)"),
        (torch.tensor([], dtype=torch.int64), "there are no ids"),
        (torch.tensor([3, -1, -7]), "must not be negative, got -1, -7"),
        (torch.tensor([3, 1, 3, 1, 2]), "ids 1, 3 occur more than once"),
    ],
)
def test_bad_ids(ids: torch.Tensor, message: str) -> None:
    with pytest.raises(rd.DataError, match=message):
        require_ids(ids)


def test_ids_known_to_be_distinct_are_still_whole_numbers() -> None:
    require_ids(torch.tensor([3, 3]), distinct=True)  # taken at its word
    for wrong in (torch.tensor([0.0]), torch.tensor([[0]]), torch.tensor([], dtype=torch.int64)):
        with pytest.raises(rd.DataError):
            require_ids(wrong, distinct=True)


def test_whether_the_ids_of_a_data_set_are_distinct(monkeypatch: pytest.MonkeyPatch) -> None:
    data = rd.WithIds(TensorDataset(torch.rand(5)))
    assert has_distinct_ids(data)
    assert has_distinct_ids(Subset(data, [4, 2]))
    assert not has_distinct_ids(Subset(data, [4, 4]))
    assert not has_distinct_ids(data.dataset)
    monkeypatch.setattr("reducible.stores.ids._QUICKLY", 4)
    assert not has_distinct_ids(data)


def test_good_ids() -> None:
    require_ids(torch.tensor([2**53 + 1, 2**53, 0, 2**62]))


# -- fingerprints ---------------------------------------------------------------------------------


def test_fingerprints_tell_data_apart() -> None:
    ids, labels = torch.arange(6), torch.tensor([0, 1, 2, 0, 1, 2])
    here = fingerprint(ids, labels)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    assert fingerprint(ids[order], labels[order]) == here  # the same data in another order
    assert fingerprint(ids, labels.int().long()) == here
    others = {
        "permuted labels": fingerprint(ids, labels[order]),
        "one relabelled": fingerprint(ids, torch.tensor([0, 1, 2, 0, 1, 1])),
        "other ids": fingerprint(ids + 1, labels),
        "fewer": fingerprint(ids[:5], labels[:5]),
        "without labels": fingerprint(ids),
    }
    assert len({here, *others.values()}) == 6
    assert "labels=none" in others["without labels"]


def test_fingerprints_tell_ids_above_float_precision_apart() -> None:
    assert fingerprint(torch.tensor([2**53])) != fingerprint(torch.tensor([2**53 + 1]))


class _Pair(NamedTuple):
    x: torch.Tensor
    y: int


def test_items_of_any_structure_are_kept() -> None:
    items = [_Pair(torch.tensor([float(i)]), i) for i in range(4)]
    (batch,) = _batches(rd.WithIds(items))
    assert type(batch.batch) is _Pair
    assert torch.as_tensor(batch.batch.y).tolist() == [0, 1, 2, 3]
