"""A plan that does not fit its data, or comes of a model that knows nothing, says so."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.utils.data import Subset, TensorDataset

import reducible as rd
from reducible.stores import fingerprint

G = torch.Generator().manual_seed(0)
LABELS = torch.arange(60) % 3
HEADER = {"noise_floor": [0.01] * 3}


def _store(loss: torch.Tensor, labels: torch.Tensor = LABELS) -> rd.IrreducibleLossStore:
    made = fingerprint(torch.arange(len(loss)), labels)
    return rd.IrreducibleLossStore.from_tensor(loss, fingerprint=made, header=HEADER)


def _data(labels: torch.Tensor) -> rd.WithIds:
    return rd.WithIds(TensorDataset(torch.zeros(len(labels), 2), labels))


def test_a_plan_of_shuffled_or_relabelled_rows_is_refused() -> None:
    plan = rd.Plan.from_irreducible_loss(_store(torch.rand(60, generator=G)), range(60), LABELS)
    plan.sampler(_data(LABELS), generator=G)
    with pytest.raises(rd.DataError, match=r"the same ids with other labels.*of another seed"):
        plan.sampler(_data(LABELS.flip(0)), generator=G)
    more = torch.cat([LABELS, torch.zeros(9, dtype=torch.int64)])
    plan.sampler(_data(more), generator=G)  # rows that the plan does not know do no harm
    plan.including(torch.arange(60, 69)).sampler(_data(more), generator=G)
    plan.sampler(rd.WithIds([torch.zeros(2)] * 60), generator=G)  # of no known labels


def test_the_rows_of_a_subset_keep_their_labels() -> None:
    rows = list(range(10, 40))
    store = rd.IrreducibleLossStore.from_tensor(
        torch.rand(30, generator=G), ids=torch.tensor(rows), header=HEADER,
        fingerprint=fingerprint(torch.tensor(rows), LABELS[rows]),
    )  # fmt: skip
    plan = rd.Plan.from_irreducible_loss(store, rows, LABELS[rows])
    plan.sampler(Subset(_data(LABELS), rows), generator=G)
    plan.sampler(_data(LABELS), generator=G)


def test_a_model_that_knows_no_more_than_frequencies_is_warned_of() -> None:
    chance = torch.full((60,), 3.0).log()
    with pytest.warns(UserWarning, match=r"1\.10.*frequencies alone give 1\.10") as caught:
        rd.Plan.from_irreducible_loss(_store(chance), range(60), LABELS)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rd.Plan.from_irreducible_loss(_store(chance - 0.1), range(60), LABELS)
        given = torch.full((3,), 0.01)
        rd.Plan.from_irreducible_loss(_store(chance), range(60), LABELS, noise_floor=given)


def test_losses_of_tokens_make_no_plan() -> None:
    tokens = rd.TokenLossStore.from_rows([torch.rand(3)] * 4, ids=torch.arange(4))
    with pytest.raises(rd.ConfigurationError, match=r"got TokenLossStore\. Score rows, not tokens"):
        rd.Plan.from_irreducible_loss(tokens, range(4), [0, 1, 0, 1])  # pyright: ignore[reportArgumentType]
