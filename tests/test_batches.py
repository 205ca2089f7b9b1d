"""Batches of any structure."""

from __future__ import annotations

from collections import OrderedDict, UserDict, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import reducible as rd
from reducible import batches as structure
from reducible.batches import beside, gather, map_batch, register_batch_type, to_device
from reducible.types import ConfigurationError, DataError


class Point(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


def _batch() -> dict[str, Any]:
    rows = torch.arange(4)
    return {
        "point": Point(rows * 10.0, rows),
        "nested": (rows.view(4, 1).expand(4, 3), [rows + 1, {"deep": rows + 2}]),
        "texts": ["a", "b", "c", "d"],
        "ordered": OrderedDict(z=rows),
        "constant": 7,
        "nothing": None,
    }


def test_gather_keeps_the_structure_and_takes_the_rows() -> None:
    got = gather(_batch(), torch.tensor([2, 0]), 4)
    assert type(got) is dict
    assert list(got) == list(_batch())
    assert type(got["point"]) is Point
    assert got["point"].x.tolist() == [20.0, 0.0]
    assert got["point"].y.tolist() == [2, 0]
    assert type(got["nested"]) is tuple
    assert got["nested"][0].tolist() == [[2] * 3, [0] * 3]
    assert type(got["nested"][1]) is list
    assert got["nested"][1][0].tolist() == [3, 1]
    assert got["nested"][1][1]["deep"].tolist() == [4, 2]
    assert got["texts"] == ["c", "a"]
    assert type(got["ordered"]) is OrderedDict
    assert (got["constant"], got["nothing"]) == (7, None)


def test_gather_copies_and_leaves_its_input() -> None:
    x = torch.arange(4.0)
    got = gather((x,), torch.tensor([1, 1]), 4)[0]
    got += 100
    assert x.tolist() == [0.0, 1.0, 2.0, 3.0]


def test_gather_of_nothing_is_empty() -> None:
    got = gather((torch.zeros(4, 2), ["a"] * 4), torch.empty(0, dtype=torch.int64), 4)
    assert got[0].shape == (0, 2)
    assert got[1] == []


@pytest.mark.parametrize("wrong", [torch.tensor(1.0), torch.zeros(3), torch.zeros(5, 4)])
def test_a_tensor_that_does_not_lead_with_the_batch(wrong: torch.Tensor) -> None:
    with pytest.raises(DataError, match=r"a tensor of shape \(.*\) in a batch of 4 ids"):
        gather({"x": torch.zeros(4), "odd": wrong}, torch.tensor([0]), 4)


def test_a_list_of_another_length() -> None:
    with pytest.raises(DataError, match="a list of 3 items in a batch of 4 ids"):
        gather({"texts": ["a", "b", "c"]}, torch.tensor([0]), 4)


def test_inference_tensors_are_gathered_into_normal_ones() -> None:
    with torch.inference_mode():
        x = torch.arange(4.0)
    assert x.is_inference()
    assert not gather(x, torch.tensor([0]), 4).is_inference()


def test_beside_leaves_what_is_there_and_moves_the_rest() -> None:
    here, meta = torch.arange(3), torch.zeros(2, device="meta")
    assert beside(here, torch.zeros(2)) is here
    assert beside(here, meta).device == meta.device
    assert beside(meta, meta) is meta


def test_to_device_does_not_copy_what_is_there() -> None:
    batch = _batch()
    moved = to_device(batch, torch.device("cpu"))
    assert moved["point"].x is batch["point"].x
    assert moved["texts"] == batch["texts"]


def test_map_batch_reaches_every_tensor() -> None:
    seen: list[torch.Tensor] = []
    map_batch(_batch(), lambda t: seen.append(t))
    assert len(seen) == 6


@dataclass(frozen=True)
class Sample:
    x: torch.Tensor
    texts: tuple[str, ...]
    double: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "double", self.x * 2)


ROWS = torch.tensor([2, 0])


@pytest.mark.parametrize(
    ("part", "wanted"),
    [
        (("a", "b", "c", "d"), ("c", "a")),
        (np.arange(4) * 10, [20, 0]),
        (np.array(["a", "b", "c", "d"]), ["c", "a"]),
        (np.array([{"a": 1}, None, "c", 4], dtype=object), ["c", {"a": 1}]),
        ([torch.zeros(1), torch.zeros(2), torch.ones(3), torch.zeros(4)], None),
        (["a", None, "c", 1], ["c", "a"]),
        ([{"boxes": 1}, {"boxes": 2}, {"boxes": 3}, {}], [{"boxes": 3}, {"boxes": 1}]),
        (UserDict(x=torch.arange(4)), {"x": [2, 0]}),
        (MappingProxyType({"x": torch.arange(4)}), {"x": [2, 0]}),
        (defaultdict(list, x=torch.arange(4)), {"x": [2, 0]}),
    ],
)
def test_whatever_leads_with_the_batch_is_gathered(part: Any, wanted: Any) -> None:
    x, got = gather((torch.arange(4), part), ROWS, 4)
    assert x.tolist() == [2, 0]
    assert type(got) is type(part)
    if wanted is None:
        assert [len(row) for row in got] == [3, 1]
    elif isinstance(wanted, dict):
        assert {key: value.tolist() for key, value in got.items()} == wanted
    else:
        assert (got.tolist() if isinstance(got, np.ndarray) else got) == wanted


