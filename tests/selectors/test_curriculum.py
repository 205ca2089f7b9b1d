"""Easy examples first, then RHO-LOSS."""

from __future__ import annotations

import math

import pytest
import torch

import reducible as rd


def _evidence(epoch: int) -> rd.Evidence:
    return rd.Evidence(
        ids=torch.arange(4),
        loss=torch.tensor([2.0, 0.5, 3.0, 1.0]),
        irreducible_loss=torch.tensor([0.1, 0.4, 2.9, 0.5]),  # ρ = (1.9, 0.1, 0.1, 0.5)
        context={"epoch": torch.tensor(epoch)},
    )


@pytest.mark.parametrize(
    ("warmup", "epoch", "easy"),
    [(4, 0, True), (4, 3, True), (4, 4, False), (4, 9, False), (1, 1, False), (0, 0, False)],
)
def test_it_switches_at_the_epoch(
    warmup: int, epoch: int, easy: bool, generator: torch.Generator
) -> None:
    rule = rd.selector("curriculum_rho", warmup_epochs=warmup)
    chosen = rule.select(_evidence(epoch), 2, generator=generator)
    assert chosen.index.tolist() == ([1, 3] if easy else [0, 3])
    score = [-0.5, -1.0] if easy else [1.9, 0.5]
    assert chosen.info["score"].tolist() == pytest.approx(score)


def test_defaults() -> None:
    assert rd.SELECTORS["curriculum_rho"].hyperparameters == {"warmup_epochs": 4}
    assert rd.selector("curriculum_rho").needs == {"loss", "irreducible_loss", "epoch"}


def test_a_broken_store_shows_in_the_first_epoch(generator: torch.Generator) -> None:
    evidence = _evidence(0)
    evidence.require("irreducible_loss")[2] = math.nan
    with pytest.raises(rd.SelectionError, match="ids 2"):
        rd.selector("curriculum_rho").select(evidence, 1, generator=generator)
