"""Measuring: only what is asked for, in the mode asked for, leaving everything as it was."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import reducible as rd
from reducible.lab.models import MODELS, mlp
from reducible.scoring import evidence as module
from reducible.scoring.evidence import Measurement, Request, group_losses
from reducible.scoring.forward import without_graph
from reducible.types import EVIDENCE_FIELDS

B = 6
MODES = ["candidates", "running", "reference"]


def _candidates(n: int = B, *, seed: int = 0) -> rd.Candidates:
    g = torch.Generator().manual_seed(seed)
    images = torch.randn(n, 1, 16, 16, generator=g) * 2 + 1
    return rd.Candidates(torch.arange(n), (images, torch.arange(n) % 10))


def _resnet() -> nn.Module:
    torch.manual_seed(0)
    model = MODELS["resnet-18-16"]()
    with torch.no_grad():  # running statistics unlike any batch's
        for norm in _norms(model):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.fill_(0.3)
            norm.running_var.fill_(2.0)
    return model.train()


def _norms(model: nn.Module) -> list[_BatchNorm]:
    return [m for m in model.modules() if isinstance(m, _BatchNorm)]


def _state(model: nn.Module) -> dict[str, Any]:
    """Everything that scoring must leave alone."""
    return {
        "tensors": {k: v.clone() for k, v in model.state_dict().items()},
        "modes": [m.training for m in model.modules()],
        "tracking": [m.track_running_stats for m in _norms(model)],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grads": [p.grad for p in model.parameters()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
    }


def _assert_same(model: nn.Module, before: dict[str, Any]) -> None:
    after = _state(model)
    torch.testing.assert_close(after.pop("tensors"), before.pop("tensors"), rtol=0, atol=0)
    assert after == before


def _loss(logits: Tensor, candidates: rd.Candidates) -> Tensor:
    return F.cross_entropy(logits, candidates.batch[1], reduction="none").detach()


def _needs(*names: str) -> frozenset[str]:
    return frozenset(names)


def _loss_of(model: nn.Module, candidates: rd.Candidates, **scoring: Any) -> Tensor:
    return rd.measure(model, candidates, _needs("loss"), rd.Scoring(**scoring)).require("loss")


class Counting(nn.Module):
    """Counts forwards and the rows in them."""

    def __init__(self, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(256, 10), nn.Dropout(dropout))
        self.rows: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.rows.append(len(x))
        return self.net(x)


# -- pay as you go --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("needs", "rows", "measured"),
    [
        ([], [], []),
        (["targets"], [], ["targets"]),
        (["groups"], [], ["targets", "groups"]),
        (["irreducible_loss"], [], ["irreducible_loss"]),
        (["loss"], [B], ["targets", "loss"]),
        (["logits"], [B], ["logits"]),
        (["loss", "logits", "targets", "irreducible_loss"], [B], None),
    ],
)
def test_only_what_is_needed_is_measured(
    needs: list[str], rows: list[int], measured: list[str] | None
) -> None:
    model, store = Counting(), rd.IrreducibleLossStore.from_tensor(torch.rand(B))
    evidence = rd.measure(model, _candidates(), frozenset(needs), store=store)
    assert model.rows == rows
    there = {n for n in EVIDENCE_FIELDS if getattr(evidence, n) is not None} - {"ids"}
    assert there == set(needs if measured is None else measured)


def test_a_store_is_not_asked_where_nobody_needs_it() -> None:
    empty = rd.IrreducibleLossStore.from_tensor(torch.full((B,), float("nan")))
    assert rd.measure(Counting(), _candidates(), _needs("loss"), store=empty).loss is not None
    with pytest.raises(rd.StoreError, match="never scored"):
        rd.measure(Counting(), _candidates(), _needs("irreducible_loss"), store=empty)


def test_irreducible_losses_go_by_id() -> None:
    store = rd.IrreducibleLossStore.from_tensor(torch.arange(10.0))
    _, batch = _candidates(3)
    evidence = rd.measure(
        Counting(),
        rd.Candidates(torch.tensor([7, 1, 4]), batch),
        _needs("irreducible_loss"),
        store=store,
    )
    assert evidence.require("irreducible_loss").tolist() == [7.0, 1.0, 4.0]
    assert evidence.ids.tolist() == [7, 1, 4]


def test_a_store_of_groups_answers_for_groups_only() -> None:
    grouped = rd.IrreducibleLossStore.from_tensor(torch.arange(2.0 * B).view(B, 2))
    needs = _needs("irreducible_loss", "group_irreducible_loss")
    evidence = rd.measure(Counting(), _candidates(), needs, store=grouped)
    assert evidence.irreducible_loss is None
    assert evidence.require("group_irreducible_loss")[1].tolist() == [2.0, 3.0]


def test_groups_are_the_class_unless_given() -> None:
    candidates = _candidates()
    here = rd.measure(Counting(), candidates, _needs("groups"))
    assert here.require("groups").tolist() == candidates.batch[1].tolist()
    given = rd.measure(Counting(), candidates, _needs("groups"), groups=torch.zeros(B).long())
    assert given.require("groups").tolist() == [0] * B


def test_context_is_passed_on() -> None:
    evidence = rd.measure(Counting(), _candidates(), _needs(), context={"step": torch.tensor(3)})
    assert evidence.require("step").item() == 3
    with pytest.raises(rd.MissingEvidence, match="no 'epoch' in the evidence; there is: ids, step"):
        evidence.require("epoch")


# -- modes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_candidates_means_statistics_of_the_candidate_batch(training: bool) -> None:
    model, candidates = _resnet().train(training), _candidates()
    before = _state(model)
    loss = _loss_of(model, candidates, batchnorm="candidates")
    _assert_same(model, before)
    # independently: in train mode, whose running statistics may move here
    independent = _resnet().train()
    torch.testing.assert_close(loss, _loss(independent(candidates.batch[0]), candidates))


@pytest.mark.parametrize("batchnorm", ["candidates", "running", "reference"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_layer_that_stands_in_two_places_is_put_back(batchnorm: Any, training: bool) -> None:
    norm, chance = nn.BatchNorm1d(8), nn.Dropout(0.5)
    tail = nn.Sequential(norm, chance)
    model = nn.Sequential(nn.Linear(6, 8), norm, chance, nn.Linear(8, 8), tail, nn.Linear(8, 3))
    model.train(training)
    g = torch.Generator().manual_seed(0)
    batch = (torch.randn(B, 6, generator=g), torch.arange(B) % 3)
    candidates = rd.Candidates(torch.arange(B), batch)
    before = [(m.training, getattr(m, "track_running_stats", None)) for m in model.modules()]
    moved = norm.running_mean
    assert moved is not None
    was = moved.clone()
    found = rd.measure(model, candidates, _needs("loss"), rd.Scoring(batchnorm=batchnorm))
    assert before == [
        (m.training, getattr(m, "track_running_stats", None)) for m in model.modules()
    ]
    assert torch.equal(moved, was) == (batchnorm != "reference")
    if batchnorm == "running":  # independently: eval mode
        expected = F.cross_entropy(model.eval()(batch[0]), batch[1], reduction="none")
        torch.testing.assert_close(found.require("loss"), expected)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_running_means_eval_mode(training: bool) -> None:
    model, candidates = _resnet().train(training), _candidates()
    before = _state(model)
    loss = _loss_of(model, candidates, batchnorm="running")
    _assert_same(model, before)
    independent = _resnet().eval()
    torch.testing.assert_close(loss, _loss(independent(candidates.batch[0]), candidates))
    other = _loss_of(model, candidates, batchnorm="candidates")
    assert not torch.allclose(loss, other)  # the two modes differ on this model


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_reference_moves_the_running_statistics_as_training_does(training: bool) -> None:
    model, candidates = _resnet().train(training), _candidates()
    modes = [m.training for m in model.modules()]
    loss = _loss_of(model, candidates, batchnorm="reference")
    independent = _resnet().train()
    torch.testing.assert_close(loss, _loss(independent(candidates.batch[0]), candidates))
    torch.testing.assert_close(model.state_dict(), independent.state_dict())
    norms, untouched = _norms(model), _norms(_resnet())
    for norm, old in zip(norms, untouched, strict=True):
        assert norm.running_mean is not None
        assert old.running_mean is not None
        assert not torch.equal(norm.running_mean, old.running_mean)
    assert [m.training for m in model.modules()] == modes


def test_hand_worked_statistics() -> None:
    """x = (0, 2): mean 1, variance 1 in the batch; running ones 0 and 4 are other numbers."""
    model = nn.BatchNorm1d(2, eps=1e-12, affine=False)
    assert model.running_var is not None
    model.running_var.fill_(4.0)
    batch = rd.Candidates(
        torch.arange(2), (torch.tensor([[0.0, 0.0], [2.0, 2.0]]), torch.zeros(2).long())
    )
    logits = {
        mode: rd.measure(model, batch, _needs("logits"), rd.Scoring(batchnorm=mode))
        .require("logits")[:, 0]
        .tolist()
        for mode in ("candidates", "running")
    }
    assert logits["candidates"] == pytest.approx([-1.0, 1.0])
    assert logits["running"] == pytest.approx([0.0, 1.0])


@pytest.mark.parametrize("mode", MODES)
def test_a_frozen_batchnorm_stays_frozen(mode: str) -> None:
    model, candidates = _resnet(), _candidates()
    frozen = _norms(model)[3].eval()
    before = _state(frozen)
    loss = _loss_of(model, candidates, batchnorm=mode)
    _assert_same(frozen, before)
    if mode == "running":
        return
    independent = _resnet()
    _norms(independent)[3].eval()
    torch.testing.assert_close(loss, _loss(independent(candidates.batch[0]), candidates))


def test_batchnorm_without_running_statistics() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.Linear(3, 2)).train()
    batch = rd.Candidates(torch.arange(4), (torch.randn(4, 3), torch.zeros(4).long()))
    before = _state(model)
    loss = _loss_of(model, batch)
    _assert_same(model, before)
    torch.testing.assert_close(loss, _loss(model(batch.batch[0]), batch))


def test_the_mode_comes_back_where_the_model_fails() -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(1)
            self.drop = nn.Dropout()

        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("out of memory")

    for mode in ("candidates", "running", "reference"):
        model = Fails().train()
        model.drop.eval()
        before = _state(model)
        with pytest.raises(RuntimeError, match="out of memory"):
            _loss_of(model, _candidates(), batchnorm=mode)
        _assert_same(model, before)


def test_dropout_is_off_unless_in_reference() -> None:
    torch.manual_seed(0)
    model, candidates = mlp(256, hidden=64, dropout=0.5).train(), _candidates()
    expected = _loss(model.eval()(candidates.batch[0]), candidates)
    model.train()
    for mode in ("candidates", "running"):
        torch.testing.assert_close(_loss_of(model, candidates, batchnorm=mode), expected)
    moving = _loss_of(model, candidates, batchnorm="reference")
    assert not torch.allclose(moving, expected)


def test_requires_grad_and_gradients_stay() -> None:
    model, candidates = _resnet(), _candidates()
    next(model.parameters()).requires_grad_(False)
    _loss(model(candidates.batch[0]), candidates)
    F.cross_entropy(model(candidates.batch[0]), candidates.batch[1]).backward()
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    flags = [p.requires_grad for p in model.parameters()]
    _loss_of(model, candidates)
    assert [p.requires_grad for p in model.parameters()] == flags
    for p, grad in zip(model.parameters(), grads, strict=True):
        assert (p.grad is None) == (grad is None)
        if grad is not None and p.grad is not None:
            assert torch.equal(p.grad, grad)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"batchnorm": "batch"}, "batchnorm must be one of"),
        ({"precision": "fp8"}, "precision must"),
    ],
)
def test_a_wrong_setting_fails_at_construction(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(rd.ConfigurationError, match=message):
        rd.Scoring(**setting)


# -- random streams -------------------------------------------------------------------------------


class Draws(nn.Module):
    """Draws from every global stream in every forward."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(256, 10), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.rand(1).item() + np.random.rand() + random.random()  # noqa: NPY002
        return self.net(x + noise)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("needs", [_needs("loss"), _needs("loss", "mc_logits", "features")])