def test_fields_of_a_dataclass_are_gathered() -> None:
    sample = Sample(torch.arange(4), ("a", "b", "c", "d"))
    got = gather({"sample": sample}, ROWS, 4)["sample"]
    assert (got.x.tolist(), got.texts, got.double.tolist()) == ([2, 0], ("c", "a"), [4, 0])
    assert sample.x.tolist() == [0, 1, 2, 3]
    meta = to_device(sample, torch.device("meta"))
    assert meta.x.device.type == "meta"
    assert meta.texts == sample.texts


def test_a_batch_zipped_from_rows() -> None:
    """The usual collate function of detection: a tuple of images, a tuple of targets."""
    images = tuple(torch.full((3, 4 + i, 5), float(i)) for i in range(4))
    targets = tuple({"boxes": torch.zeros(i, 4), "id": i} for i in range(4))
    got = gather((images, targets), ROWS, 4)
    assert [image.shape[1] for image in got[0]] == [6, 4]
    assert [target["id"] for target in got[1]] == [2, 0]
    assert gather([images, targets], ROWS, 4)[1][0]["id"] == 2


def test_two_rows_of_a_pair_are_still_a_pair() -> None:
    """The batch itself is made of parts, however few rows there are."""
    x, y = gather((torch.zeros(2, 5), torch.arange(2)), torch.tensor([1]), 2)
    assert x.shape == (1, 5)
    assert y.tolist() == [1]


def test_what_may_be_rows_or_parts_is_refused() -> None:
    parts = {"images": [torch.zeros(2, 5), torch.ones(2, 5)], "y": torch.arange(2)}
    with pytest.raises(DataError, match="one item a row, or parts that have all rows"):
        gather(parts, torch.tensor([1]), 2)


class Boxes:
    def __init__(self, of: list[int], device: str = "cpu") -> None:
        self.of, self.device = of, device


@pytest.fixture
def hooks() -> Iterator[None]:
    before = dict(structure._HOOKS)
    yield
    structure._HOOKS.clear()
    structure._HOOKS.update(before)


def test_a_type_that_is_not_known_is_named_with_the_cure(hooks: None) -> None:
    batch = (torch.arange(4), Boxes([5, 6, 7, 8]))
    with pytest.raises(DataError, match=r"a Boxes .*register_batch_type\(Boxes, gather="):
        gather(batch, ROWS, 4)
    register_batch_type(
        Boxes,
        gather=lambda part, rows: Boxes([part.of[i] for i in rows], part.device),
        to_device=lambda part, device: Boxes(part.of, str(device)),
    )
    assert gather(batch, ROWS, 4)[1].of == [7, 5]
    assert to_device(batch, torch.device("meta"))[1].device == "meta"
    with pytest.raises(ConfigurationError, match="pass the class itself"):
        register_batch_type("Boxes", gather=lambda part, rows: part)  # pyright: ignore[reportArgumentType]


def test_a_nested_tensor_is_refused_with_the_cure() -> None:
    nested = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.jagged)
    with pytest.raises(DataError, match=r"a nested tensor .* Pad it"):
        gather({"x": nested}, torch.tensor([0]), 2)


def test_an_array_that_does_not_lead_with_the_batch() -> None:
    with pytest.raises(DataError, match=r"an array of shape \(3,\) in a batch of 4 ids"):
        gather({"x": np.zeros(3)}, ROWS, 4)


def test_texts_beside_the_chosen_rows() -> None:
    """Through the loop: a collate function that zips, and arrays, come back row by row."""
    rows = [(torch.full((3,), float(i)), i % 2, f"text {i}") for i in range(32)]

    def zipped(items: list[rd.Candidates]) -> rd.Candidates:
        ids, batch = zip(*items, strict=True)
        x, y, texts = zip(*batch, strict=True)
        return rd.Candidates(
            torch.stack(list(ids)), (torch.stack(x), torch.tensor(y), texts, np.array(texts))
        )

    loader = DataLoader(rd.WithIds(rows), batch_size=32, collate_fn=zipped)
    task = rd.Classification(inputs=0, targets=1)
    model = torch.nn.Linear(3, 2)
    for chosen in rd.SelectingLoader(loader, model, rd.selector("train_loss"), keep=8, task=task):
        assert [f"text {i}" for i in chosen.ids.tolist()] == list(chosen.batch[2])
        assert [f"text {i}" for i in chosen.ids.tolist()] == chosen.batch[3].tolist()


@pytest.mark.parametrize("length", [1, 4])  # of one, it looks like four parts with a row each
def test_packed_sequences_are_refused_by_name(length: int) -> None:
    packed = torch.nn.utils.rnn.pack_sequence([torch.zeros(length)] * 4)
    for batch in (packed, (packed,), {"x": packed}):
        with pytest.raises(DataError, match="a PackedSequence in a batch of 4 ids"):
            gather(batch, torch.tensor([1, 3]), 4)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_sparse_tensors_are_gathered_or_refused_by_name() -> None:
    x, rows = torch.eye(4), torch.tensor([3, 1])
    assert torch.equal(gather((x.to_sparse(),), rows, 4)[0].to_dense(), x[rows])
    for compressed in (x.to_sparse_csr(), x.to_sparse_csc(), x.to_sparse_bsr((2, 2))):
        with pytest.raises(DataError, match=rf"layout {compressed.layout} .*to_sparse\(\)"):
            gather((compressed,), rows, 4)
