"""The store: look-ups by id, files that are whole or refused, memory-mapping, fingerprints."""

from __future__ import annotations

import errno
import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import reducible as rd
from reducible.stores import fingerprint, layout

Store = rd.IrreducibleLossStore


def _sparse(header: dict[str, Any] | None = None) -> rd.IrreducibleLossStore:
    ids = torch.tensor([9, 2**53 + 1, 4, 2**53])
    return Store.from_tensor(
        torch.tensor([0.9, 0.1, 0.4, 0.2]), ids=ids, fingerprint=fingerprint(ids), header=header
    )


# -- looking up -----------------------------------------------------------------------------------


def test_dense_ids() -> None:
    store = Store.from_tensor(torch.tensor([0.5, 0.25, 0.125]))
    found = store.lookup(torch.tensor([2, 0, 2]))
    assert found.tolist() == [0.125, 0.5, 0.125]
    assert found.dtype == torch.float32
    assert (len(store), store.groups, store.ids.tolist()) == (3, 0, [0, 1, 2])


def test_any_ids_in_any_order() -> None:
    store = _sparse()
    found = store.lookup(torch.tensor([2**53, 4, 2**53 + 1, 9]))
    torch.testing.assert_close(found, torch.tensor([0.2, 0.4, 0.1, 0.9]))
    assert store.ids.tolist() == [4, 9, 2**53, 2**53 + 1]


def test_ids_in_order_that_do_not_start_at_zero() -> None:
    store = Store.from_tensor(torch.tensor([0.5, 0.25]), ids=torch.tensor([1, 2]))
    assert store.lookup(torch.tensor([2, 1])).tolist() == [0.25, 0.5]
    with pytest.raises(rd.StoreError, match="1 ids without irreducible loss: 0"):
        store.lookup(torch.tensor([0]))


def test_a_column_per_group() -> None:
    values = torch.arange(6.0).view(3, 2)
    store = Store.from_tensor(values, ids=torch.tensor([30, 10, 20]))
    assert store.groups == 2
    assert store.lookup(torch.tensor([20, 30])).tolist() == [[4.0, 5.0], [0.0, 1.0]]


@pytest.mark.parametrize("ids", [None, torch.tensor([5, 6, 7])])
def test_an_unknown_id_is_named(ids: torch.Tensor | None) -> None:
    store = Store.from_tensor(torch.zeros(3), ids=ids)
    known = int(store.ids[0])
    with pytest.raises(rd.StoreError, match=r"2 ids without irreducible loss: 99, -1\. .*3 ids"):
        store.lookup(torch.tensor([99, known, -1]))


def test_never_scored_raises_and_never_looks_like_a_number() -> None:
    store = Store.from_tensor(torch.tensor([0.5, math.nan, 0.25]))
    assert store.lookup(torch.tensor([0, 2])).tolist() == [0.5, 0.25]
    with pytest.raises(rd.StoreError, match="1 ids were never scored: 1"):
        store.lookup(torch.tensor([0, 1]))
    grouped = Store.from_tensor(torch.tensor([[0.5, 0.1], [0.2, math.nan]]))
    with pytest.raises(rd.StoreError, match="1 ids were never scored: 1"):
        grouped.lookup(torch.tensor([1, 0]))


@given(st.dictionaries(st.integers(0, 2**62), st.floats(0, 100, width=32), min_size=1), st.data())
def test_looks_up_what_was_put_in(table: dict[int, float], data: st.DataObject) -> None:
    ids = list(table)
    store = Store.from_tensor(torch.tensor([table[i] for i in ids]), ids=torch.tensor(ids))
    asked = data.draw(st.lists(st.sampled_from(ids), min_size=1, max_size=10))
    assert store.lookup(torch.tensor(asked)).tolist() == [table[i] for i in asked]
    unknown = data.draw(st.integers(0, 2**62).filter(lambda i: i not in table))
    with pytest.raises(rd.StoreError, match=str(unknown)):
        store.lookup(torch.tensor([unknown]))


# -- making ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values", [torch.zeros(0), torch.zeros(2, 2, 2), torch.zeros(3, dtype=torch.int64)]
)
def test_values_of_another_shape_or_type(values: torch.Tensor) -> None:
    with pytest.raises(rd.StoreError, match=r"must be floating, \[N\] or \[N, G\] with N ≥ 1; got"):
        Store.from_tensor(values)


def test_infinite_values() -> None:
    with pytest.raises(rd.StoreError, match="infinite values: the irreducible-loss model diverged"):
        Store.from_tensor(torch.tensor([0.0, math.inf]))


def test_ids_that_do_not_fit() -> None:
    with pytest.raises(rd.StoreError, match="3 rows of values but ids of"):
        Store.from_tensor(torch.zeros(3), ids=torch.arange(2))
    with pytest.raises(rd.DataError, match="ids 1 occur more than once"):
        Store.from_tensor(torch.zeros(3), ids=torch.tensor([1, 1, 2]))
    with pytest.raises(rd.DataError, match=r"got torch\.float32"):
        Store.from_tensor(torch.zeros(3), ids=torch.arange(3.0))


# -- of which data --------------------------------------------------------------------------------