def test_global_streams_are_where_they_were(
    mode: str, needs: frozenset[str], global_streams: Callable[[], Any]
) -> None:
    model = Draws().train()
    task = rd.Classification(features="net.1")
    streams = global_streams()
    for _ in range(3):  # the first pass and later ones are treated differently
        rd.measure(model, _candidates(), needs, rd.Scoring(batchnorm=mode), task=task, samples=2)  # pyright: ignore[reportArgumentType]
        assert global_streams() == streams


def test_streams_come_back_where_the_model_fails(global_streams: Callable[[], Any]) -> None:
    class Fails(Draws):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            raise RuntimeError("no")

    model = Fails()
    streams = global_streams()
    with pytest.raises(RuntimeError, match="no"):
        _loss_of(model, _candidates())
    assert global_streams() == streams


class FailsOnce(nn.Module):
    """A network with dropout and normalisation whose first pass fails half-way."""

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("nothing", None)
        self.register_module("none", None)
        self.net = nn.Sequential(
            nn.Flatten(), nn.Dropout(0.5), nn.Linear(256, 10), nn.BatchNorm1d(10)
        )
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        logits = self.net(x)
        if self.passes == 1:
            raise RuntimeError("no")
        return logits


@pytest.mark.parametrize("mode", MODES)
def test_a_meter_goes_on_after_a_pass_that_failed(
    mode: Any, global_streams: Callable[[], Any]
) -> None:
    model = FailsOnce()
    meter = Measurement(model, rd.Scoring(batchnorm=mode))
    streams, asked = global_streams(), Request(_needs("loss"), {})
    with pytest.raises(RuntimeError, match="no"):
        meter.measure(_candidates(), asked)
    losses: list[Tensor] = []
    for _ in range(2):
        before = _state(model)
        losses.append(meter.measure(_candidates(), asked).require("loss"))
        if mode == "reference":  # running statistics move, and nothing else
            before["tensors"] = _state(model)["tensors"]
        _assert_same(model, before)
        assert all(module.training for module in model.modules())
        assert global_streams() == streams
    once = rd.measure(model, _candidates(), _needs("loss"), rd.Scoring(batchnorm=mode))
    if mode != "reference":  # whose dropout draws
        assert torch.equal(losses[0], losses[1])
        assert torch.equal(losses[0], once.require("loss"))


