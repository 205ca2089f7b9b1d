"""RHO-LOSS in a loop of one's own, on images of clothes of which one label in ten is wrong."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

import reducible as rd
from reducible.lab.data import fashion_mnist, flip_labels


def model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 5, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip


def small_model() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))


def main() -> None:
    torch.manual_seed(0)
    known, tests = fashion_mnist("train"), fashion_mnist("test")
    noisy = flip_labels(known.targets, 0.1, num_classes=10, generator=torch.Generator())
    images = known.inputs.float().sub(73).div(90)
    data = rd.WithIds(TensorDataset(images, noisy.targets))
    holdout, train = Subset(data, range(6_000)), Subset(data, range(6_000, 20_000))

    store = rd.fit_irreducible_loss(small_model, holdout, train, epochs=5, progress=False)
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    loader = DataLoader(train, batch_size=320, shuffle=True)  # the candidates
    batches = rd.SelectingLoader(loader, net, rd.selector("rho"), keep=32, store=store)
    chosen_wrong = rows = 0
    for _ in range(6):  # passes over the candidates
        for chosen in batches:
            x, y = chosen.batch
            losses = F.cross_entropy(net(x), y, reduction="none")
            rd.weighted_mean(losses, chosen.weights).backward()
            optimizer.step()
            optimizer.zero_grad()
            chosen_wrong += int(noisy.corrupted[chosen.ids].sum())
            rows += len(y)
    wrong = float(noisy.corrupted[6_000:20_000].float().mean())

    net.eval()
    with torch.no_grad():
        right = net(tests.inputs.float().sub(73).div(90)).argmax(1) == tests.targets
    print(f"{batches.step} updates of 32 rows; test accuracy {float(right.float().mean()):.1%}")
    print(f"wrong labels: {wrong:.1%} of the candidates, {chosen_wrong / rows:.1%} of the chosen")
    spent = batches.ledger.seconds
    print(f"scoring took {spent['score'] / batches.ledger.charged:.0%} of the time")


if __name__ == "__main__":
    main()
