"""Look-ups in memory and on disk, and the large store that they are made in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from reducible.lab.bench import stores
from reducible.stores import IrreducibleLossStore
from reducible.types import StoreError

KEYS = {"what", "median", "unit", "min", "max", "runs"}


def test_lookup_time() -> None:
    row = stores.lookup_time(1000)
    assert set(row) == KEYS
    assert (row["unit"], row["runs"]) == ("µs per id", 50)
    assert "1,000 dense ids" in row["what"]
    assert row["median"] > 0


@pytest.mark.parametrize("rows", [1000, 1001, 4096])
def test_a_store_written_in_pieces_is_what_save_writes(rows: int, tmp_path: Path) -> None:
    values = torch.rand(512, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "store.safetensors"
    stores.write_large_store(path, rows, piece=512)
    store = IrreducibleLossStore.load(path)  # verifies the checksum
    expected = values.repeat(8)[:rows]
    assert torch.equal(store.values, expected)
    assert store.lookup(torch.tensor([0, rows - 1])).tolist() == expected[[0, -1]].tolist()
    IrreducibleLossStore.from_tensor(expected).save(tmp_path / "saved")
    assert path.read_bytes() == (tmp_path / "saved").read_bytes()
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(StoreError, match="checksum does not match"):
        IrreducibleLossStore.load(path)


def test_looking_up_on_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(stores.tempfile, "tempdir", str(tmp_path))
    memory = iter([7 * 2**20, 10 * 2**20])
    monkeypatch.setattr(stores, "own_memory_bytes", lambda: next(memory))
    lookup, opened, grown = stores.mapped_lookup(5000)
    assert lookup["what"] == "store look-up, 5,000 dense ids on disk"
    assert (lookup["unit"], lookup["runs"], lookup["median"] > 0) == ("µs per id", 50, True)
    assert (opened["unit"], opened["runs"]) == ("s", 1)
    assert (grown["unit"], grown["median"]) == ("MiB", 3.0)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_small_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "write_large_store", None)  # is not tried
    (row,) = stores.mapped_lookup(10**9, free=5 * 10**9)
    assert row["what"] == "store look-up, 1,000,000,000 dense ids on disk: left out, needs 5.1 GB"
    assert (row["median"], row["unit"]) == (5.0, "GB free")
    assert set(row) == KEYS
