"""Ids chosen in 20 CPU steps, compared exactly with ``picks.json`` beside this file.

A change here means that every user's run changes: it must be intended. After an intended change,
write the file anew with ``python tests/golden/test_golden.py`` and say why in the commit.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import reducible as rd
from reducible.lab.data import TensorSet

GOLDEN = Path(__file__).with_name("picks.json")
RULES = ("uniform", "train_loss", "rho")
STEPS, N, N_B, K = 20, 400, 40, 6


def chosen_ids(rule: str) -> list[list[int]]:
    """Train a small network for 20 steps on a fixed problem; the ids chosen at each."""
    g = torch.Generator().manual_seed(2022)
    centres = torch.randn(4, 6, generator=g)
    y = torch.randint(4, (N,), generator=g)
    x = centres[y] + torch.randn(N, 6, generator=g)
    noisy = torch.where(torch.rand(N, generator=g) < 0.1, torch.randint(4, (N,), generator=g), y)
    irreducible = F.cross_entropy(-torch.cdist(x, centres), noisy, reduction="none")
    store = rd.IrreducibleLossStore.from_tensor(irreducible)

    with torch.random.fork_rng([]):
        torch.manual_seed(7)
        model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    order = torch.Generator().manual_seed(8)
    batches = rd.SelectingLoader(
        TensorSet(x, noisy).loader(N_B, generator=order),
        model,
        rd.selector(rule),
        keep=K,
        store=store if rule == "rho" else None,
        seed=9,
    )
    ids: list[list[int]] = []
    while batches.step < STEPS:
        for chosen in batches:
            inputs, labels = chosen.batch
            loss = F.cross_entropy(model(inputs), labels, reduction="none")
            optimizer.zero_grad()
            rd.weighted_mean(loss, chosen.weights).backward()
            optimizer.step()
            ids.append(chosen.ids.tolist())
    return ids


@pytest.mark.parametrize("rule", RULES)
def test_the_same_ids_as_ever(rule: str) -> None:
    golden = json.loads(GOLDEN.read_text())
    assert set(golden) == set(RULES)
    assert chosen_ids(rule) == golden[rule]


if __name__ == "__main__":
    torch.set_num_threads(1)
    lines = [f'  "{rule}": {json.dumps(chosen_ids(rule))}' for rule in RULES]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")
