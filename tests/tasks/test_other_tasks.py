"""Numbers, several labels, pixels and losses of one's own: by hand, and in a loop."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import reducible as rd


@pytest.mark.parametrize(
    ("error", "expected"),
    [("squared", [2.5, 4.5]), ("absolute", [1.5, 1.5]), ("huber", [1.0, 1.25])],
)
def test_regression_by_hand(error: str, expected: list[float]) -> None:
    output = torch.tensor([[1.0, 2.0], [0.0, 3.0]])
    targets = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    found = rd.Regression(error).loss(output, targets)
    torch.testing.assert_close(found, torch.tensor(expected))


def test_one_output_per_row_may_lack_its_column() -> None:
    task = rd.Regression()
    found = task.loss(torch.tensor([[1.0], [3.0]]), torch.tensor([0, 1]))
    assert found.tolist() == [1.0, 4.0]
    with pytest.raises(rd.DataError, match="broadcasting would compare every row with every other"):
        task.loss(torch.zeros(3), torch.zeros(3, 1))


def test_several_labels_by_hand() -> None:
    logits = torch.tensor([[0.0, 2.0], [-1.0, 0.5]])
    targets = torch.tensor([[1, 0], [0, 1]])
    found = rd.MultiLabel().loss(logits, targets)

    def p(z: float) -> float:
        return 1 / (1 + math.exp(-z))

    expected = [
        -(math.log(p(0)) + math.log(1 - p(2))) / 2,
        -(math.log(1 - p(-1)) + math.log(p(0.5))) / 2,
    ]
    torch.testing.assert_close(found, torch.tensor(expected))
    with pytest.raises(rd.DataError, match=r"targets of shape \(2,\)"):
        rd.MultiLabel().loss(logits, torch.tensor([1, 0]))


def test_pixels_by_hand() -> None:
    logits = torch.zeros(2, 3, 2, 2)
    logits[0, 1] = 1.0
    targets = torch.tensor([[[1, 1], [255, 0]], [[255, 255], [255, 255]]])
    right = -math.log(math.e / (math.e + 2))
    wrong = -math.log(1 / (math.e + 2))
    found = rd.DensePrediction(ignore=255).loss(logits, targets)
    torch.testing.assert_close(found, torch.tensor([2 * right + wrong, 0.0]))
    mean = rd.DensePrediction(ignore=255, reduce="mean").loss(logits, targets)
    torch.testing.assert_close(mean, found / torch.tensor([3.0, 1.0]))
    with pytest.raises(rd.DataError, match="targets of shape"):
        rd.DensePrediction().loss(logits, targets[:, :1])


def _rows(task: Any, data: TensorDataset, model: nn.Module) -> list[list[int]]:
    loader = DataLoader(rd.WithIds(data), batch_size=6)
    batches = rd.SelectingLoader(loader, model, rd.selector("train_loss"), keep=2, task=task)
    return [chosen.ids.tolist() for chosen in batches]


def test_each_chooses_by_its_own_loss_and_refuses_what_it_has_not() -> None:
    zeros = torch.zeros(12, 1)
    far = torch.arange(12.0)
    assert _rows(rd.Regression(), TensorDataset(zeros, far), nn.Identity()) == [[5, 4], [11, 10]]
    images = torch.zeros(12, 2, 2, 2)
    masks = torch.full((12, 2, 2), -100)
    for i in range(12):
        masks[i].view(-1)[: i % 4] = 0  # the more pixels count, the higher the sum
    found = _rows(rd.DensePrediction(), TensorDataset(images, masks), nn.Identity())
    assert [sorted(i % 4 for i in ids)[-1] for ids in found] == [3, 3]
    for task in (rd.Regression(), rd.MultiLabel(), rd.DensePrediction()):
        with pytest.raises(rd.ConfigurationError, match=r"which .* does not give"):
            rd.SelectingLoader(
                DataLoader(rd.WithIds(TensorDataset(zeros, far)), 6), nn.Identity(),
                rd.selector("grad_norm"), keep=2, task=task,
            )  # fmt: skip


def _distance(model: Any, batch: Any) -> Tensor:
    return (model(batch[0]) - batch[1]).norm(dim=1)


def test_a_loss_of_ones_own_fits_scores_and_chooses() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(60, 3), torch.randn(60, 3)
    data = rd.WithIds(TensorDataset(x, y))
    task = rd.PerExampleLoss(_distance)
    store = rd.fit_irreducible_loss(
        lambda: nn.Linear(3, 3), torch.utils.data.Subset(data, range(20)),
        torch.utils.data.Subset(data, range(20, 60)), task=task, epochs=3, progress=False,
    )  # fmt: skip
    assert len(store) == 40
    assert not store.knows_labels  # ids alone tell
    model = nn.Linear(3, 3)
    loader = DataLoader(torch.utils.data.Subset(data, range(20, 60)), batch_size=40)
    loop = rd.SelectingLoader(
        loader, model, rd.selector("rho"), keep=4, store=store, task=task,
        scoring=rd.Scoring(batchnorm="running"),
    )  # fmt: skip
    (chosen,) = loop
    ids = torch.arange(20, 60)
    excess = _distance(model, (x[20:], y[20:])).detach() - store.lookup(ids)
    assert sorted(chosen.ids.tolist()) == sorted(ids[excess.topk(4).indices].tolist())


def test_targets_of_ones_own_are_fingerprinted() -> None:
    x, y = torch.randn(20, 3), torch.arange(20)
    data = rd.WithIds(TensorDataset(x, y))
    task = rd.PerExampleLoss(lambda m, b: m(b[0]).sum(1).abs(), targets_of=lambda b: b[1])
    store = rd.score_irreducible_loss(nn.Linear(3, 1), data, task=task, progress=False)
    store.check_data(torch.arange(20), y)
    with pytest.raises(rd.StoreError, match="other labels"):
        store.check_data(torch.arange(20), y.flip(0))


def test_a_loss_of_ones_own_that_is_reduced_is_told() -> None:
    with pytest.raises(rd.ConfigurationError, match="loss_of must be a function"):
        rd.PerExampleLoss(3)  # pyright: ignore[reportArgumentType]
    task = rd.PerExampleLoss(lambda model, batch: model(batch[0]).mean())
    with pytest.raises(rd.DataError, match=r"loss_of returned \(\), not \[B\].*reduction='none'"):
        _rows(task, TensorDataset(torch.zeros(6, 1), torch.zeros(6)), nn.Identity())
