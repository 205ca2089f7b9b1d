"""Selection for a LightningModule that knows nothing of it, with figures in TensorBoard."""

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset

import reducible as rd
from reducible.adapters.lightning import SelectionCallback, SelectionLoader
from reducible.lab.data import fashion_mnist


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))


class Clothes(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        self.log("accuracy", (self(x).argmax(1) == y).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main() -> None:
    torch.manual_seed(0)
    known = fashion_mnist("train")
    data = TensorDataset(known.inputs.float().sub(73).div(90), known.targets)
    holdout, train = Subset(data, range(6_000)), Subset(data, range(6_000, 20_000))
    store = rd.fit_irreducible_loss(network, rd.WithIds(holdout), rd.WithIds(train), epochs=3,
                                    progress=False)  # fmt: skip
    module = Clothes()
    loader = DataLoader(train, batch_size=32, shuffle=True)  # as without selection
    loader = SelectionLoader(module, loader, "rho", keep=0.25, store=store)  # and with it
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=TensorBoardLogger("runs/lightning"),
        callbacks=[SelectionCallback(loader)], enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(module, loader, DataLoader(holdout, batch_size=500))
    print(f"accuracy {float(trainer.callback_metrics['accuracy']):.1%}")


if __name__ == "__main__":
    main()
