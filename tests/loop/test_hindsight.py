"""Rules that draw blindly and learn from the training pass: the gate of ``grad_norm_is``."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import reducible as rd
from reducible.loop.gate import Gate

N, N_B, K, C = 210, 20, 10, 3
PER_PASS = N // N_B
THRESHOLD = (N_B + 3 * K) / (3 * K)
STEPS = 60


class Examples(Dataset[tuple[Tensor, int]]):
    """Inputs that are their own logits; one label in ten is wrong, so few gradients matter."""

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(0)
        truth = torch.randint(C, (N,), generator=g)
        wrong = torch.arange(N) % 10 == 0
        self.targets = torch.where(wrong, (truth + 1) % C, truth)
        self.x = F.one_hot(truth, C).float() + 0.05 * torch.randn(N, C, generator=g)
        self.loaded: list[int] = []

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.loaded.append(index)
        return self.x[index], int(self.targets[index])


class Opaque(DataLoader[Any]):
    """A subclass may do anything, so its order is not read ahead."""


class Net(nn.Module):
    """Scales its inputs, so that the first steps have few large gradients, later ones equal ones.

    Its layers stand inside another module, as a backbone's and a head's do.
    """

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(C, C, bias=False), nn.ReLU())
        self.tail = nn.ModuleDict({"head": nn.Linear(C, C, bias=False), "other": nn.Linear(C, 1)})
        with torch.no_grad():
            for layer in (self.body[0], self.tail["head"]):
                assert isinstance(layer, nn.Linear)
                layer.weight.copy_(torch.eye(C))
        self.scale = 30.0
        self.passes: list[tuple[int, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.passes.append((len(x), torch.is_grad_enabled()))
        self.tail["other"](x)
        return self.tail["head"](self.body(self.scale * x))


def _loop(kind: str = "own", *, workers: int = 0, rule: Any = None, **options: Any) -> Any:
    data = Examples()
    make = Opaque if kind == "opaque" else DataLoader
    loader = make(
        rd.WithIds(data),
        batch_size=N_B,
        shuffle=True,
        generator=torch.Generator().manual_seed(3),
        num_workers=workers,
    )
    model = Net()
    rule = rule or rd.selector("grad_norm_is", tau_gate=True)
    settings: dict[str, Any] = {"keep": K, "seed": 5} | options
    batches = rd.SelectingLoader(loader, model, rule, **settings)
    return data, model, rule, batches


def _sharp(step: int) -> float:
    """Large gradients are few until step 35."""
    return 30.0 if step < 35 else 0.01


def _train(
    loop: Any, until: int = STEPS, *, save_at: int = -1, early: bool = False
) -> tuple[list[list[int]], list[list[float]], list[float], bytes]:
    """Ids, weights and the literal τ of every training pass; the state at step ``save_at``."""
    _, model, _, batches = loop
    ids, weights, taus, saved = [], [], [], b""
    while batches.step < until:
        for chosen in batches:
            model.scale = _sharp(batches.step)
            x, y = chosen.batch
            if early:  # a state may be taken at any time, and moves nothing
                batches.state_dict()
            logits = model(x)
            taus.append(_literal_tau(logits, y))
            rd.weighted_mean(F.cross_entropy(logits, y, reduction="none"), chosen.weights)
            ids.append(chosen.ids.tolist())
            weights.append(chosen.weights.tolist())
            if batches.step == save_at:
                file = io.BytesIO()
                torch.save(batches.state_dict(), file)
                saved = file.getvalue()
            if batches.step == until:
                break
    return ids, weights, taus, saved


def _literal_tau(logits: Tensor, y: Tensor) -> float:
    p = logits.detach().double().softmax(1).numpy()
    p[np.arange(len(y)), y.numpy()] -= 1.0
    g = np.sqrt((p**2).sum(1))
    q = g / g.sum() if g.sum() > 0 else np.full(len(g), 1 / len(g))
    return 1.0 / math.sqrt(1.0 - ((q - 1 / len(q)) ** 2).sum() / (q**2).sum())


# -- shut -----------------------------------------------------------------------------------------


def _uniform(kind: str, steps: int, **options: Any) -> list[list[int]]:
    return _train(_loop(kind, rule=rd.selector("uniform"), **options), steps)[0]


def test_while_shut_nothing_is_scored_and_only_the_drawn_rows_are_loaded() -> None:
    data, model, rule, batches = loop = _loop()
    ids, weights, taus, _ = _train(loop, 6)
    assert batches.ledger.counts.examples_scored == 0
    assert batches.ledger.counts.forwards_scored == 0
    assert model.passes == [(K, True)] * 6
    assert data.loaded == [i for row in ids for i in row]
    assert weights == [[1.0] * K] * 6
    assert ids == _uniform("own", 6)
    batches.state_dict()  # the last pass is taken in, too
    average = 0.0
    for tau in taus:
        average = 0.9 * average + 0.1 * tau
    assert rule.state_dict() == {"tau": pytest.approx(average, rel=1e-5)}


@pytest.mark.parametrize(
    ("kind", "workers", "updates"), [("opaque", 0, 1), ("own", 2, 1), ("own", 0, 2)]
)
def test_where_rows_cannot_be_drawn_ahead_all_are_loaded_and_none_scored(
    kind: str, workers: int, updates: int
) -> None:
    options: dict[str, Any] = {"scoring": rd.Scoring(updates_per_scoring=updates)}
    keep = K // updates
    _, model, _, batches = loop = _loop(kind, workers=workers, keep=keep, **options)
    ids, *_ = _train(loop, 6)
    assert batches.ledger.counts.examples_scored == 0
    assert model.passes == [(keep, True)] * 6
    assert ids == _uniform(kind, 6, workers=workers, keep=keep, **options)


# -- opening and shutting -------------------------------------------------------------------------

WAYS = pytest.mark.parametrize(
    ("kind", "workers", "updates"),
    [("own", 0, 1), ("opaque", 0, 1), ("own", 2, 1), ("own", 0, 2)],
)


def test_the_gate_opens_by_what_training_shows_and_shuts_again() -> None:
    _, model, _, batches = loop = _loop()
    _, weights, taus, _ = _train(loop)
    average, opened = 0.0, []
    for step, tau in enumerate(taus):
        if any(w != 1.0 for w in weights[step]):
            opened.append(step)
        if not opened:  # by the training passes alone
            assert average <= THRESHOLD
            average = 0.9 * average + 0.1 * tau
    assert average > THRESHOLD
    assert opened[0] < 30
    assert opened == list(range(opened[0], opened[-1] + 1))
    assert opened[-1] < STEPS - 1  # gradients of one size: shut again
    assert batches.ledger.counts.examples_scored == N_B * len(opened)
    assert model.passes.count((N_B, False)) == len(opened)


@WAYS
def test_every_way_of_loading_chooses_the_same(kind: str, workers: int, updates: int) -> None:
    options: dict[str, Any] = {"keep": K // updates}
    options["scoring"] = rd.Scoring(updates_per_scoring=updates)
    ids, weights, *_ = _train(_loop(kind, workers=workers, **options))
    literal = _train(_loop("opaque", **options))
    assert (ids, weights) == literal[:2]
    assert any(w != [1.0] * len(w) for w in weights)


@WAYS
@pytest.mark.parametrize("save_at", [3, 21, 25, 40, 41])
def test_resuming_equals_never_having_stopped(
    kind: str, workers: int, updates: int, save_at: int
) -> None:
    options: dict[str, Any] = {"keep": K // updates, "workers": workers}
    options["scoring"] = rd.Scoring(updates_per_scoring=updates)
    ids, weights, _, saved = _train(_loop(kind, **options), save_at=save_at)
    resumed = _loop(kind, **options)
    resumed[3].load_state_dict(torch.load(io.BytesIO(saved), weights_only=True))
    resumed[1].scale = _sharp(save_at)
    rest = _train(resumed)
    assert rest[0] == ids[save_at:]
    assert rest[1] == weights[save_at:]


def test_a_state_taken_before_the_training_pass_moves_nothing() -> None:
    assert _train(_loop(), early=True)[:3] == _train(_loop())[:3]


# -- norms of the last layer ----------------------------------------------------------------------


@pytest.mark.parametrize("name", [None, "tail.head"])
def test_norms_of_the_last_layer_are_taken_from_the_training_pass(name: str | None) -> None:
    """‖∂L_i/∂W‖ by autograd, row by row; with a bias, as the rule's bound has it."""
    rule = rd.selector("grad_norm_is", tau_gate=True, bound="last_layer")
    task = rd.Classification(features=name)
    _, model, _, batches = _loop(rule=rule, task=task)
    chosen = next(iter(batches))
    x, y = chosen.batch
    F.cross_entropy(model(x), y).backward()
    batches.state_dict()
    assert batches.ledger.counts.examples_scored == 0
    assert model.passes == [(K, True)]

    norms = []
    for i in range(K):
        features = model.body(model.scale * x[i : i + 1]).detach()
        head = nn.Linear(C, C)
        with torch.no_grad():
            head.weight.copy_(model.tail["head"].weight)
            head.bias.zero_()
        F.cross_entropy(head(features), y[i : i + 1]).backward()
        parts = [p.grad for p in head.parameters() if p.grad is not None]
        norms.append(math.sqrt(sum(float(g.double().square().sum()) for g in parts)))
    p = np.array(norms) / sum(norms)
    tau = 1.0 / math.sqrt(1.0 - ((p - 1 / K) ** 2).sum() / (p**2).sum())
    assert tau > 1.2
    assert rule.state_dict() == {"tau": pytest.approx(0.1 * tau, rel=1e-4)}
    assert not any(m._forward_hooks for m in model.modules())


