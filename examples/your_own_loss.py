"""A loss of one's own: an autoencoder of clothes, of which a tenth is noise with no pattern."""

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset

import reducible as rd
from reducible.lab.data import fashion_mnist


def autoencoder(width: int = 32) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, width),
        nn.ReLU(), nn.Linear(width, 784), nn.Sigmoid(),
    )  # fmt: skip


def reconstruction(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """[B]: one loss per example. That is all that selection needs."""
    (images,) = batch
    return (model(images) - images.flatten(1)).square().mean(1)


def main() -> None:
    torch.manual_seed(0)
    images = fashion_mnist("train").inputs[:14_000].float() / 255
    noise = torch.rand(len(images)) < 0.1
    images[noise] = torch.rand_like(images[noise])
    data = rd.WithIds(TensorDataset(images))
    holdout, train = Subset(data, range(4_000)), Subset(data, range(4_000, 14_000))

    task = rd.PerExampleLoss(reconstruction)
    store = rd.fit_irreducible_loss(
        lambda: autoencoder(16), holdout, train, task=task, epochs=5, progress=False
    )
    model = autoencoder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = DataLoader(train, batch_size=256, shuffle=True)
    batches = rd.SelectingLoader(loader, model, rd.selector("rho"), keep=64, store=store, task=task)
    chosen_noise: list[Tensor] = []
    for _ in range(8):
        for chosen in batches:
            losses = reconstruction(model, chosen.batch)
            rd.weighted_mean(losses, chosen.weights).backward()
            optimizer.step()
            optimizer.zero_grad()
            chosen_noise.append(noise[chosen.ids])
    share = torch.cat(chosen_noise).float().mean()
    clean = images[4_000:][~noise[4_000:]]
    with torch.no_grad():
        error = reconstruction(model, (clean,)).mean()
    print(f"noise: {noise.float().mean():.1%} of the candidates, {share:.1%} of the chosen")
    print(f"error of clean images {error:.4f}")


if __name__ == "__main__":
    main()
