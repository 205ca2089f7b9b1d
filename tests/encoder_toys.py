"""What the tests of text encoders need: reviews, and a tiny encoder."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

import reducible as rd
from reducible.lab.encoders import SentenceClassifier, minilm

TASK = rd.SequenceClassification()
N, N_B, K = 96, 16, 4


def texts(n: int, *, seed: int) -> tuple[list[str], Tensor]:
    """Reviews of up to nine words, and which of them are good."""
    generator = torch.Generator().manual_seed(seed)
    fillers = ["film", "very", "a", "dull", "."]
    good = torch.randint(0, 2, (n,), generator=generator)  # [N]
    counts = torch.randint(1, 8, (n,), generator=generator).tolist()
    made: list[str] = []
    for is_good, count in zip(good.tolist(), counts, strict=True):
        words = [fillers[i] for i in torch.randint(0, 5, (count,), generator=generator).tolist()]
        made.append(" ".join([*words, "good" if is_good else "bad"]))
    return made, good


def tiny(folder: Path, seed: int = 0) -> SentenceClassifier:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return minilm(2, folder=folder)