def test_a_store_of_other_data_is_refused() -> None:
    ids, labels = torch.arange(6), torch.tensor([0, 1, 2, 0, 1, 2])
    store = Store.from_tensor(torch.zeros(6), fingerprint=fingerprint(ids, labels))
    store.check(fingerprint(ids, labels))
    store.check_data(ids.flip(0), labels.flip(0))  # the same, in another order
    with pytest.raises(rd.StoreError, match="the same ids with other labels"):
        store.check_data(ids, labels.flip(0))  # permuted
    with pytest.raises(rd.StoreError, match="the same ids with other labels"):
        store.check_data(ids, torch.tensor([0, 1, 2, 0, 1, 0]))  # one relabelled
    with pytest.raises(rd.StoreError, match=r"other examples \(6 in it, 5 here\)"):
        store.check_data(ids[:5], labels[:5])
    with pytest.raises(rd.StoreError, match=r"other examples \(6 in it, 6 here\)"):
        store.check_data(ids + 1, labels)
    with pytest.raises(rd.StoreError, match="other examples"):
        store.check("somebody's own text")


def test_where_one_side_has_no_labels_ids_are_compared_alone() -> None:
    ids, labels = torch.arange(6), torch.zeros(6, dtype=torch.int64)
    Store.from_tensor(torch.zeros(6), fingerprint=fingerprint(ids)).check_data(ids, labels)
    store = Store.from_tensor(torch.zeros(6), fingerprint=fingerprint(ids, labels))
    store.check_data(ids)
    with pytest.raises(rd.StoreError, match="other examples"):
        store.check_data(ids + 1)


def test_an_empty_fingerprint_is_unchecked() -> None:
    Store.from_tensor(torch.zeros(6)).check("anything")
    _sparse().check("")


# -- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "store",
    [
        _sparse({"model": "mlp", "epochs": 3, "noise_floor": [0.1, 0.2]}),
        Store.from_tensor(torch.tensor([0.5, math.nan]), fingerprint="mine"),
        Store.from_tensor(torch.arange(6.0).view(3, 2)),
    ],
    ids=["sparse", "dense", "grouped"],
)
def test_saved_and_loaded_is_the_same(store: rd.IrreducibleLossStore, tmp_path: Path) -> None:
    store.save(tmp_path / "il.safetensors")
    loaded = Store.load(tmp_path / "il.safetensors")
    torch.testing.assert_close(loaded.values, store.values, rtol=0, atol=0, equal_nan=True)
    assert loaded.ids.tolist() == store.ids.tolist()
    assert loaded.fingerprint == store.fingerprint
    assert loaded.header == store.header
    assert loaded.groups == store.groups
    scored = store.ids[~store.values.view(len(store), -1).isnan().any(1)]
    assert loaded.lookup(scored).tolist() == store.lookup(scored).tolist()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
def test_a_loaded_store_is_mapped_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "il.safetensors"
    ids = torch.arange(10, 100_010)
    Store.from_tensor(torch.rand(100_000), ids=ids).save(path)
    loaded = Store.load(path)
    for tensor in (loaded.values, loaded.ids):
        assert _file_mapped_at(tensor.data_ptr()) == str(path)


def _file_mapped_at(address: int) -> str:
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *_, last = line.split()
        start, end = (int(x, 16) for x in span.split("-"))
        if start <= address < end:
            return last
    raise AssertionError("no mapping holds the tensor")


def test_saving_over_the_file_that_is_mapped(tmp_path: Path) -> None:
    path = tmp_path / "il.safetensors"
    Store.from_tensor(torch.full((1000,), 1.0)).save(path)
    old = Store.load(path)
    Store.from_tensor(torch.full((1000,), 2.0)).save(path)
    assert old.lookup(torch.tensor([999])).tolist() == [1.0]
    assert Store.load(path).lookup(torch.tensor([999])).tolist() == [2.0]


@pytest.mark.parametrize("at", ["write", "flush"])
def test_a_full_disk_leaves_the_previous_store(
    at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "il.safetensors"
    _sparse().save(path)
    before = path.read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if at == "write":
        monkeypatch.setattr(layout, "_digest", full)  # once the head is written
    else:
        monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        Store.from_tensor(torch.zeros(4)).save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]  # nothing temporary is left


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path, cut = tmp_path / "il", tmp_path / "cut"
    _sparse({"model": "mlp"}).save(path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        cut.write_bytes(whole[:length])
        with pytest.raises(rd.StoreError, match="not a readable store of irreducible losses"):
            Store.load(cut)
    cut.write_bytes(whole + b"\0")
    with pytest.raises(rd.StoreError, match="not a readable store of irreducible losses"):
        Store.load(cut)


def test_every_flipped_bit_is_refused(tmp_path: Path) -> None:
    path, damaged = tmp_path / "il", tmp_path / "damaged"
    _sparse({"model": "mlp"}).save(path)
    whole = path.read_bytes()
    accepted = []
    for at in range(len(whole)):
        for mask in (*(1 << bit for bit in range(8)), 0xFF):
            flipped = bytearray(whole)
            flipped[at] ^= mask
            damaged.write_bytes(flipped)
            if not _refused(damaged):
                accepted.append((at, mask))
    assert accepted == []


def _refused(path: Path) -> bool:
    try:
        Store.load(path)
    except rd.StoreError as error:
        return "not a readable store" in str(error)
    return False


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"values": torch.zeros(3)}, path, metadata={"format": "pt"})
    with pytest.raises(rd.StoreError, match="its format is 'pt'"):
        Store.load(path)
    with pytest.raises(FileNotFoundError):
        Store.load(tmp_path / "nowhere")
    path.write_text("a text")
    with pytest.raises(rd.StoreError, match="truncated or damaged"):
        Store.load(path)


@settings(max_examples=25, deadline=None)
@given(values=st.lists(st.floats(0, 2.0**99, width=32), min_size=1, max_size=30))
def test_files_keep_every_bit(
    tmp_path_factory: pytest.TempPathFactory, values: list[float]
) -> None:
    path = tmp_path_factory.mktemp("stores") / "il"
    Store.from_tensor(torch.tensor(values)).save(path)
    assert Store.load(path).values.tolist() == torch.tensor(values).tolist()
