"""Selection in a skorch net, with scikit-learn's ways around it: a table of digits' pixels."""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from skorch import NeuralNetClassifier
from torch import nn
from torch.utils.data import Subset, TensorDataset

import reducible as rd
from reducible.adapters.skorch import SelectionMixin
from reducible.lab.data import flip_labels


class SelectiveClassifier(SelectionMixin, NeuralNetClassifier):
    """A classifier of skorch's that chooses what it trains on."""


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def main() -> None:
    torch.manual_seed(0)
    pixels, labels = load_digits(return_X_y=True)
    x, test_x, y, test_y = train_test_split(pixels, labels, test_size=0.3, random_state=0)
    x, test_x = torch.tensor(x).float() / 16, torch.tensor(test_x).float() / 16
    noisy = flip_labels(torch.tensor(y), 0.2, num_classes=10, generator=torch.Generator()).targets

    data = rd.WithIds(TensorDataset(x, noisy))
    store = rd.cross_fit_irreducible_loss(network, data, epochs=20, progress=False)
    common = {
        "criterion": nn.CrossEntropyLoss, "optimizer": torch.optim.AdamW, "lr": 3e-3,
        "batch_size": 16, "max_epochs": 20, "train_split": None, "verbose": 0,
        "iterator_train__shuffle": True,
    }  # fmt: skip
    plain = NeuralNetClassifier(network, **common).fit(x, noisy)
    selective = SelectiveClassifier(
        network, selection_rule="rho", selection_keep=0.25, selection_store=store, **common
    ).fit(x, noisy)
    rows = Subset(data, range(3))
    assert rows[0].ids == 0  # ids are positions in what is passed to fit
    print(f"one label in five is wrong; plain {plain.score(test_x, test_y):.1%}, ", end="")
    print(f"selective {selective.score(test_x, test_y):.1%}")


if __name__ == "__main__":
    main()
