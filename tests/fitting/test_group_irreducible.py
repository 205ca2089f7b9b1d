"""Irreducible losses per group: G models or one with adapters; and the proxy of the train set."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

import reducible as rd
from reducible.fitting.adapters import AdaptedLoss, GroupAdapters
from reducible.lab.data import TensorSet
from reducible.stores import fingerprint

QUIET: dict[str, Any] = {"progress": False}
G, D = 3, 4
HOLDOUT, N = 24, 84


def _data(seed: int = 0, noise: float = 1.0) -> TensorSet:
    """Three overlapping clouds, of which the first is the largest."""
    g = torch.Generator().manual_seed(seed)
    targets = torch.multinomial(torch.tensor([0.5, 0.3, 0.2]), N, replacement=True, generator=g)
    x = 2 * F.one_hot(targets, D).float() + noise * torch.randn(N, D, generator=g)
    return TensorSet(x, targets, num_classes=G)


DATA = _data()
HOLD, TRAIN = DATA.subset(torch.arange(HOLDOUT)), DATA.subset(torch.arange(HOLDOUT, N))


def _linear() -> nn.Module:
    return nn.Linear(D, G)


def _sgd(lr: float) -> Any:
    return lambda parameters: torch.optim.SGD(parameters, lr=lr)


def _zeros() -> nn.Module:
    model = _linear()
    for p in model.parameters():
        nn.init.zeros_(p)
    return model


def _literal(
    group_of: Tensor, group: int, gamma: float, epochs: int, lr: float
) -> tuple[Tensor, list[float], list[float]]:
    """Full-batch descent on Σ (1 + γ[g_i = c])·L_i / B; losses at the lowest weighted one on D."""
    w, b = torch.zeros(G, D, requires_grad=True), torch.zeros(G, requires_grad=True)
    best, lowest = torch.empty(0), float("inf")
    weighted, plain = [], []
    for _ in range(epochs):
        loss = torch.zeros(())
        for i in range(HOLDOUT):
            nll = -(DATA.inputs[i] @ w.T + b).log_softmax(0)[DATA.targets[i]]
            loss = loss + (1 + gamma * (int(group_of[i]) == group)) * nll / HOLDOUT
        grad_w, grad_b = torch.autograd.grad(loss, (w, b))
        with torch.no_grad():
            w -= lr * grad_w
            b -= lr * grad_b
            x, y = TRAIN.inputs, TRAIN.targets
            losses = F.cross_entropy(x @ w.T + b, y, reduction="none")
        share = 1 + gamma * (group_of[HOLDOUT:N] == group)
        weighted.append(float((losses * share).sum() / share.sum()))
        plain.append(float(losses.mean()))
        if weighted[-1] < lowest:
            lowest, best = weighted[-1], losses
    return best, weighted, plain


@pytest.mark.parametrize("by_id", [False, True], ids=["classes", "groups by id"])
@pytest.mark.parametrize("gamma", [0.0, 4.0])
def test_a_model_per_group_against_a_literal_loop(by_id: bool, gamma: float) -> None:
    group_of = DATA.targets
    if by_id:
        group_of = torch.randint(2, (N,), generator=torch.Generator().manual_seed(2))
    store = rd.fit_group_irreducible_loss(
        _zeros, HOLD, TRAIN, groups=group_of if by_id else None, gamma=gamma,
        epochs=8, batch_size=HOLDOUT, make_optimizer=_sgd(0.9), **QUIET,
    )  # fmt: skip
    groups = 2 if by_id else G
    assert store.groups == groups
    assert store.values.shape == (N - HOLDOUT, groups)
    assert store.ids.tolist() == list(range(HOLDOUT, N))
    for group in range(groups):
        expected, weighted, _ = _literal(group_of, group, gamma, epochs=8, lr=0.9)
        torch.testing.assert_close(store.values[:, group], expected, rtol=1e-4, atol=1e-5)
        assert store.header["mean_losses"][group] == pytest.approx(weighted, rel=1e-4)
        assert store.header["kept_epoch"][group] == 1 + weighted.index(min(weighted))
    differ = not torch.allclose(store.values[:, 0], store.values[:, 1])
    assert differ == (gamma > 0)  # without extra weight all models are one


def test_the_checkpoint_is_that_of_the_lowest_weighted_loss() -> None:
    """Of this problem weighted and plain loss have their lowest at different epochs."""
    options: dict[str, Any] = {"epochs": 30, "batch_size": HOLDOUT, "make_optimizer": _sgd(1.5)}
    store = rd.fit_group_irreducible_loss(_zeros, HOLD, TRAIN, gamma=9.0, **options, **QUIET)
    told_apart = 0
    for group in range(G):
        expected, weighted, plain = _literal(DATA.targets, group, 9.0, epochs=30, lr=1.5)
        by_weighted, by_plain = (1 + c.index(min(c)) for c in (weighted, plain))
        assert store.header["kept_epoch"][group] == by_weighted
        torch.testing.assert_close(store.values[:, group], expected, rtol=1e-3, atol=1e-4)
        told_apart += by_weighted != by_plain
    assert told_apart > 0


@pytest.mark.parametrize("shared", [False, True])
def test_a_group_is_easier_for_its_own_column(shared: bool) -> None:
    store = rd.fit_group_irreducible_loss(
        _linear, HOLD, TRAIN, gamma=9.0, shared=shared, epochs=40, batch_size=8,
        make_optimizer=_sgd(0.05), **QUIET,
    )  # fmt: skip
    for group in range(G):
        mean = store.values[TRAIN.targets == group].mean(0)  # [G], by column
        assert int(mean.argmin()) == group


# -- one network with adapters --------------------------------------------------------------------


def _small() -> nn.Module:
    return nn.Sequential(nn.Linear(D, 16), nn.ReLU(), nn.Linear(16, G))


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
    data = _data(1)
    hold, train = data.subset(torch.arange(30)), data.subset(torch.arange(30, N))
    options: dict[str, Any] = {
        "gamma": 9.0, "epochs": 30, "batch_size": 10, "make_optimizer": _sgd(0.03),
    }  # fmt: skip
    one = rd.fit_group_irreducible_loss(_small, hold, train, shared=True, **options, **QUIET)
    many = rd.fit_group_irreducible_loss(_small, hold, train, **options, **QUIET)
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
    network = _small().eval()
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
        made.append(_small())
        return made[-1]

    gamma, lr, s = 3.0, 0.2, 0.1
    store = rd.fit_group_irreducible_loss(
        make, HOLD, TRAIN, gamma=gamma, shared=True, rank=2, epochs=1, batch_size=HOLDOUT,
        make_optimizer=_sgd(lr), label_smoothing=s, seed=5, **QUIET,
    )  # fmt: skip
    with torch.random.fork_rng([]):
        torch.manual_seed(5)
        network = _small()
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
            models.append(_small())
            return models[-1]

        rd.fit_group_irreducible_loss(make, HOLD, TRAIN, shared=shared, epochs=1, **QUIET)
        made[shared] = len(models)
    assert made == {False: G, True: 1}


# -- what the store says --------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
def test_the_header_and_the_fingerprint(shared: bool) -> None:
    ledger = rd.Ledger()
    store = rd.fit_group_irreducible_loss(
        _small, HOLD, TRAIN, gamma=4.0, shared=shared, rank=3, epochs=2, batch_size=8, seed=3,
        ledger=ledger, **QUIET,
    )  # fmt: skip
    header = store.header
    assert json.loads(json.dumps(header)) == header
    expected = {
        "method": "shared network with adapters" if shared else "a model per group",
        "model": "GroupAdapters" if shared else "Sequential",
        "groups": G,
        "gamma": 4.0,
        "holdout_examples": HOLDOUT,
        "checkpoint": "lowest weighted mean loss on the scored set",
        "mode": "eval",
        "updates": 2 * 3 * (1 if shared else G),
        "seed": 3,
    } | ({"rank": 3} if shared else {})
    assert {k: header[k] for k in expected} == expected
    assert len(header["kept_epoch"]) == (1 if shared else G)
    assert header["seconds"] == ledger.seconds["irreducible_loss"] > 0
    assert header["flops"] == ledger.counts.flops_irreducible_loss > 0
    assert store.fingerprint == fingerprint(TRAIN.ids, TRAIN.targets)
    store.check_data(TRAIN.ids, TRAIN.targets)


@pytest.mark.parametrize("shared", [False, True])
def test_same_seed_same_losses_and_streams_left_alone(
    shared: bool, global_streams: Callable[[], Any]
) -> None:
    values = []
    for seed, stream in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(stream)
        streams = global_streams()
        store = rd.fit_group_irreducible_loss(
            _small, HOLD, TRAIN, shared=shared, epochs=2, seed=seed, **QUIET
        )
        assert global_streams() == streams
        values.append(store.values)
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])


# -- how many groups ------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
def test_groups_may_be_more_than_there_are(shared: bool) -> None:
    store = rd.fit_group_irreducible_loss(
        _small, HOLD, TRAIN, num_groups=5, shared=shared, epochs=1, **QUIET
    )
    assert store.groups == 5


def test_groups_are_counted_in_both_sets() -> None:
    groups = torch.zeros(N, dtype=torch.int64)
    groups[N - 1] = 3  # in the train set alone
    store = rd.fit_group_irreducible_loss(_small, HOLD, TRAIN, groups=groups, epochs=1, **QUIET)
    assert store.groups == 4


class Unlabelled(Dataset[Any]):
    """Labels are in the items only."""

    def __init__(self) -> None:
        self.x, self.y = DATA.inputs, DATA.targets

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.x[index], int(self.y[index])


def test_classes_that_cannot_be_counted_are_asked_for() -> None:
    data = rd.WithIds(Unlabelled())
    holdout, train = Subset(data, range(HOLDOUT)), Subset(data, range(HOLDOUT, N))
    with pytest.raises(rd.ConfigurationError, match=r"have no \.targets .* pass num_groups="):
        rd.fit_group_irreducible_loss(_small, holdout, train, epochs=1, **QUIET)
    store = rd.fit_group_irreducible_loss(_small, holdout, train, num_groups=G, epochs=1, **QUIET)
    assert store.groups == G


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": -1.0}, r"gamma must be a number in \[0.0"),
        ({"gamma": float("inf")}, "gamma must be a number"),
        ({"rank": 0, "shared": True}, "rank must be a whole number in"),
        ({"num_groups": 0}, "num_groups must be a whole number in"),
        ({"num_groups": 2}, "num_groups=2, but there is a group 2"),
        ({"num_groups": 1, "groups": torch.arange(N) % 2}, "num_groups=1, but there is a group 1"),
        ({"start_from": {}}, "start_from is of one model"),
        ({"save_model": "x"}, "save_model is of one model"),
        ({"gama": 3.0}, r"no such options of fitting: \['gama'\]"),
    ],
)
def test_settings_that_cannot_work(options: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"epochs": 1} | QUIET | options
    with pytest.raises(rd.ConfigurationError, match=message):
        rd.fit_group_irreducible_loss(_small, HOLD, TRAIN, **given)


def test_sets_that_cannot_work() -> None:
    with pytest.raises(rd.DataError, match="share 1 examples of one data set, ids 24"):
        rd.fit_group_irreducible_loss(
            _small, DATA.subset(torch.arange(HOLDOUT + 1)), TRAIN, **QUIET
        )
    empty = Subset(rd.WithIds(Unlabelled()), [])
    with pytest.raises(rd.DataError, match="the holdout set is empty"):
        rd.fit_group_irreducible_loss(_small, empty, TRAIN, **QUIET)


# -- the proxy ------------------------------------------------------------------------------------


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
        Spy, TRAIN, epochs=3, batch_size=10, make_optimizer=_sgd(0.3), ledger=ledger, **QUIET
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
        lambda: Noting(D, G), TRAIN, epochs=12, batch_size=20, make_optimizer=_sgd(8.0), **QUIET
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
        made.append(rd.fit_proxy(_small, TRAIN, epochs=1, seed=seed, **QUIET).state_dict())
        assert global_streams() == streams
    torch.testing.assert_close(made[0], made[1], rtol=0, atol=0)
    assert not torch.equal(made[0]["0.weight"], made[2]["0.weight"])


def test_a_proxy_of_nothing() -> None:
    with pytest.raises(rd.DataError, match="the train set is empty"):
        rd.fit_proxy(_small, Subset(rd.WithIds(Unlabelled()), []), **QUIET)


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
    adapters = GroupAdapters(_small(), rd.Classification(), 16, G, count, rank=2)
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
