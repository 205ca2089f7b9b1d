"""The tutorial and the how-to pages run, block by block, on real files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import reducible as rd
from reducible.lab.data import fashion_mnist, sentences
from reducible.tasks import Outputs

DOCS = Path(__file__).parents[1] / "docs"
IMAGES = 800


def _blocks(name: str) -> list[str]:
    text = (DOCS / name).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the tutorial reads: a tenth of the images wear another's label, every row is real."""
    monkeypatch.chdir(tmp_path)
    images = fashion_mnist()
    rows = (images.targets < 4).nonzero().squeeze(1)[:IMAGES].tolist()
    for row in rows:
        label = int(images.targets[row])
        folder = tmp_path / "photos" / f"class-{(label + 1) % 4 if row % 10 == 0 else label}"
        folder.mkdir(parents=True, exist_ok=True)
        x = images.inputs[row].squeeze().float()
        pixels = (255 * (x - x.min()) / (x.max() - x.min())).byte().numpy()
        Image.fromarray(pixels).save(folder / f"{row:05d}.png")
    pooled = torch.nn.functional.avg_pool2d(images.inputs[rows].float().view(-1, 1, 28, 28), 7)
    table = np.column_stack([pooled.flatten(1).numpy(), images.targets[rows].numpy()])
    header = ",".join([*(f"x{i}" for i in range(16)), "class"])
    np.savetxt(tmp_path / "table.csv", table, delimiter=",", header=header, comments="")
    found = sentences()
    lines = []
    for text, label in zip(found.texts[:400], found.targets[:400].tolist(), strict=True):
        ids = [1 + sum(word.encode()) % 29_999 for word in text.split()][:40] or [1]
        item = {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": label}
        lines.append(json.dumps(item))
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    return tmp_path


def test_the_tutorial_runs_from_its_first_block_to_its_last(files: Path) -> None:
    space: dict[str, Any] = {}
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        for number, block in enumerate(_blocks("tutorial.md"), 1):
            exec(compile(block, f"tutorial.md, block {number}", "exec"), space)
            if "suspicious = " in block:
                dropped = [int(file.stem) for file in space["suspicious"]]
                wrong = sum(row % 10 == 0 for row in dropped)
                assert wrong > 0.3 * len(dropped)  # a tenth is what chance would find
            if "seconds = " in block:
                assert space["batches"].step == IMAGES // 128  # the short rest is left out
                assert space["seconds"]["score"] > 0
    assert (files / "photos.safetensors").exists()
    assert space["batches"].step == 300 // 64


class Boxes:
    """A type of one's own."""

    def __init__(self, of: list[Any]) -> None:
        self.of = of


def _small() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def _space(folder: Path) -> dict[str, Any]:
    """Names that the how-to pages take for granted."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(96, 6, generator=g)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    train, holdout = TensorDataset(x[:64], y[:64]), TensorDataset(x[64:], y[64:])
    model = _small()
    loader = DataLoader(rd.WithIds(train), batch_size=32, shuffle=True, generator=g)
    store = rd.IrreducibleLossStore.from_tensor(torch.rand(64, generator=g))
    batches = rd.SelectingLoader(loader, model, rd.selector("rho"), keep=8, store=store)
    next(iter(batches))
    several = (x[:8], torch.stack([y[:8], y[:8], y[:8]], dim=1) % 2)
    return {
        "rd": rd, "torch": torch, "F": F, "train": train, "holdout": holdout, "model": model,
        "make_small_model": _small, "group_of": torch.arange(64) // 2, "losses": torch.rand(64),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1), "loader": loader,
        "store": store, "batches": batches, "folder": folder, "batch": (x[:8], y[:8]),
        "mappings": [{"index": torch.arange(8), "photo": x[:8], "kind": y[:8]}],
        "several": [rd.Candidates(torch.arange(8), several)], "Outputs": Outputs, "Boxes": Boxes,
    }  # fmt: skip


ELSEWHERE = {"trainers", "language-models", "steer"}  # run in test_howto_trainers
HOWTO = sorted(
    path.relative_to(DOCS) for path in (DOCS / "howto").glob("*.md") if path.stem not in ELSEWHERE
)


@pytest.mark.parametrize("page", HOWTO, ids=str)
def test_every_how_to_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    space = _space(tmp_path)
    blocks = _blocks(str(page))
    assert blocks
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"{page}, block {number}", "exec"), space)
    if page.stem == "batches":
        assert space["chosen"].ids.numel() == 2
    if page.stem == "runs":
        assert 0.3 < space["summary"]["final_accuracy"] < 1
