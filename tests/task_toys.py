"""What the tests of tasks share: six rows of three classes."""

from __future__ import annotations

import torch

X, Y = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
