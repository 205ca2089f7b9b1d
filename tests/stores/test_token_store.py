"""Irreducible losses of tokens: look-ups, files, shards, bad input."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reducible as rd

ROWS = [torch.tensor([0.5, 1.0, 2.0]), torch.tensor([]), torch.tensor([4.0, 8.0])]
IDS = torch.tensor([30, 7, 2**60 + 1])


@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=8), seed=st.integers(0, 99),
)  # fmt: skip
def test_values_come_back_at_the_predicted_tokens(lengths: list[int], seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    rows = [torch.rand(n, generator=g) for n in lengths]
    ids = torch.randperm(1000, generator=g)[: len(rows)]
    store = rd.TokenLossStore.from_rows(rows, ids=ids)
    order = torch.randperm(len(rows), generator=g)
    width = max(lengths) + 3
    predicted = torch.zeros(len(rows), width, dtype=torch.bool)
    for at, i in enumerate(order.tolist()):
        places = torch.randperm(width, generator=g)[: lengths[i]]
        predicted[at, places] = True
    found = store.lookup(ids[order], predicted)
    for at, i in enumerate(order.tolist()):
        assert torch.equal(found[at][predicted[at]], rows[i])
    assert not bool(found[~predicted].any())
    assert (len(store), store.tokens) == (len(rows), sum(lengths))


def test_large_ids_and_empty_rows() -> None:
    store = rd.TokenLossStore.from_rows(ROWS, ids=IDS)
    assert store.ids.tolist() == [7, 30, 2**60 + 1]
    predicted = torch.tensor([[False, True, True], [False, False, False]])
    assert store.lookup(torch.tensor([2**60 + 1, 7]), predicted).tolist() == [[0, 4, 8], [0, 0, 0]]


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    store = rd.TokenLossStore.from_rows(ROWS, ids=IDS, fingerprint="n=3", header={"model": "x"})
    store.save(tmp_path / "tokens.safetensors")
    again = rd.TokenLossStore.load(tmp_path / "tokens.safetensors")
    assert (again.fingerprint, again.header) == ("n=3", {"model": "x"})
    predicted = torch.ones(1, 3, dtype=torch.bool)
    assert torch.equal(again.lookup(IDS[:1], predicted)[0], ROWS[0])
    with open(tmp_path / "tokens.safetensors", "r+b") as file:
        file.seek(-4, 2)
        file.write(b"\x01")
    with pytest.raises(rd.StoreError, match="was changed while it is in use"):
        again.lookup(IDS[:1], predicted)
    with pytest.raises(rd.StoreError, match="checksum does not match"):
        rd.TokenLossStore.load(tmp_path / "tokens.safetensors")


def test_stores_of_examples_and_of_tokens_are_told_apart(tmp_path: Path) -> None:
    rd.IrreducibleLossStore.from_tensor(torch.rand(3)).save(tmp_path / "examples")
    with pytest.raises(rd.StoreError, match=r"IrreducibleLossStore\.load reads that"):
        rd.TokenLossStore.load(tmp_path / "examples")
    rd.TokenLossStore.from_rows(ROWS).save(tmp_path / "tokens")
    with pytest.raises(rd.StoreError, match="not a readable store"):
        rd.IrreducibleLossStore.load(tmp_path / "tokens")


def test_shards_are_merged_and_sequences_in_two_of_them_refused() -> None:
    first = rd.TokenLossStore.from_rows(ROWS[:2], ids=IDS[:2])
    second = rd.TokenLossStore.from_rows(ROWS[2:], ids=IDS[2:])
    merged = rd.TokenLossStore.merged([second, first])
    whole = rd.TokenLossStore.from_rows(ROWS, ids=IDS)
    predicted = torch.tensor([[True, True, True], [False, False, False], [True, True, False]])
    assert torch.equal(merged.lookup(IDS, predicted), whole.lookup(IDS, predicted))
    with pytest.raises(rd.DataError, match="30 occur more than once"):
        rd.TokenLossStore.merged([first, first])
    with pytest.raises(rd.StoreError, match="no stores"):
        rd.TokenLossStore.merged([])


def test_shards_of_examples_are_merged() -> None:
    values, labels = torch.rand(10), torch.arange(10) % 3
    shards = [
        rd.IrreducibleLossStore.from_tensor(values[rank::2], ids=torch.arange(10)[rank::2])
        for rank in (1, 0)
    ]
    merged = rd.IrreducibleLossStore.merged(shards, labels=labels)
    assert torch.equal(merged.lookup(torch.arange(10)), values)
    merged.check_data(torch.arange(10), labels)
    with pytest.raises(rd.StoreError, match="other labels"):
        merged.check_data(torch.arange(10), labels.flip(0))
    with pytest.raises(rd.DataError, match="more than once"):
        rd.IrreducibleLossStore.merged([shards[0], shards[0]])
    grouped = rd.IrreducibleLossStore.from_tensor(torch.rand(2, 3), ids=torch.tensor([90, 91]))
    with pytest.raises(rd.StoreError, match=r"\[0, 3\] groups do not merge"):
        rd.IrreducibleLossStore.merged([shards[0], grouped])


def test_bad_input() -> None:
    store = rd.TokenLossStore.from_rows(ROWS, ids=IDS)
    with pytest.raises(rd.StoreError, match=r"without irreducible losses of their tokens: 8"):
        store.lookup(torch.tensor([8]), torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(rd.StoreError, match=r"sequence 30 has 2 tokens to predict .* of 3 in"):
        store.lookup(torch.tensor([30]), torch.tensor([[False, True, True]]))
    with pytest.raises(rd.StoreError, match="not finite"):
        rd.TokenLossStore.from_rows([torch.tensor([float("inf")])])
    with pytest.raises(rd.StoreError, match="no sequences"):
        rd.TokenLossStore.from_rows([])
    with pytest.raises(rd.StoreError, match=r"must be floating, \[T\]"):
        rd.TokenLossStore.from_rows([torch.zeros(2, 2)])
    with pytest.raises(rd.DataError, match="more than once"):
        rd.TokenLossStore.from_rows(ROWS, ids=torch.tensor([1, 1, 2]))
    with pytest.raises(rd.StoreError, match="3 sequences but 2 ids"):
        rd.TokenLossStore.from_rows(ROWS, ids=torch.tensor([1, 2]))
