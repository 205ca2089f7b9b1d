"""Plans of classes of any share: what is dropped of clean and of noisy data."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reducible as rd
from plan_toys import FLOOR, LABELS, generator_of, store_of
from reducible.lab.data import TensorSet, flip_labels


def _fitted(prior: list[float], flips: float = 0.0) -> tuple[rd.IrreducibleLossStore, Any, Tensor]:
    """A store of overlapping classes, fitted by default; the train set, and which are wrong."""
    g = generator_of(5)
    truth = torch.multinomial(torch.tensor(prior), 6000, replacement=True, generator=g)
    x = torch.randn(6000, 4, generator=g)
    x[torch.arange(6000), truth] += 3.0
    labels = flip_labels(truth, flips, num_classes=len(prior), generator=g)
    data = TensorSet(x, labels.targets)
    holdout, train = data.subset(torch.arange(2000)), data.subset(torch.arange(2000, 6000))

    def model() -> nn.Module:
        return nn.Linear(4, len(prior))

    store = rd.fit_irreducible_loss(
        model, holdout, train, epochs=3, progress=False,
        make_optimizer=lambda parameters: torch.optim.Adam(parameters, 0.03),
    )  # fmt: skip
    return store, train, labels.corrupted[2000:]


@pytest.mark.parametrize("prior", [[0.9, 0.1], [0.5, 0.5], [0.6, 0.15, 0.15, 0.1]])
def test_clean_data_lose_a_hundredth_of_a_class_at_most(prior: list[float]) -> None:
    store, train, _ = _fitted(prior)
    plan = rd.Plan.from_irreducible_loss(store, train.ids, train.targets)
    for row in plan.report["by_class"]:
        assert row["examples"] - row["kept"] <= 0.01 * row["examples"]
    assert float(plan.noise_floor.sum()) < 0.1  # for the loss, which is about the plain one
    assert plan.report["wrong_share"] < 0.1


@pytest.mark.parametrize("prior", [[0.9, 0.1], [0.6, 0.15, 0.15, 0.1]])
def test_flips_are_found_beside_a_class_of_most_rows(prior: list[float]) -> None:
    store, train, wrong = _fitted(prior, flips=0.2)
    plan = rd.Plan.from_irreducible_loss(store, train.ids, train.targets)
    dropped = torch.isin(train.ids, plan.dropped)
    learned = torch.tensor(store.header["noise_floor"])
    by_median = rd.Plan.from_irreducible_loss(
        store, train.ids, train.targets, noise_floor=learned
    ).dropped
    assert int((dropped & wrong).sum()) >= int(wrong[torch.isin(train.ids, by_median)].sum())
    assert int((dropped & ~wrong).sum()) <= 0.1 * int((~wrong).sum())
    below = torch.tensor(plan.report["drop_below"], dtype=torch.float64)
    p = store.lookup(train.ids).double().neg().exp()
    assert torch.equal(dropped, p < below[train.targets])
    assert float(plan.noise_floor.sum()) < 1.0


def test_medians_alone_are_no_floor_for_a_class_of_most_rows() -> None:
    store = store_of(header={"noise_floor": FLOOR.tolist()})
    labels = torch.tensor([0, 0, 0, 0, 1, 1])
    with pytest.warns(
        UserWarning, match=r"class 0 has 4 of 6 labels.* Fit the irreducible losse"
    ) as w:
        rd.Plan.from_irreducible_loss(store, range(6), labels)
    assert w[0].filename == __file__
    half = rd.Plan.from_irreducible_loss(store, range(6), LABELS)  # three of six: no warning
    assert half.report["drop_below"] == FLOOR.tolist()


def test_what_fitting_learned_is_what_labels_are_dropped_below() -> None:
    learned = {"floor": [0.2, 0.02], "cut": [0.6, 0.4], "share": [0.5, 1.0]}
    store = store_of(header={"noise_floor": [0.9, 0.9], "learned_noise": learned})
    plan = rd.Plan.from_irreducible_loss(store, range(6), LABELS)
    assert plan.report["noise_floor"] == [0.2, 0.02]
    # one of three of class 0 may go: up to its second; all of class 1 that lies below 0.4
    assert plan.report["drop_below"] == pytest.approx([0.25, 0.4])
    assert plan.ids.tolist() == [0, 1, 3]
    assert plan.dropped.tolist() == [5, 4, 2]
