"""Selection in two processes: torchrun --nproc-per-node 2 examples/accelerate_ddp.py

Each process chooses from candidates of its own; no row comes to both within a pass.
"""

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

import reducible as rd
from reducible.adapters.accelerate import SelectionLoader
from reducible.lab.data import fashion_mnist


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    known = fashion_mnist("train")
    data = rd.WithIds(TensorDataset(known.inputs.float().sub(73).div(90), known.targets))
    holdout, train = Subset(data, range(6_000)), Subset(data, range(6_000, 20_000))
    if accelerator.is_main_process:  # one process fits, the others load
        fitted = rd.fit_irreducible_loss(network, holdout, train, epochs=3, progress=False)
        fitted.save("il.safetensors")
    accelerator.wait_for_everyone()
    store = rd.IrreducibleLossStore.load("il.safetensors")

    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model, optimizer = accelerator.prepare(model, optimizer)
    loader = DataLoader(train, batch_size=16, shuffle=True)
    loader = SelectionLoader(accelerator, model, loader, "rho", keep=0.25, store=store)
    for chosen in loader:  # an epoch: as many rows as the data have
        x, y = chosen.batch
        losses = F.cross_entropy(model(x), y, reduction="none")
        accelerator.backward(rd.weighted_mean(losses, chosen.weights))
        optimizer.step()
        optimizer.zero_grad()
    accelerator.save_state("state")  # the loader's state is in it

    x, y = next(iter(DataLoader(holdout, batch_size=6_000))).batch
    with torch.no_grad():
        right = (model(x).argmax(1) == y).float().mean()
    accelerator.print(f"{accelerator.num_processes} processes, {len(loader)} updates each")
    accelerator.print(f"accuracy {float(right):.1%}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
