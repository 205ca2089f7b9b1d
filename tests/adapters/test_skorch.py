"""skorch: the plain loop's picks by the net's own criterion; nets can be cloned and searched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import reducible as rd
from hf_toys import Ids

pytest.importorskip("skorch", reason="reducible[skorch] is not installed")
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from skorch import NeuralNetClassifier

from reducible.adapters.skorch import SelectionMixin

G = torch.Generator().manual_seed(0)
X = torch.randn(256, 6, generator=G)
Y = (X[:, 0] + 0.3 * torch.randn(256, generator=G) > 0).long()


class Net(SelectionMixin, NeuralNetClassifier):
    """As the documentation says."""


def _module() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))


class Probabilities(nn.Module):
    """What skorch's default criterion, NLLLoss, wants."""

    def __init__(self) -> None:
        super().__init__()
        self.net = _module()

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        return self.net(X).softmax(1)


def _net(rule: str, log: Ids, **changes: Any) -> Net:
    settings: dict[str, Any] = {
        "criterion": nn.CrossEntropyLoss, "optimizer": torch.optim.AdamW, "lr": 1e-2,
        "batch_size": 8, "max_epochs": 6, "train_split": None, "verbose": 0,
        "iterator_train__shuffle": True, "selection_keep": 0.25, "selection_seed": 3,
        "selection_options": {"record": log},
    }  # fmt: skip
    return Net(_module(), selection_rule=rule, **(settings | changes))


@pytest.mark.parametrize("rule", ["train_loss", "uniform", "rho", "grad_norm_is"])
def test_the_picks_of_the_plain_loop_over_192_steps(rule: str) -> None:
    store = rd.IrreducibleLossStore.from_tensor(torch.rand(256, generator=G))
    log, by_hand = Ids(), Ids()
    task = rd.Classification() if rule == "grad_norm_is" else None
    net = _net(rule, log, selection_store=store, selection_task=task).fit(X, Y)
    model = _module()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loader = DataLoader(
        rd.WithIds(TensorDataset(X, Y)), batch_size=32, shuffle=True, drop_last=True,
        generator=torch.Generator().manual_seed(3),
    )  # fmt: skip
    batches = rd.SelectingLoader(
        loader, model, rd.selector(rule), keep=8, seed=3, record=by_hand, store=store,
        scoring=rd.Scoring(batchnorm="running"),
    )  # fmt: skip
    while batches.step < 192:
        for chosen in batches:
            x, y = chosen.batch
            losses = F.cross_entropy(model(x), y, reduction="none")
            rd.weighted_mean(losses, chosen.weights).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert log.ids == by_hand.ids
    for mine, theirs in zip(net.module_.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert len(net.history) == 6
    assert {row["train_batch_count"] for row in net.history} == {32}


def test_the_default_criterion_takes_probabilities() -> None:
    """The loss is the net's own: NLLLoss of a module that puts out probabilities."""
    log = Ids()
    net = Net(Probabilities, selection_rule="train_loss", selection_keep=0.25, batch_size=8,
              max_epochs=1, train_split=None, verbose=0, lr=1e-9,
              selection_options={"record": log})  # fmt: skip
    net.fit(X, Y)
    losses = F.cross_entropy(Probabilities().net(X), Y, reduction="none").detach()
    first = range(32)  # skorch does not shuffle of itself
    best = sorted(first, key=lambda i: -float(losses[i]))[:8]
    assert sorted(log.ids[0]) == sorted(best)


def test_ids_are_positions_in_what_was_fitted_before_the_split() -> None:
    from skorch.dataset import ValidSplit

    log = Ids()
    net = _net("train_loss", log, train_split=ValidSplit(4), max_epochs=8)
    net.fit(X, Y)
    split: Any = net.get_split_datasets(X, Y)
    train = set(split[0].indices)
    assert {i for ids in log.ids for i in ids} <= train
    assert len(train) == 192
    assert "valid_acc" in net.history[-1]


def test_partial_fit_goes_on_where_it_stopped() -> None:
    whole, parts = Ids(), Ids()
    _net("train_loss", whole, max_epochs=4).fit(X, Y)
    net = _net("train_loss", parts, max_epochs=2)
    net.partial_fit(X, Y)
    net.partial_fit(X, Y)
    assert parts.ids == whole.ids


def test_nets_are_cloned_and_searched() -> None:
    net = _net("train_loss", Ids(), max_epochs=1, selection_options=None)
    copy = clone(net)
    assert copy.get_params()["selection_keep"] == 0.25
    search = GridSearchCV(net, {"selection_keep": [0.5, 1.0]}, cv=2, refit=False,
                          scoring="accuracy")  # fmt: skip
    search.fit(X.numpy(), Y.numpy())
    assert len(search.cv_results_["mean_test_score"]) == 2


def test_a_criterion_without_losses_by_example_is_refused() -> None:
    class Own(nn.Module):
        def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return F.cross_entropy(output, target)

    net = _net("train_loss", Ids(), criterion=Own)
    with pytest.raises(rd.ConfigurationError, match=r"Own gives no loss by example"):
        net.fit(X, Y)
