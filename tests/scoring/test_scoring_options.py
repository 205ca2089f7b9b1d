"""Cheap scoring: smaller candidates, and several updates from one scored batch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reducible as rd
from reducible.lab.data import TensorSet
from scoring_toys import (
    DATA,
    FULL,
    N_B,
    STORE,
    C,
    K,
    N,
    Net,
    Spy,
    assert_resumes,
    batches_of,
    loader_of,
    losses_of,
)

# -- what a scoring pass sees ---------------------------------------------------------------------


def test_resolution_is_the_mean_over_areas() -> None:
    images = torch.arange(32.0).view(2, 1, 4, 4)
    small = rd.Scoring(resolution=2).reduced((images, torch.tensor([0, 1])))
    assert small[0].tolist()[0] == [[[2.5, 4.5], [10.5, 12.5]]]
    assert small[0].shape == (2, 1, 2, 2)
    assert small[1].tolist() == [0, 1]


def test_resolution_leaves_all_but_larger_images() -> None:
    batch = {
        "small": torch.rand(2, 3, 2, 2),
        "wide": torch.rand(2, 3, 2, 8),
        "tall": torch.rand(2, 3, 8, 4),
        "vector": torch.rand(2, 9),
        "bytes": torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
        "tokens": torch.zeros(2, 9, dtype=torch.int64),
        "text": ["a", "b"],
    }
    seen = rd.Scoring(resolution=4).reduced(batch)
    assert seen["wide"].shape == (2, 3, 2, 4)  # shrunk where larger, never blown up
    assert seen["tall"].shape == (2, 3, 4, 4)
    for name in ("small", "vector", "bytes", "tokens"):
        assert torch.equal(seen[name], batch[name])
    assert seen["text"] == ["a", "b"]


def test_max_length_cuts_tokens_only() -> None:
    batch = {
        "input_ids": torch.arange(20).view(2, 10),
        "attention_mask": torch.ones(2, 10, dtype=torch.bool),
        "labels": torch.tensor([1, 0]),
        "embedding": torch.rand(2, 10),
        "images": torch.rand(2, 3, 8, 8),
    }
    seen = rd.Scoring(max_length=4).reduced(batch)
    assert seen["input_ids"].tolist() == [[0, 1, 2, 3], [10, 11, 12, 13]]
    assert seen["attention_mask"].shape == (2, 4)
    for name in ("labels", "embedding", "images"):
        assert torch.equal(seen[name], batch[name])
    longer = rd.Scoring(max_length=99).reduced(batch)
    assert torch.equal(longer["input_ids"], batch["input_ids"])


def test_channels_last_changes_the_layout_alone() -> None:
    images = torch.rand(2, 3, 8, 8)
    for scoring in (rd.Scoring(channels_last=True), rd.Scoring(channels_last=True, resolution=8)):
        (seen, _) = scoring.reduced((images, torch.tensor([0, 1])))
        assert seen.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(seen, images)
    assert images.is_contiguous()


def test_nothing_asked_for_is_nothing_done() -> None:
    batch = (torch.rand(2, 3, 8, 8), torch.tensor([0, 1]))
    assert rd.Scoring().reduced(batch) is batch


class Looks(nn.Module):
    """Any image size, any length; keeps the inputs that it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, C)
        self.dropout = nn.Dropout(0.5)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return self.dropout(self.head(x.float().flatten(1).mean(1, keepdim=True)))


@pytest.mark.parametrize(
    ("scoring", "inputs", "shape"),
    [
        ({"resolution": 4}, torch.rand(40, 2, 8, 8), (2, 4, 4)),
        ({"channels_last": True}, torch.rand(40, 2, 8, 8), (2, 8, 8)),
        ({"max_length": 3}, torch.arange(400).view(40, 10), (3,)),
    ],
)
def test_chosen_rows_keep_their_size(scoring: Any, inputs: Tensor, shape: Any) -> None:
    model = Looks()
    data = TensorSet(inputs, torch.arange(40) % C)
    batches = rd.SelectingLoader(
        data.loader(10, generator=torch.Generator()),
        model,
        rd.selector("train_loss"),
        keep=4,
        scoring=rd.Scoring(**scoring),
    )
    for chosen in batches:
        assert model.seen[-1].shape == (10, *shape)
        if "channels_last" in scoring:
            assert model.seen[-1].is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(chosen.batch[0], inputs[chosen.ids])
        assert chosen.batch[0].is_contiguous()


