"""Batches of any structure."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
import torch

from reducible.structure import beside, gather, map_batch, to_device
from reducible.types import DataError


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
    map_batch(_batch(), lambda t: seen.append(t), lambda rows: rows)
    assert len(seen) == 6
