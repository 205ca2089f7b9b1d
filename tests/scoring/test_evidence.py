"""Measuring: only what is asked for, features and dropout passes, precision, what can go wrong."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reducible as rd
from evidence_toys import (
    B,
    Counting,
    assert_same,
    loss_of,
    made_candidates,
    needing,
    resnet,
    state_of,
)
from reducible.lab.models import mlp
from reducible.scoring import evidence as module
from reducible.types import EVIDENCE_FIELDS

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
    evidence = rd.measure(model, made_candidates(), frozenset(needs), store=store)
    assert model.rows == rows
    there = {n for n in EVIDENCE_FIELDS if getattr(evidence, n) is not None} - {"ids"}
    assert there == set(needs if measured is None else measured)


def test_a_store_is_not_asked_where_nobody_needs_it() -> None:
    empty = rd.IrreducibleLossStore.from_tensor(torch.full((B,), float("nan")))
    assert rd.measure(Counting(), made_candidates(), needing("loss"), store=empty).loss is not None
    with pytest.raises(rd.StoreError, match="never scored"):
        rd.measure(Counting(), made_candidates(), needing("irreducible_loss"), store=empty)


def test_irreducible_losses_go_by_id() -> None:
    store = rd.IrreducibleLossStore.from_tensor(torch.arange(10.0))
    _, batch = made_candidates(3)
    evidence = rd.measure(
        Counting(),
        rd.Candidates(torch.tensor([7, 1, 4]), batch),
        needing("irreducible_loss"),
        store=store,
    )
    assert evidence.require("irreducible_loss").tolist() == [7.0, 1.0, 4.0]
    assert evidence.ids.tolist() == [7, 1, 4]


def test_a_store_of_groups_answers_for_groups_only() -> None:
    grouped = rd.IrreducibleLossStore.from_tensor(torch.arange(2.0 * B).view(B, 2))
    needs = needing("irreducible_loss", "group_irreducible_loss")
    evidence = rd.measure(Counting(), made_candidates(), needs, store=grouped)
    assert evidence.irreducible_loss is None
    assert evidence.require("group_irreducible_loss")[1].tolist() == [2.0, 3.0]


def test_groups_are_the_class_unless_given() -> None:
    candidates = made_candidates()
    here = rd.measure(Counting(), candidates, needing("groups"))
    assert here.require("groups").tolist() == candidates.batch[1].tolist()
    given = rd.measure(Counting(), candidates, needing("groups"), groups=torch.zeros(B).long())
    assert given.require("groups").tolist() == [0] * B


def test_context_is_passed_on() -> None:
    evidence = rd.measure(
        Counting(), made_candidates(), needing(), context={"step": torch.tensor(3)}
    )
    assert evidence.require("step").item() == 3
    with pytest.raises(rd.MissingEvidence, match="no 'epoch' in the evidence; there is: ids, step"):
        evidence.require("epoch")


# -- features and dropout passes ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp-64", "resnet-18-16"])
def test_features_are_those_of_the_scoring_mode(name: str) -> None:
    torch.manual_seed(0)
    candidates = made_candidates()
    model = mlp(256, hidden=8) if name == "mlp-64" else resnet()
    before = state_of(model)
    evidence = rd.measure(model, candidates, needing("features", "logits"))
    assert_same(model, before)
    assert isinstance(model, nn.Sequential)
    last = model[-1]
    assert isinstance(last, nn.Linear)
    features = evidence.require("features")
    assert features.shape == (B, last.in_features)
    with torch.no_grad():
        torch.testing.assert_close(last(features.clone()), evidence.require("logits").clone())


def test_dropout_passes_differ_and_follow_the_seed() -> None:
    torch.manual_seed(0)
    model, candidates = mlp(256, hidden=64, depth=1, dropout=0.5), made_candidates()

    def passes(seed: int, samples: int = 4) -> Tensor:
        return rd.measure(
            model, candidates, needing("mc_logits"), samples=samples, seed=seed
        ).require("mc_logits")

    first = passes(1)
    assert first.shape == (4, B, 10)
    for a in range(4):
        for b in range(a):
            assert not torch.allclose(first[a], first[b])
    assert torch.equal(passes(1), first)
    assert not torch.allclose(passes(2), first)
    # dropout stands before the last, linear layer here, so its mean is the pass without it
    plain = rd.measure(model, candidates, needing("logits")).require("logits")
    assert (passes(3, 400).mean(0) - plain).abs().max() < 0.1


def test_dropout_passes_leave_batchnorm_buffers_and_use_the_right_rows() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(256, 32), nn.BatchNorm1d(32), nn.Dropout(0.2), nn.Linear(32, 10)
    ).train()
    candidates = made_candidates()
    before = state_of(model)
    mc = rd.measure(model, candidates, needing("mc_logits"), samples=300).require("mc_logits")
    assert_same(model, before)
    plain = rd.measure(model, candidates, needing("logits")).require("logits")
    # rows in their own places: each row's mean is nearest to that row's plain logits
    distance = torch.cdist(mc.mean(0), plain)
    assert distance.argmin(1).tolist() == list(range(B))


def test_passes_are_batched_without_changing_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Counting(dropout=0.5)
    evidence = rd.measure(model, made_candidates(), needing("mc_logits"), samples=5)
    assert evidence.require("mc_logits").shape == (5, B, 10)
    assert sum(model.rows) == 5 * B
    assert len(model.rows) == 1
    monkeypatch.setattr(module, "_ROWS_PER_PASS", 2 * B)
    model.rows.clear()
    evidence = rd.measure(model, made_candidates(), needing("mc_logits"), samples=5)
    assert evidence.require("mc_logits").shape == (5, B, 10)
    assert model.rows == [2 * B, 2 * B, B]


@pytest.mark.parametrize("make", [Counting, resnet], ids=["Counting", "_resnet"])
def test_a_model_without_dropout_says_nothing_of_uncertainty(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(rd.DataError, match="gave the same logits: the model has no dropout"):
        rd.measure(make(), made_candidates(), needing("mc_logits"), samples=3)


def test_one_dropout_pass_cannot_be_told_from_none() -> None:
    evidence = rd.measure(Counting(), made_candidates(), needing("mc_logits"), samples=1)
    assert evidence.require("mc_logits").shape == (1, B, 10)


def test_no_samples_no_dropout_passes() -> None:
    model = Counting()
    assert rd.measure(model, made_candidates(), needing("mc_logits"), samples=0).mc_logits is None
    assert model.rows == []


# -- precision ------------------------------------------------------------------------------------


def test_bfloat16_is_close_and_handed_over_as_float32() -> None:
    model, candidates = resnet(), made_candidates()
    full = loss_of(model, candidates)
    half = rd.measure(
        model, candidates, needing("loss", "logits", "features"), rd.Scoring(precision="bfloat16")
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

    candidates = made_candidates()
    model = Picky(candidates.batch[0][0].numel(), 10)
    with pytest.raises(RuntimeError, match="not in bfloat16") if fails else nullcontext():
        loss_of(model, candidates, precision="bfloat16")
    assert model(candidates.batch[0]).dtype == torch.float32
    assert not torch.is_autocast_enabled("cpu")


def test_a_pass_in_bfloat16_sees_the_weights_of_now() -> None:
    model, candidates = resnet(), made_candidates()
    before = loss_of(model, candidates, precision="bfloat16")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    after = loss_of(model, candidates, precision="bfloat16")
    torch.testing.assert_close(after, loss_of(model, candidates), rtol=0.05, atol=0.05)
    assert not torch.equal(after, before)


def test_a_model_in_bfloat16_is_scored_in_float32_losses() -> None:
    model = Counting().to(torch.bfloat16)
    ids, (x, y) = made_candidates()
    evidence = rd.measure(model, rd.Candidates(ids, (x.bfloat16(), y)), needing("loss"))
    assert evidence.require("loss").dtype == torch.float32


# -- what can go wrong ----------------------------------------------------------------------------


def test_a_label_outside_is_named() -> None:
    ids, (x, _) = made_candidates()
    wrong = rd.Candidates(ids, (x, torch.tensor([0, 1, 10, 3, 4, 5])))
    with pytest.raises(rd.DataError, match=r"labels outside \[0, 10\): \[10\]"):
        loss_of(Counting(), wrong)


def test_nan_logits_reach_selection_as_nan() -> None:
    ids, (x, y) = made_candidates()
    x[2] = float("nan")
    loss = loss_of(Counting(), rd.Candidates(ids, (x, y)))
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
        rd.measure(Counting(), made_candidates(), needing("loss"), task=Reduced())


def test_scoring_builds_no_graph() -> None:
    evidence = rd.measure(resnet(), made_candidates(), needing("loss", "logits", "features"))
    for name in ("loss", "logits", "features"):
        value = evidence.require(name)
        assert not value.requires_grad
        assert value.grad_fn is None
