"""Irreducible losses by a model as it stands: of rows, of tokens, as a column; nothing changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Subset, TensorDataset

import reducible as rd
from hf_toys import gpt, padded_lm, texts

G = torch.Generator().manual_seed(0)
X = torch.randn(70, 4, generator=G)
Y = torch.arange(70) % 3
DATA = rd.WithIds(TensorDataset(X, Y))


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))


def test_losses_are_those_of_eval_mode_and_the_model_stays_as_it_is() -> None:
    model = _model()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    stream = torch.get_rng_state()
    ledger = rd.Ledger()
    store = rd.score_irreducible_loss(model, DATA, batch_size=16, ledger=ledger, progress=False)
    assert torch.equal(torch.get_rng_state(), stream)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    expected = F.cross_entropy(model.eval()(X), Y, reduction="none")
    torch.testing.assert_close(store.lookup(torch.arange(70)), expected)
    assert ledger.seconds["irreducible_loss"] > 0
    assert ledger.counts.flops_irreducible_loss == store.header["flops"] > 0
    store.check_data(torch.arange(70), Y)
    with pytest.raises(rd.StoreError, match="other labels"):
        store.check_data(torch.arange(70), Y.flip(0))


def test_shards_of_processes_make_the_store_of_the_whole() -> None:
    model = _model()
    whole = rd.score_irreducible_loss(model, DATA, progress=False)
    shards = [
        rd.score_irreducible_loss(model, Subset(DATA, range(rank, 70, 3)), progress=False)
        for rank in range(3)
    ]
    merged = rd.IrreducibleLossStore.merged(shards, labels=Y)
    torch.testing.assert_close(merged.values, whole.values)
    assert merged.fingerprint == whole.fingerprint


def test_tokens_are_scored_one_by_one() -> None:
    rows = texts(20)
    model = gpt()
    store = rd.score_token_irreducible_loss(
        model, rd.WithIds(rows), batch_size=6, collate_fn=rd.collate_with_ids(padded_lm),
        progress=False,
    )  # fmt: skip
    model.eval()
    for i, row in enumerate(rows):
        ids = torch.tensor([row["input_ids"]])
        logits = model(ids).logits[0, :-1]
        expected = F.cross_entropy(logits, ids[0, 1:], reduction="none").detach()
        predicted = torch.ones_like(ids, dtype=torch.bool).index_fill(1, torch.tensor([0]), False)
        torch.testing.assert_close(store.lookup(torch.tensor([i]), predicted)[0, 1:], expected)
    assert store.header["model"] == "GPT2LMHeadModel"


def test_a_column_of_a_data_set_makes_the_same_store() -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    rows = texts(30)
    model = gpt()
    data: Any = datasets.Dataset.from_list(rows)
    column = rd.LossColumn(model, padded_lm, task=rd.CausalLM())
    with_losses = data.map(column, batched=True, batch_size=7)
    made = rd.IrreducibleLossStore.from_tensor(torch.tensor(with_losses["irreducible_loss"][:]))
    store = rd.score_irreducible_loss(
        model, rd.WithIds(rows), task=rd.CausalLM(), progress=False,
        collate_fn=rd.collate_with_ids(padded_lm),
    )  # fmt: skip
    torch.testing.assert_close(made.values, store.values)


def test_batches_without_ids_are_refused_with_the_cure() -> None:
    with pytest.raises(rd.DataError, match=r"without ids.*collate_with_ids"):
        rd.score_irreducible_loss(
            _model(), rd.WithIds(TensorDataset(X, Y)), progress=False,
            collate_fn=lambda items: torch.utils.data.default_collate([i.batch for i in items]),
        )  # fmt: skip
    with pytest.raises(rd.DataError, match="empty or not map-style"):
        rd.score_irreducible_loss(_model(), [], progress=False)