# -- features and dropout passes ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp-64", "resnet-18-16"])
def test_features_are_those_of_the_scoring_mode(name: str) -> None:
    torch.manual_seed(0)
    candidates = _candidates()
    model = mlp(256, hidden=8) if name == "mlp-64" else _resnet()
    before = _state(model)
    evidence = rd.measure(model, candidates, _needs("features", "logits"))
    _assert_same(model, before)
    assert isinstance(model, nn.Sequential)
    last = model[-1]
    assert isinstance(last, nn.Linear)
    features = evidence.require("features")
    assert features.shape == (B, last.in_features)
    with torch.no_grad():
        torch.testing.assert_close(last(features.clone()), evidence.require("logits").clone())


def test_dropout_passes_differ_and_follow_the_seed() -> None:
    torch.manual_seed(0)
    model, candidates = mlp(256, hidden=64, depth=1, dropout=0.5), _candidates()

    def passes(seed: int, samples: int = 4) -> Tensor:
        return rd.measure(
            model, candidates, _needs("mc_logits"), samples=samples, seed=seed
        ).require("mc_logits")

    first = passes(1)
    assert first.shape == (4, B, 10)
    for a in range(4):
        for b in range(a):
            assert not torch.allclose(first[a], first[b])
    assert torch.equal(passes(1), first)
    assert not torch.allclose(passes(2), first)
    # dropout stands before the last, linear layer here, so its mean is the pass without it
    plain = rd.measure(model, candidates, _needs("logits")).require("logits")
    assert (passes(3, 400).mean(0) - plain).abs().max() < 0.1


