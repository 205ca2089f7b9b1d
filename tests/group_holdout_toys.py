"""What the tests of the group holdout loss share: rows of three classes."""

from __future__ import annotations

import torch

from reducible.lab.data import TensorSet

G = 3


def rows_of(n: int = 30) -> TensorSet:
    g = torch.Generator().manual_seed(4)
    return TensorSet(torch.randn(n, 4, generator=g), torch.arange(n) % G)
