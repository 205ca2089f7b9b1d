"""The original selection function: on given evidence it is RHO-LOSS."""

from __future__ import annotations

import pytest
import torch

import reducible as rd


@pytest.mark.parametrize("seed", range(5))
def test_on_given_evidence_it_is_rho(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    evidence = rd.Evidence(
        ids=torch.arange(20),
        loss=torch.rand(20, generator=g),
        irreducible_loss=torch.rand(20, generator=g),
    )
    both = [
        rd.selector(name).select(evidence, 6, generator=torch.Generator().manual_seed(seed))
        for name in ("rho", "rho_updating")
    ]
    assert both[0].index.tolist() == both[1].index.tolist()
    assert both[0].info["score"].tolist() == both[1].info["score"].tolist()


def test_the_loop_is_told_the_learning_rate() -> None:
    assert rd.selector("rho_updating").lr_ratio == 0.01
    assert rd.selector("rho_updating", lr_ratio=0).lr_ratio == 0
    assert rd.selector("rho_updating").needs == {"loss", "irreducible_loss"}
    assert rd.selector("rho").lr_ratio is None
