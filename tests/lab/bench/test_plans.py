"""What a plan costs: the loops that are compared do the same."""

from __future__ import annotations

import pytest
import torch

from reducible.fitting.irreducible import fit_irreducible_loss
from reducible.lab.bench import plans
from reducible.lab.models import MODELS
from reducible.stores import WithIds


def test_rows() -> None:
    rows = plans.plan_costs(repeats=2, fitted=96, scored=64, epochs=1)
    assert [row["what"].rsplit("with ", 1)[1] for row in rows] == ["a DataLoader", "tensor slices"]
    assert all(row["runs"] == 2 and row["median"] > 0 for row in rows)


@pytest.mark.parametrize("batches", [plans._from_loader, plans._from_slices])
def test_loops_by_hand_score_every_row_in_order_with_what_was_fitted(batches) -> None:
    torch.manual_seed(0)
    y = torch.arange(600) % 10
    x = torch.zeros(600, 1, 28, 28)
    x[torch.arange(600), 0, 0, y] = 4.0  # the label stands in the image
    wrong = y.clone()
    wrong[7] = (wrong[7] + 1) % 10
    values = plans.losses_by_hand(batches, (x[:500], y[:500]), (x, wrong), 8)
    ours = fit_irreducible_loss(
        MODELS["mlp-64"],
        WithIds(torch.utils.data.TensorDataset(x[:500], y[:500])),
        WithIds(torch.utils.data.TensorDataset(x, wrong)),
        epochs=8,
        batch_size=plans._BATCH,
        make_optimizer=plans._optimizer,
        progress=False,
    ).values
    for found in (values, ours):
        assert found.shape == (600,)
        assert int(found.argmax()) == 7
        assert float(found.median()) < 0.2
