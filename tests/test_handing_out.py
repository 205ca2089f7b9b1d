"""When rows are loaded, and which parts of a choice are handed out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import reducible as rd

N, N_B, K = 60, 20, 5


class Counted(Dataset[tuple[Tensor, int]]):
    """Examples that count, over all processes, how often each was loaded."""

    def __init__(self) -> None:
        self.x = torch.randn(N, 4, generator=torch.Generator().manual_seed(1))
        self.targets = (self.x.sum(1) > 0).long()
        self.loaded = torch.zeros(N, dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        self.loaded[index] += 1
        return self.x[index], int(self.targets[index])


def _batches(rule: str, *, workers: int = 0, data: Any = None, **options: Any) -> Any:
    loader = DataLoader(rd.WithIds(data or Counted()), batch_size=N_B, num_workers=workers)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    return rd.SelectingLoader(loader, model, rd.selector(rule), keep=K, **options)


def test_workers_load_only_the_rows_that_a_blind_rule_drew() -> None:
    data = Counted()
    handed = torch.cat([chosen.ids for chosen in _batches("uniform", workers=2, data=data)])
    assert handed.numel() == 3 * K
    expected = torch.zeros(N, dtype=torch.int64)
    expected[handed] = 1
    assert torch.equal(data.loaded, expected)


def test_parts_that_are_left_of_a_broken_pass_are_not_handed_out_in_the_next() -> None:
    batches = _batches("train_loss", scoring=rd.Scoring(updates_per_scoring=2))
    first = next(iter(batches))
    again = iter(batches)
    assert next(again).ids.tolist() == first.ids.tolist()  # of the same model: the same choice
    second = next(again).ids.tolist()
    assert not set(second) & set(first.ids.tolist())
    assert batches.step == 3
