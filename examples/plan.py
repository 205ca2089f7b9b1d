"""A plan: wrong labels dropped and hard examples shown more often, decided once, free per step."""

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

import reducible as rd
from reducible.lab.data import fashion_mnist, flip_labels


def small_model() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))


def main() -> None:
    torch.manual_seed(0)
    known, tests = fashion_mnist("train"), fashion_mnist("test")
    noisy = flip_labels(known.targets, 0.1, num_classes=10, generator=torch.Generator())
    images = known.inputs.float().sub(73).div(90)
    data = rd.WithIds(TensorDataset(images, noisy.targets))
    holdout, train = Subset(data, range(6_000)), Subset(data, range(6_000, 20_000))
    labels = noisy.targets[6_000:20_000]

    store = rd.fit_irreducible_loss(small_model, holdout, train, epochs=5, progress=False)
    ids = torch.arange(6_000, 20_000)
    plan = rd.Plan.from_irreducible_loss(store, ids, labels)
    wrong = noisy.corrupted[plan.dropped]
    print(f"the plan dropped {len(wrong)} of {len(labels)} examples; {int(wrong.sum())} were wrong")

    net = nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 5, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    order = plan.sampler(train, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        for _ids, (x, y) in DataLoader(train, batch_size=32, sampler=order):
            loss = nn.functional.cross_entropy(net(x), y, reduction="none")
            rd.noise_floor_loss(loss, y, plan.noise_floor).mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    net.eval()
    with torch.no_grad():
        right = net(tests.inputs.float().sub(73).div(90)).argmax(1) == tests.targets
    print(f"test accuracy {float(right.float().mean()):.1%}")


if __name__ == "__main__":
    main()
