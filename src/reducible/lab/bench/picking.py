"""Measures what picking costs, rule by rule, on made-up evidence."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from reducible.lab.bench.rows import milliseconds, row
from reducible.selectors import selector
from reducible.types import Evidence


def picking_time(name: str, *, repeats: int) -> dict[str, Any]:
    """Milliseconds to pick 32 of 320 with 100 classes and 512 features, without the forward."""
    rule, evidence = selector(name), made_up_evidence(320, 100, 512)
    generator = torch.Generator().manual_seed(0)

    def pick() -> None:
        rule.observe(evidence, rule.select(evidence, 32, generator=generator))

    pick()
    times = [milliseconds(pick) for _ in range(repeats * 2)]
    return row(f"picking 32 of 320: {name}", times, "ms")


def large_divbs() -> dict[str, Any]:
    """Seconds to pick 512 of 4,096 by DivBS."""
    rule, evidence = selector("divbs"), made_up_evidence(4096, 100, 512)
    generator = torch.Generator().manual_seed(0)
    times = [
        milliseconds(lambda: rule.select(evidence, 512, generator=generator)) / 1000
        for _ in range(3)
    ]
    return row("picking 512 of 4,096: divbs", times, "s")


def made_up_evidence(candidates: int, classes: int, width: int) -> Evidence:
    """Everything that a rule may read, drawn at random."""
    g = torch.Generator().manual_seed(0)
    logits = 3.0 * torch.randn(candidates, classes, generator=g)
    targets = torch.randint(classes, (candidates,), generator=g)
    return Evidence(
        ids=torch.arange(candidates),
        targets=targets,
        loss=F.cross_entropy(logits, targets, reduction="none"),
        logits=logits,
        features=torch.randn(candidates, width, generator=g).relu(),
        mc_logits=logits + torch.randn(10, candidates, classes, generator=g),
        irreducible_loss=3.0 * torch.rand(candidates, generator=g),
        group_irreducible_loss=3.0 * torch.rand(candidates, classes, generator=g),
        groups=targets,
        context={
            "step": torch.tensor(5),
            "epoch": torch.tensor(1),
            "total_steps": torch.tensor(100),
            "group_holdout_loss": torch.rand(classes, generator=g),
        },
    )
