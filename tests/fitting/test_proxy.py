"""The proxy: a model fitted on the train set itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Subset

import reducible as rd
from fitting_toys import QUIET, sgd_at
from group_toys import TRAIN, D, G, Unlabelled, small_net


def test_a_proxy_is_fitted_on_the_train_set_itself() -> None:
    seen: list[int] = []

    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(D, 8), nn.Dropout(), nn.Linear(8, G))

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                seen.extend(x[:, 0].tolist())
            return self.net(x)

    ledger = rd.Ledger()
    proxy = rd.fit_proxy(
        Spy, TRAIN, epochs=3, batch_size=10, make_optimizer=sgd_at(0.3), ledger=ledger, **QUIET
    )
    assert sorted(seen) == sorted(TRAIN.inputs[:, 0].tolist() * 3)
    assert not any(m.training for m in proxy.modules())
    assert ledger.seconds["irreducible_loss"] == ledger.total > 0
    with torch.no_grad():
        right = (proxy(TRAIN.inputs).argmax(1) == TRAIN.targets).float().mean()
    assert right > 0.6


def test_a_proxy_is_its_checkpoint_of_lowest_loss() -> None:
    """At this rate the loss rises again: the last state is not the kept one."""
    curve: list[float] = []

    class Noting(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            out = super().forward(input)
            if not self.training:
                curve.append(float(F.cross_entropy(out, TRAIN.targets)))
            return out

    proxy = rd.fit_proxy(
        lambda: Noting(D, G), TRAIN, epochs=12, batch_size=20, make_optimizer=sgd_at(8.0), **QUIET
    )
    checks = list(curve)
    with torch.no_grad():
        kept = float(F.cross_entropy(proxy(TRAIN.inputs), TRAIN.targets))
    assert len(checks) == 12
    assert kept == pytest.approx(min(checks), rel=1e-5)
    assert kept < checks[-1]


def test_a_proxy_by_seed_leaves_the_global_streams_alone(
    global_streams: Callable[[], Any],
) -> None:
    made = []
    for seed, stream in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(stream)
        streams = global_streams()
        made.append(rd.fit_proxy(small_net, TRAIN, epochs=1, seed=seed, **QUIET).state_dict())
        assert global_streams() == streams
    torch.testing.assert_close(made[0], made[1], rtol=0, atol=0)
    assert not torch.equal(made[0]["0.weight"], made[2]["0.weight"])


def test_a_proxy_of_nothing() -> None:
    with pytest.raises(rd.DataError, match="the train set is empty"):
        rd.fit_proxy(small_net, Subset(rd.WithIds(Unlabelled()), []), **QUIET)