def test_dropout_passes_leave_batchnorm_buffers_and_use_the_right_rows() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(256, 32), nn.BatchNorm1d(32), nn.Dropout(0.2), nn.Linear(32, 10)
    ).train()
    candidates = _candidates()
    before = _state(model)
    mc = rd.measure(model, candidates, _needs("mc_logits"), samples=300).require("mc_logits")
    _assert_same(model, before)
    plain = rd.measure(model, candidates, _needs("logits")).require("logits")
    # rows in their own places: each row's mean is nearest to that row's plain logits
    distance = torch.cdist(mc.mean(0), plain)
    assert distance.argmin(1).tolist() == list(range(B))


def test_passes_are_batched_without_changing_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Counting(dropout=0.5)
    evidence = rd.measure(model, _candidates(), _needs("mc_logits"), samples=5)
    assert evidence.require("mc_logits").shape == (5, B, 10)
    assert sum(model.rows) == 5 * B
    assert len(model.rows) == 1
    monkeypatch.setattr(module, "_ROWS_PER_PASS", 2 * B)
    model.rows.clear()
    evidence = rd.measure(model, _candidates(), _needs("mc_logits"), samples=5)
    assert evidence.require("mc_logits").shape == (5, B, 10)
    assert model.rows == [2 * B, 2 * B, B]


