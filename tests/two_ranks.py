"""Trains in every process that ``torchrun`` starts: two_ranks.py FRAMEWORK FOLDER."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).parent))
import reducible as rd
from hf_toys import Ids, arguments, bert, padded, texts

UPDATES, N_B, KEEP, SEED, RATE = 40, 4, 0.25, 3, 0.05
SAVED_AT = 22  # updates: inside a pass over the candidates, and inside an epoch


def tensors() -> TensorDataset:
    """136 rows: not a whole number of candidate batches for two processes."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(136, 6, generator=g)
    return TensorDataset(x, (x[:, 0] + 0.3 * torch.randn(136, generator=g) > 0).long())


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).double()


class Doubles(TensorDataset):
    """Inputs in float64, so that sums over processes differ by nothing that matters."""

    def __init__(self) -> None:
        x, y = tensors().tensors
        super().__init__(x.double(), y)


def by_accelerate(
    log: Ids, folder: Path, rule: str = "train_loss", *, goes_on: bool = False
) -> nn.Module:
    """All updates, with a checkpoint on the way; or, if it ``goes_on``, those after it."""
    from accelerate import Accelerator

    from reducible.adapters.accelerate import SelectionLoader

    accelerator = Accelerator(cpu=True)
    model = network()
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=RATE))
    loader = SelectionLoader(accelerator, model, DataLoader(Doubles(), N_B, shuffle=True),
                             rule, keep=KEEP, seed=SEED, record=log)  # fmt: skip
    done = 0
    if goes_on:
        accelerator.load_state(str(folder / "state"))
        done = SAVED_AT
    while done < UPDATES:
        for chosen in loader:
            x, y = chosen.batch
            accelerator.backward(F.cross_entropy(model(x), y))
            optimizer.step()
            optimizer.zero_grad()
            done += 1
            if done == SAVED_AT:
                accelerator.save_state(str(folder / "state"))
            if done == UPDATES:
                break
    return accelerator.unwrap_model(model)


def by_accelerate_with_memory(log: Ids, folder: Path) -> nn.Module:
    return by_accelerate(log, folder, "selective_backprop")


def by_accelerate_resumed(log: Ids, folder: Path) -> nn.Module:
    return by_accelerate(log, folder, "selective_backprop", goes_on=True)


def by_lightning(log: Ids, folder: Path) -> nn.Module:
    import pytorch_lightning as pl

    from reducible.adapters.lightning import SelectionLoader

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            x, y = batch
            return F.cross_entropy(self(x), y)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=RATE)

    module = Module()
    loader = SelectionLoader(module, DataLoader(Doubles(), N_B, shuffle=True), "train_loss",
                             keep=KEEP, seed=SEED, record=log)  # fmt: skip
    pl.Trainer(
        max_steps=UPDATES, accelerator="cpu", devices=2, strategy="ddp", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=str(folder),
    ).fit(module, loader)  # fmt: skip
    return module.net


def by_transformers(log: Ids, folder: Path) -> nn.Module:
    import datasets

    from reducible.adapters.transformers import SelectionArguments, SelectionTrainer

    trainer = SelectionTrainer(
        bert().double(),
        arguments(
            folder, per_device_train_batch_size=N_B, max_steps=UPDATES, optim="sgd",
            learning_rate=RATE, lr_scheduler_type="constant", max_grad_norm=0.0, seed=SEED,
            ddp_backend="gloo", average_tokens_across_devices=False,  # else BERT's loss is doubled
        ),
        train_dataset=datasets.Dataset.from_list(texts(136)),
        data_collator=padded,
        selection=SelectionArguments("train_loss", keep=KEEP),
        loader_options={"record": log, "shadows": {}},
    )  # fmt: skip
    trainer.train()
    model: Any = trainer.model
    return model


def main() -> None:
    framework, folder = sys.argv[1], Path(sys.argv[2])
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    log = Ids()
    model = globals()[f"by_{framework}"](log, folder)
    rank = dist.get_rank()
    weights = torch.cat([p.detach().flatten() for p in model.parameters()]).tolist()
    (folder / f"{rank}.json").write_text(json.dumps({"ids": log.ids, "weights": weights}))
    dist.barrier()
    dist.destroy_process_group()
    assert rd.__version__


if __name__ == "__main__":
    main()