def test_a_layer_of_another_name_is_named() -> None:
    rule = rd.selector("grad_norm_is", tau_gate=True, bound="last_layer")
    loop = _loop(rule=rule, task=rd.Classification(features="tail.nowhere"))
    with pytest.raises(rd.DataError, match=r"no module 'tail\.nowhere'"):
        _train(loop)


# -- a training pass that is not seen -------------------------------------------------------------


@pytest.mark.parametrize("how", ["never", "in parts", "without gradients", "another model"])
def test_a_training_pass_that_is_not_seen_is_said_with_the_cure(how: str) -> None:
    _, model, _, batches = _loop()
    walk = iter(batches)
    x, _ = next(walk).batch
    if how == "in parts":
        model(x[:4])
        model(x[4:])
    elif how == "without gradients":
        with torch.no_grad():
            model(x)
    elif how == "another model":
        Net()(x)
    with pytest.raises(rd.MissingEvidence, match=r"rows of step 0 blindly.*tau_gate=False"):
        next(walk)


def test_a_batch_that_is_left_out_later_on_is_no_error() -> None:
    _, model, rule, batches = _loop()
    walk = iter(batches)
    model(next(walk).batch[0])
    next(walk)
    told = rule.state_dict()
    assert told["tau"] > 0
    next(walk)
    assert rule.state_dict() == told