@pytest.mark.parametrize("make", [Counting, _resnet])
def test_a_model_without_dropout_says_nothing_of_uncertainty(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(rd.DataError, match="gave the same logits: the model has no dropout"):
        rd.measure(make(), _candidates(), _needs("mc_logits"), samples=3)


def test_one_dropout_pass_cannot_be_told_from_none() -> None:
    evidence = rd.measure(Counting(), _candidates(), _needs("mc_logits"), samples=1)
    assert evidence.require("mc_logits").shape == (1, B, 10)


def test_no_samples_no_dropout_passes() -> None:
    model = Counting()
    assert rd.measure(model, _candidates(), _needs("mc_logits"), samples=0).mc_logits is None
    assert model.rows == []


# -- precision ------------------------------------------------------------------------------------


def test_bfloat16_is_close_and_handed_over_as_float32() -> None:
    model, candidates = _resnet(), _candidates()
    full = _loss_of(model, candidates)
    half = rd.measure(
        model, candidates, _needs("loss", "logits", "features"), rd.Scoring(precision="bfloat16")
    )
    for name in ("loss", "logits", "features"):
        assert half.require(name).dtype == torch.float32
    loss = half.require("loss")
    assert not torch.equal(loss, full)  # it was another precision
    torch.testing.assert_close(loss, full, rtol=0.05, atol=0.05)
    assert next(model.parameters()).dtype == torch.float32


@pytest.mark.parametrize("fails", [False, True])
def test_training_goes_on_in_full_precision(fails: bool) -> None:
    class Picky(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            logits = super().forward(input.flatten(1))
            if fails and logits.dtype == torch.bfloat16:
                raise RuntimeError("not in bfloat16")
            return logits

    candidates = _candidates()
    model = Picky(candidates.batch[0][0].numel(), 10)
    with pytest.raises(RuntimeError, match="not in bfloat16") if fails else nullcontext():
        _loss_of(model, candidates, precision="bfloat16")
    assert model(candidates.batch[0]).dtype == torch.float32
    assert not torch.is_autocast_enabled("cpu")


def test_a_pass_in_bfloat16_sees_the_weights_of_now() -> None:
    model, candidates = _resnet(), _candidates()
    before = _loss_of(model, candidates, precision="bfloat16")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    after = _loss_of(model, candidates, precision="bfloat16")
    torch.testing.assert_close(after, _loss_of(model, candidates), rtol=0.05, atol=0.05)
    assert not torch.equal(after, before)


def test_a_model_in_bfloat16_is_scored_in_float32_losses() -> None:
    model = Counting().to(torch.bfloat16)
    ids, (x, y) = _candidates()
    evidence = rd.measure(model, rd.Candidates(ids, (x.bfloat16(), y)), _needs("loss"))
    assert evidence.require("loss").dtype == torch.float32


# -- what can go wrong ----------------------------------------------------------------------------


def test_a_label_outside_is_named() -> None:
    ids, (x, _) = _candidates()
    wrong = rd.Candidates(ids, (x, torch.tensor([0, 1, 10, 3, 4, 5])))
    with pytest.raises(rd.DataError, match=r"labels outside \[0, 10\): \[10\]"):
        _loss_of(Counting(), wrong)


def test_nan_logits_reach_selection_as_nan() -> None:
    ids, (x, y) = _candidates()
    x[2] = float("nan")
    loss = _loss_of(Counting(), rd.Candidates(ids, (x, y)))
    assert loss.isnan().tolist() == [i == 2 for i in range(B)]


def test_a_task_that_reduces_its_loss_is_told() -> None:
    class Reduced(rd.Task):
        inner = rd.Classification()

        def targets(self, batch: Any) -> Tensor:
            return self.inner.targets(batch)

        def forward(self, model: nn.Module, batch: Any, *, features: bool = False) -> Any:
            return self.inner.forward(model, batch, features=features)

        def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
            return F.cross_entropy(logits, targets)

    with pytest.raises(rd.DataError, match=r"a loss of shape \(\) for 6 rows: it is already"):
        rd.measure(Counting(), _candidates(), _needs("loss"), task=Reduced())


def test_scoring_builds_no_graph() -> None:
    evidence = rd.measure(_resnet(), _candidates(), _needs("loss", "logits", "features"))
    for name in ("loss", "logits", "features"):
        value = evidence.require(name)
        assert not value.requires_grad
        assert value.grad_fn is None


# -- what a model keeps of a pass -----------------------------------------------------------------

_TABLES: dict[int, Tensor] = {}


@functools.cache
def _table(length: int) -> Tensor:
    return torch.linspace(0.5, 1.5, length)


class Keeps(nn.Module):
    """Scales activations by a table that it makes in its first forward, and keeps."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where
        self.first, self.last = nn.Linear(256, 8), nn.Linear(8, 10)
        self.kept: Any = None
        self.by_length: dict[int, Tensor] = {}
        self.listed: list[Tensor] = []

    def table(self, length: int) -> Tensor:
        if self.where == "function":
            return _table(length)
        new = torch.linspace(0.5, 1.5, length)
        if self.where == "attribute":
            self.kept = new if self.kept is None else self.kept
            return self.kept
        if self.where == "buffer":
            if "made" not in self._buffers:
                self.register_buffer("made", new, persistent=False)
            return self.get_buffer("made")
        if self.where == "list":
            if not self.listed:
                self.listed.append(new)
            return self.listed[0]
        return (self.by_length if self.where == "dict" else _TABLES).setdefault(length, new)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x.flatten(1))  # [B, 8]
        return self.last(hidden * self.table(hidden.shape[1]))


class Lazily(nn.Module):
    """Makes its last layer's weights in its first forward."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(256, 8)
        self.last = nn.LazyLinear(10)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x.flatten(1)).relu())