def test_dropout_passes_see_the_reduced_batch_too() -> None:
    model, images = Looks(), torch.rand(3, 1, 8, 8)
    candidates = rd.Candidates(torch.arange(3), (images, torch.tensor([0, 1, 2])))
    needs = frozenset({"mc_logits"})
    rd.measure(model, candidates, needs, rd.Scoring(resolution=2), samples=2)
    assert [x.shape for x in model.seen] == [(6, 1, 2, 2)]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"resolution": 0}, r"resolution must be a whole number in \[1, inf\], got 0"),
        ({"resolution": 8.0}, "resolution must be a whole number"),
        ({"max_length": -1}, "max_length must be"),
        ({"channels_last": "yes"}, "channels_last must be one of True, False; got 'yes'"),
        ({"compile": 3}, "compile must be one of True, False"),
        ({"updates_per_scoring": 0}, "updates_per_scoring must be"),
        ({"updates_per_scoring": True}, "updates_per_scoring must be"),
        ({"max_age": -1}, r"max_age must be a whole number in \[0, inf\], got -1"),
        ({"max_age": 1.5}, "max_age must be"),
        ({"rescore": 1.1}, r"rescore must be a number in \[0.0, 1.0\], got 1.1"),
        ({"rescore": math.nan}, "rescore must be"),
    ],
)
def test_settings_that_cannot_work(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(rd.ConfigurationError, match=message):
        rd.Scoring(**setting)


# -- several updates from one scored batch --------------------------------------------------------


@pytest.mark.parametrize("m", [2, 4])
def test_parts_are_the_ranked_rows_in_order(m: int) -> None:
    model, spy = Net(), Spy(rd.selector("rho"))
    batches = batches_of(spy, model, scoring={"updates_per_scoring": m})
    handed_out = list(batches)
    assert len(handed_out) == m * FULL
    assert model.scored == [N_B] * FULL  # one pass per m updates
    assert batches.ledger.counts.examples_scored == N
    assert batches.ledger.counts.updates == m * FULL
    for scored, evidence in enumerate(spy.evidence):
        rho = losses_of(model, evidence.ids) - STORE.lookup(evidence.ids)
        score, order = rho.sort(descending=True)
        parts = handed_out[scored * m : (scored + 1) * m]
        ids = torch.cat([p.ids for p in parts])
        assert ids.tolist() == evidence.ids[order[: m * K]].tolist()
        assert ids.unique().numel() == m * K
        torch.testing.assert_close(torch.cat([p.info["score"] for p in parts]), score[: m * K])
        for part in parts:
            assert part.ids.shape == part.weights.shape == (K,)
            assert torch.equal(part.batch[0], DATA.inputs[part.ids])
            assert torch.equal(part.batch[1], DATA.targets[part.ids])


def test_one_update_per_scoring_is_as_ever() -> None:
    plain = [c.ids.tolist() for c in rd.SelectingLoader(
        loader_of(), Net(), rd.selector("rho"), keep=K, store=STORE, seed=4
    )]  # fmt: skip
    asked = [c.ids.tolist() for c in batches_of("rho", Net(), scoring={"updates_per_scoring": 1})]
    assert asked == plain


@pytest.mark.parametrize("opaque", [False, True])
@pytest.mark.parametrize("rule", ["rho", "uniform", "rho_soft"])
@pytest.mark.parametrize("stop", [3, 5, 6, 3 * FULL, 3 * FULL + 1])
def test_resuming_between_the_parts(rule: str, opaque: bool, stop: int) -> None:
    def make() -> tuple[Net, Any]:
        model = Net()
        loader = loader_of(opaque=opaque)
        return model, batches_of(rule, model, loader, scoring={"updates_per_scoring": 3})

    assert_resumes(make, stop=stop, until=4 * FULL + 2)


@pytest.mark.parametrize("rule", ["uniform", "rho"])
def test_every_rule_has_as_many_updates_from_the_same_candidates(rule: str) -> None:
    """So that runs stay paired, whether or not a rule's rows are drawn ahead of loading."""
    spy = Spy(rd.selector("rho"))
    list(batches_of(spy, Net(), scoring={"updates_per_scoring": 2}))
    for opaque in (False, True):
        loader = loader_of(opaque=opaque)
        ids = [c.ids for c in batches_of(rule, Net(), loader, scoring={"updates_per_scoring": 2})]
        assert len(ids) == 2 * FULL
        for i, evidence in enumerate(spy.evidence):
            both = torch.cat(ids[2 * i : 2 * i + 2])
            assert both.unique().numel() == 2 * K
            assert set(both.tolist()) <= set(evidence.ids.tolist())


def test_uniform_draws_the_same_ahead_and_behind() -> None:
    scoring = {"updates_per_scoring": 3}
    drawn = [
        [c.ids.tolist() for _ in range(2) for c in batches]
        for batches in (
            batches_of("uniform", Net(), loader_of(), scoring=scoring),
            batches_of("uniform", Net(), loader_of(opaque=True), scoring=scoring),
        )
    ]
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("rule", ["uniform", "rho"])
def test_a_pass_that_is_broken_off_leaves_no_parts_behind(rule: str) -> None:
    batches = batches_of(rule, Net(), scoring={"updates_per_scoring": 3})
    next(iter(batches))
    rest = list(batches)
    assert len(rest) == 3 * FULL
    for chosen in rest:
        assert torch.equal(chosen.batch[0], DATA.inputs[chosen.ids])


@pytest.mark.parametrize("rule", ["uniform", "rho"])
def test_more_rows_than_there_are_candidates(rule: str) -> None:
    message = "updates_per_scoring=5 of 5 rows each from 20 candidates: give the loader a larger"
    with pytest.raises(rd.ConfigurationError, match=message):
        batches_of(rule, Net(), scoring={"updates_per_scoring": 5})
    unknown = batches_of(rule, Net(), loader_of(repeat=2), scoring={"updates_per_scoring": 5})
    with pytest.raises(rd.DataError, match=message):
        next(iter(unknown))  # its size is known only here
    assert len(list(batches_of(rule, Net(), scoring={"updates_per_scoring": 4}))) == 4 * FULL