def test_a_look_at_the_first_batch_is_no_error() -> None:
    loop = _loop()
    next(iter(loop[3]))
    _train(loop, 4)
    assert loop[2].state_dict()["tau"] > 0


def test_a_pass_that_was_broken_off_is_taken_in() -> None:
    _, model, rule, batches = _loop()
    walk = iter(batches)
    x, y = next(walk).batch
    tau = _literal_tau(model(x), y)
    del walk
    next(iter(batches))
    assert rule.state_dict() == {"tau": pytest.approx(0.1 * tau, rel=1e-5)}


def test_a_broken_norm_of_the_training_pass_names_its_ids() -> None:
    _, model, _, batches = _loop()
    walk = iter(batches)
    chosen = next(walk)
    x = chosen.batch[0].clone()
    x[4] = math.nan
    model(x)
    with pytest.raises(rd.SelectionError, match=f"ids {int(chosen.ids[4])}"):
        next(walk)


# -- together with all else -----------------------------------------------------------------------


def test_as_a_shadow_it_is_told_of_the_rows_it_would_have_drawn() -> None:
    shadow = rd.selector("grad_norm_is", tau_gate=True)
    _, model, _, batches = loop = _loop(rule=rd.selector("uniform"), shadows={"is": shadow})
    average = 0.0
    for chosen in batches:
        rows = chosen.shadows["is"]
        data = loop[0]
        tau = _literal_tau(model(data.x[rows]), data.targets[rows])
        average = 0.9 * average + 0.1 * tau
        assert rows.unique().numel() == K
        assert shadow.state_dict() == {"tau": pytest.approx(average, rel=1e-5)}
    assert batches.ledger.counts.examples_scored == 0


def test_shadows_see_all_though_it_draws_blindly() -> None:
    shadows = {"hard": rd.selector("train_loss")}
    ids, *_ = _train(_loop(shadows=shadows), 5)
    assert ids == _train(_loop(), 5)[0]


def test_a_schedule_around_it_draws_blindly_too() -> None:
    inner = rd.selector("grad_norm_is", tau_gate=True)
    rule = rd.Scheduled(inner, every=2)
    data, model, _, batches = loop = _loop(rule=rule)
    ids, _, taus, _ = _train(loop, 6)
    assert batches.ledger.counts.examples_scored == 0
    assert data.loaded == [i for row in ids for i in row]
    assert model.passes == [(K, True)] * 6
    average = 0.0
    for tau in taus[::2]:  # it learns of the steps at which it was asked
        average = 0.9 * average + 0.1 * tau
    assert inner.state_dict() == {"tau": pytest.approx(average, rel=1e-5)}


def test_a_chain_of_two_blind_rules_draws_blindly() -> None:
    inner = rd.selector("grad_norm_is", tau_gate=True)
    chain = rd.Chain(rd.selector("uniform"), prefilter=15, then=inner)
    _, _, _, batches = loop = _loop(rule=chain)
    _train(loop, 4)
    batches.state_dict()
    assert batches.ledger.counts.examples_scored == 0
    assert inner.state_dict()["tau"] > 0


def test_the_gate_of_the_loop_tells_it_of_plain_rows() -> None:
    """Else the one waits for good choices, the other for something to learn from."""
    held = DataLoader(rd.WithIds(Examples()), batch_size=64)
    rule = rd.selector("grad_norm_is", tau_gate=True)
    gate = Gate()
    _, _, _, batches = loop = _loop(rule=rule, gate=gate, held_out=held)
    _, _, taus, _ = _train(loop, 5)
    batches.state_dict()
    assert gate.state == "watching"
    average = 0.0
    for tau in taus:
        average = 0.9 * average + 0.1 * tau
    assert rule.state_dict() == {"tau": pytest.approx(average, rel=1e-5)}


def test_without_the_gate_nothing_listens() -> None:
    _, model, _, batches = _loop(rule=rd.selector("grad_norm_is"))
    next(iter(batches))
    assert not any(m._forward_hooks for m in model.modules())