KEEPING = ["attribute", "buffer", "list", "dict", "global", "function", "lazy"]


def _keeping(where: str) -> nn.Module:
    _TABLES.clear()
    _table.cache_clear()
    torch.manual_seed(4)
    return Lazily() if where == "lazy" else Keeps(where)


def _gradients(model: nn.Module, candidates: rd.Candidates) -> list[Tensor]:
    x, y = candidates.batch
    F.cross_entropy(model(x), y).backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def _score_group_losses(model: nn.Module, candidates: rd.Candidates) -> None:
    group_losses(model, candidates.batch, candidates.ids, rd.Classification(), 10)


SCORED: list[Callable[[nn.Module, rd.Candidates], Any]] = [
    lambda model, candidates: _loss_of(model, candidates),
    lambda model, candidates: _loss_of(model, candidates, precision="bfloat16"),
    lambda model, candidates: _loss_of(model, candidates, batchnorm="reference"),
    _score_group_losses,
]


@pytest.mark.parametrize("score", SCORED, ids=["float32", "bfloat16", "reference", "groups"])
@pytest.mark.parametrize("where", KEEPING)
def test_what_a_model_makes_while_it_is_scored_can_be_trained(
    where: str, score: Callable[[nn.Module, rd.Candidates], Any]
) -> None:
    candidates = _candidates()
    expected = _gradients(_keeping(where), candidates)
    model = _keeping(where)
    score(model, candidates)
    score(model, candidates)
    gradients = _gradients(model, candidates)
    assert len(gradients) == len(expected) == len(list(model.parameters()))
    torch.testing.assert_close(gradients, expected, rtol=0, atol=0)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("score", ["measure", "groups", "without_graph"])
def test_under_the_callers_autocast_training_keeps_its_gradients(
    precision: Any, score: str
) -> None:
    candidates, task = _candidates(), rd.Classification()

    def gradients(scored: bool) -> list[Tensor]:
        torch.manual_seed(1)
        model = mlp(256, 10, 16)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for _ in range(2 if scored else 0):
                if score == "measure":
                    _loss_of(model, candidates, precision=precision)
                elif score == "groups":
                    _score_group_losses(model, candidates)
                else:
                    with without_graph():
                        task.forward(model, candidates.batch)
            assert torch.is_autocast_cache_enabled()
            return _gradients(model, candidates)

    expected, found = gradients(False), gradients(True)
    assert len(found) == len(expected) > 0
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_scoring_under_the_callers_autocast_sees_the_weights_of_now() -> None:
    model, candidates = Counting(), _candidates()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = _loss_of(model, candidates)
        model(candidates.batch[0])  # puts weights as they are into the cache
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.5)
        after = _loss_of(model, candidates)
    assert not torch.equal(after, before)
    torch.testing.assert_close(after, _loss_of(model, candidates, precision="bfloat16"))
