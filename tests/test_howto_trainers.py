"""The how-to pages of trainers, language models and steering run, block by block, on small data."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset

import reducible as rd
from hf_toys import arguments, bert, gpt, padded, padded_lm, texts

PAGES = Path(__file__).parents[1] / "docs" / "howto"
G = torch.Generator().manual_seed(0)
X = torch.randn(128, 6, generator=G)
Y = (X[:, 0] > 0).long()
BASE: dict[str, Any] = {"rd": rd, "torch": torch, "F": F, "DataLoader": DataLoader,
                        "Subset": Subset}  # fmt: skip


def _run(name: str, before: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """Runs the blocks of a page; the names of ``before`` are there from where its text occurs."""
    space = dict(BASE)
    text = (PAGES / name).read_text(encoding="utf-8")
    given = list(before)
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", text, re.M | re.S), 1):
        while given and given[0][0] in block:
            space |= given.pop(0)[1]
        exec(compile(block, f"{name}, block {number}", "exec"), space)
    assert not given
    return space


def _network() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_trainers_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    pl = pytest.importorskip("pytorch_lightning")
    accelerate = pytest.importorskip("accelerate")
    pytest.importorskip("skorch")
    pytest.importorskip("trl")
    monkeypatch.chdir(tmp_path)

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = _network()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    model, data = _network(), TensorDataset(X, Y)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
             "enable_model_summary": False, "accelerator": "cpu", "devices": 1}  # fmt: skip
    rows = rd.WithIds(data)
    said: list[int] = []
    space = _run(
        "trainers.md",
        [
            ("trainer = SelectionTrainer(", {
                "model": bert(), "args": arguments(tmp_path, max_steps=3), "collator": padded,
                "train": datasets.Dataset.from_list(texts(96)), "make_small_model": bert,
                "holdout": datasets.Dataset.from_list(texts(40, seed=2)),
                "reference_model": bert(5),
            }),
            ("rows = sft.train_dataset", {"make_small_lm": gpt, "sft": SimpleNamespace(
                train_dataset=texts(32), eval_dataset=texts(16), data_collator=padded_lm)}),
            ("SelectionLoader(module", {"pl": pl, "module": Module(), "quiet": quiet,
                                        "loader": DataLoader(data, 8, shuffle=True)}),
            ("accelerator.prepare", {
                "accelerator": accelerate.Accelerator(cpu=True), "model": model,
                "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
                "loader": DataLoader(data, 8, shuffle=True),
            }),
            ("net = Net(", {"module": _network(), "x": X, "y": Y, "settings": {
                "criterion": nn.CrossEntropyLoss, "max_epochs": 1, "verbose": 0,
                "train_split": None, "batch_size": 8}}),
            ("plan = rd.Plan", {
                "store": rd.IrreducibleLossStore.from_tensor(
                    torch.rand(128), header={"noise_floor": [0.01, 0.01]}),
                "ids": rows.ids, "labels": Y, "data": rows, "model": bert(),
                "train": datasets.Dataset.from_list(texts(128)),
            }),
            ("metrics = rd.SelectionMetrics", {
                "said": said, "model": model,
                "candidates": DataLoader(rows, 8 * 4, shuffle=True),
            }),
        ],
    )  # fmt: skip
    assert (tmp_path / "il.safetensors").exists()
    assert len(space["net"].history) == 1
    assert [len(c.ids) for c in space["batches"]] == [8] * 4


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_every_language_models_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    model = gpt()
    space = _run(
        "language-models.md",
        [
            ("score_token_irreducible_loss", {
                "reference": gpt(5), "rows": rd.WithIds(texts(64)), "collate": padded_lm,
                "model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
            }),
            ("shard = ", {"with_ids": rd.collate_with_ids(padded_lm)}),
        ],
    )  # fmt: skip
    assert (tmp_path / "tokens.safetensors").exists()
    assert [len(chosen.ids) for chosen in space["batches"]] == [8, 8]
    assert len(space["store"]) == 64


def test_every_steering_block_runs() -> None:
    pytest.importorskip("optuna")
    pool = TensorDataset(X.repeat(8, 1), Y.repeat(8))
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))
    right = (x[:, 0] > 0).long()
    space = _run(
        "steer.md",
        [
            ("data = rd.WithIds", {
                "ConcatDataset": ConcatDataset, "pool": pool, "make_small_model": _network,
                "trusted": TensorDataset(x, right), "model": _network(),
                "labels": torch.cat([Y.repeat(8), right]),
            }),
        ],
    )  # fmt: skip
    assert {"keep", "share", "score"} <= set(space["choice"]["tried"][0])
    for chosen in space["batches"]:
        assert int((chosen.ids >= 1024).sum()) >= 1
    assert space["kept"] == [loss <= space["keeps"].threshold for loss in (0.1, 2.5, 0.4)]
