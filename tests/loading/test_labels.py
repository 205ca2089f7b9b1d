"""Labels and keys as people have them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reducible.loading.labels import as_labels, as_tensor, class_labels, key_ids
from reducible.types import DataError


def test_whole_numbers_of_any_kind_are_labels() -> None:
    for found in ([2, 0], (2, 0), np.array([2, 0], dtype=np.uint8), torch.tensor([[2], [0]]).int()):
        labels = as_labels(found, "")
        assert labels.tolist() == [2, 0]
        assert labels.dtype == torch.int64
    assert as_labels([True, False], "").tolist() == [1, 0]
    y = torch.tensor([1, 2])
    assert class_labels(y, "") is y


def test_two_columns_of_zeros_and_ones_are_one_hot_only_if_each_row_has_a_one() -> None:
    with pytest.raises(DataError, match="one-hot"):
        class_labels(torch.tensor([[0, 1], [1, 0]]), "")
    with pytest.raises(DataError, match="2 numbers for each example"):
        class_labels(torch.tensor([[1, 1], [1, 0]]), "")


def test_what_is_no_array_stays_as_it_is() -> None:
    assert as_tensor("a") == "a"
    assert as_tensor(["a"]) == ["a"]
    assert as_tensor([1]).tolist() == [1]


def test_ids_of_keys_are_those_of_their_digest() -> None:
    """blake2b of 8 bytes, read from the low byte, without its lowest bit."""
    import hashlib

    keys = [f"row-{i}" for i in range(1000)]
    ids = key_ids(keys)
    digest = hashlib.blake2b(b"row-7", digest_size=8).digest()
    assert ids[7].item() == sum(byte << 8 * place for place, byte in enumerate(digest)) // 2
    assert int(ids.min()) >= 0
    assert ids.unique().numel() == 1000
    assert key_ids(keys[::-1]).flip(0).equal(ids)
    with pytest.raises(DataError, match="key 'b' comes more than once"):
        key_ids(["a", "b", "c", "b"])
