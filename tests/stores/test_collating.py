"""Any collate function with ids: items with ids, columns of ids, workers, what is refused."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

import reducible as rd


class Texts(Dataset[dict[str, Any]]):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"input_ids": list(range(1, 2 + i % 3)), "key": 1000 + i}


def pad(items: list[Any]) -> dict[str, Tensor]:
    longest = max(len(item["input_ids"]) for item in items)
    rows = [item["input_ids"] + [0] * (longest - len(item["input_ids"])) for item in items]
    assert not any("key" in item and "hidden" in item for item in items)
    return {"input_ids": torch.tensor(rows)}


def flatten(items: list[Any]) -> dict[str, Tensor]:
    return {"input_ids": torch.tensor([[t for item in items for t in item["input_ids"]]])}


@pytest.mark.parametrize("workers", [0, 2])
def test_items_with_ids_are_collated_by_what_knows_nothing_of_them(workers: int) -> None:
    collate = rd.collate_with_ids(pad)
    loader = DataLoader(rd.WithIds(Texts()), 4, collate_fn=collate, num_workers=workers)
    batches = list(loader)
    assert [b.ids.tolist() for b in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert batches[0].batch["input_ids"].tolist() == [[1, 0, 0], [1, 2, 0], [1, 2, 3], [1, 0, 0]]


def test_ids_of_a_column_are_taken_out() -> None:
    seen: list[set[str]] = []

    def watch(items: list[Any]) -> Any:
        seen.extend(set(item) for item in items)
        return pad(items)

    (first, *_) = DataLoader(Texts(), 4, collate_fn=rd.collate_with_ids(watch, ids="key"))
    assert first.ids.tolist() == [1000, 1001, 1002, 1003]
    assert first.ids.dtype == torch.int64
    assert seen[0] == {"input_ids"}


def test_torchs_own_is_the_default() -> None:
    items = [{"x": 1.0, "id": 3}, {"x": 2.0, "id": 4}]
    found = rd.collate_with_ids(ids="id")(items)
    assert found.ids.tolist() == [3, 4]
    assert torch.equal(found.batch["x"], default_collate([1.0, 2.0]))


def test_it_can_be_sent_to_workers() -> None:
    made = pickle.loads(pickle.dumps(rd.collate_with_ids(pad, ids="key")))
    assert made([Texts()[2]]).ids.tolist() == [1002]


def test_bad_input() -> None:
    with pytest.raises(rd.ConfigurationError, match="adds ids already"):
        rd.collate_with_ids(rd.collate_with_ids(pad))
    with pytest.raises(rd.ConfigurationError, match="must be a function"):
        rd.collate_with_ids(3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(rd.DataError, match=r"the items carry no ids: got dict with keys \['input"):
        rd.collate_with_ids(pad)([Texts()[0]])
    with pytest.raises(rd.DataError, match="an empty batch"):
        rd.collate_with_ids(pad)([])
    loader = DataLoader(rd.WithIds(Texts()), 4, collate_fn=rd.collate_with_ids(flatten))
    with pytest.raises(rd.DataError, match="1 rows of tokens of 4 items: it packs or flattens"):
        next(iter(loader))


def test_ids_of_ones_own() -> None:
    data = rd.WithIds(Texts(), ids=torch.arange(12) * 10**12)
    assert int(data[3].ids) == 3 * 10**12
    with pytest.raises(rd.DataError, match="11 ids for a data set of 12 rows"):
        rd.WithIds(Texts(), ids=torch.arange(11))
    with pytest.raises(rd.DataError, match="more than once"):
        rd.WithIds(Texts(), ids=torch.zeros(12, dtype=torch.int64))
