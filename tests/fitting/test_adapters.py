"""Irreducible losses per group by one network with adapters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, nn

import reducible as rd
from fitting_toys import QUIET, sgd_at
from group_toys import HOLD, HOLDOUT, TRAIN, D, G, N, small_net, three_clouds
from reducible.fitting.adapters import AdaptedLoss, GroupAdapters
from reducible.lab.data import TensorSet


def test_the_trial_pass_leaves_a_network_that_can_be_trained_on() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(D, 8), nn.Linear(8, G)
            self.table: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.first(x)  # [B, 8]
            self.table = torch.ones(8) if self.table is None else self.table
            return self.last(hidden * self.table)

    store = rd.fit_group_irreducible_loss(Scaled, HOLD, TRAIN, shared=True, epochs=1, **QUIET)
    assert store.values.isfinite().all()


def test_adapters_agree_with_separate_models_in_order() -> None:
    """Rank correlation per column: what is dear to the one is dear to the other."""
    data = three_clouds(1)
    hold, train = data.subset(torch.arange(30)), data.subset(torch.arange(30, N))
    options: dict[str, Any] = {
        "gamma": 9.0, "epochs": 30, "batch_size": 10, "make_optimizer": sgd_at(0.03),
    }  # fmt: skip
    one = rd.fit_group_irreducible_loss(small_net, hold, train, shared=True, **options, **QUIET)
    many = rd.fit_group_irreducible_loss(small_net, hold, train, **options, **QUIET)
    assert one.values.shape == many.values.shape == (N - 30, G)
    assert torch.equal(one.ids, many.ids)
    ranks: Any = spearmanr(one.values.numpy(), many.values.numpy())
    between = torch.as_tensor(ranks.statistic)[:G, G:]  # [G, G]
    assert bool((between.diagonal() > 0.8).all()), between
    # and that says more than that both hold losses: other columns agree less
    cross = between[~torch.eye(G, dtype=torch.bool)]
    assert between.diagonal().min() > cross.max()


def test_adapters_shift_the_logits_of_each_group() -> None:
    """z_g = z + b_g + V_g·(P·f), worked row by row."""
    network = small_net().eval()
    adapters = GroupAdapters(network, rd.Classification(), features=16, classes=G, groups=2, rank=3)
    x = torch.randn(5, D, generator=torch.Generator().manual_seed(0))
    batch = (x, torch.zeros(5).long())
    with torch.no_grad():
        z = network(x)
        fresh = adapters(batch)  # as they begin, all groups are the network itself
        assert torch.equal(fresh, torch.stack([z, z], dim=2))
        nn.init.normal_(adapters.up.weight)
        nn.init.normal_(adapters.up.bias)
        hidden = network[:2](x)  # pyright: ignore[reportIndexIssue]
        for group in range(2):
            v = adapters.up.weight[group::2]  # [C, rank]
            b = adapters.up.bias[group::2]
            for i in range(5):
                expected = z[i] + b + v @ (adapters.down.weight @ hidden[i])
                torch.testing.assert_close(adapters(batch)[i, :, group], expected)


def test_the_first_update_of_adapters_against_a_literal_one() -> None:
    """Σ_i Σ_g (1 + γ[y_i = g])·L_ig / (B·G), one step, smoothing included."""
    made: list[nn.Module] = []

    def make() -> nn.Module:
        made.append(small_net())
        return made[-1]

    gamma, lr, s = 3.0, 0.2, 0.1
    store = rd.fit_group_irreducible_loss(
        make, HOLD, TRAIN, gamma=gamma, shared=True, rank=2, epochs=1, batch_size=HOLDOUT,
        make_optimizer=sgd_at(lr), label_smoothing=s, seed=5, **QUIET,
    )  # fmt: skip
    with torch.random.fork_rng([]):
        torch.manual_seed(5)
        network = small_net()
        adapters = GroupAdapters(network, rd.Classification(), 16, G, G, rank=2)
    x, y = HOLD.inputs, HOLD.targets
    loss = torch.zeros(())
    logits = adapters((x, y))  # [B, C, G]
    for i in range(HOLDOUT):
        for group in range(G):
            log_p = logits[i, :, group].log_softmax(0)
            nll = (1 - s) * -log_p[y[i]] + s * -log_p.mean()
            loss = loss + (1 + gamma * (int(y[i]) == group)) * nll / (HOLDOUT * G)
    loss.backward()
    with torch.no_grad():
        for p in adapters.parameters():
            if p.grad is not None:
                p -= lr * p.grad
        after = adapters((TRAIN.inputs, TRAIN.targets))  # [N, C, G]
        losses = [
            F.cross_entropy(after[:, :, g], TRAIN.targets, reduction="none") for g in range(G)
        ]
    torch.testing.assert_close(store.values, torch.stack(losses, 1), rtol=1e-4, atol=1e-5)
    # the checkpoint is judged by the mean over groups of the weighted mean loss
    weighted = []
    for group, loss in enumerate(losses):
        share = 1 + gamma * (TRAIN.targets == group)
        weighted.append(float((loss * share).sum() / share.sum()))
    assert store.header["mean_losses"][0] == pytest.approx([sum(weighted) / G], rel=1e-4)


def test_adapters_are_one_run() -> None:
    made: dict[bool, int] = {}
    for shared in (False, True):
        models: list[nn.Module] = []

        def make(models: list[nn.Module] = models) -> nn.Module:
            models.append(small_net())
            return models[-1]

        rd.fit_group_irreducible_loss(make, HOLD, TRAIN, shared=shared, epochs=1, **QUIET)
        made[shared] = len(models)
    assert made == {False: G, True: 1}


def test_many_groups_are_fitted_a_few_at_a_time_and_scored_all() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(240, 4, generator=g)
    pool = TensorSet(x, (x[:, 0] > 0).long())
    holdout, train = pool.subset(torch.arange(80)), pool.subset(torch.arange(80, 240))
    groups = torch.arange(240) % 40

    def fit() -> rd.IrreducibleLossStore:
        return rd.fit_group_irreducible_loss(
            lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)),
            holdout,
            train,
            groups=groups,
            shared=True,
            epochs=30,
            progress=False,
        )

    store = fit()
    assert store.groups == 40
    values = store.lookup(train.ids)
    assert bool(torch.isfinite(values).all())
    assert float(values.mean()) < 0.6  # better than a coin, log 2
    assert bool((values.std(dim=1) > 0).all())  # adapters differ
    assert torch.equal(values, fit().lookup(train.ids))


def test_updates_of_many_groups_have_the_mean_over_all_groups() -> None:
    """As long as adapters are zero, exactly: Σ_g (1 + γ[g_i = g])·L_i / G."""
    count, gamma = 50, 9.0
    groups = torch.arange(HOLDOUT + N) % count
    loss = AdaptedLoss(rd.Classification(), 0.1, lambda ids, _: groups[ids], count, gamma)
    adapters = GroupAdapters(small_net(), rd.Classification(), 16, G, count, rank=2)
    batch = rd.Candidates(HOLD.ids, (HOLD.inputs, HOLD.targets))
    with torch.random.fork_rng([]), torch.no_grad():
        torch.manual_seed(0)
        draws = torch.stack([loss.update_loss(adapters, batch, HOLD.targets) for _ in range(600)])
        logits = adapters.network(HOLD.inputs)
    exact = F.cross_entropy(logits, HOLD.targets, reduction="none", label_smoothing=0.1)
    exact = exact * (1.0 + gamma / count)
    plain = (draws - exact).abs().amax(1) < 1e-5
    assert 0.4 < float(plain.double().mean()) < 0.6  # updates of the network alone
    error = draws.std(0) / len(draws) ** 0.5
    assert bool(((draws.mean(0) - exact).abs() <= 4.5 * error + 1e-6).all())
