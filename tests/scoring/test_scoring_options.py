"""Cheap scoring: smaller candidates, fewer passes, remembered losses, another model's losses."""

from __future__ import annotations

import copy
import gc
import io
import itertools
import math
import os
import pickle
import shutil
import sys
import sysconfig
import weakref
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reducible as rd
from reducible.lab.data import TensorSet
from reducible.lab.models import MODELS

N, N_B, K, C = 120, 20, 5, 3
FULL = N // N_B
STORE = rd.IrreducibleLossStore.from_tensor(
    torch.rand(N, generator=torch.Generator().manual_seed(9))
)


def _data() -> TensorSet:
    x = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
    return TensorSet(x, (x.sum(1) > 0).long() + (x[:, 0] > 1).long())


DATA = _data()


class Net(nn.Module):
    """Counts the rows of its passes, apart for scoring and for training."""

    def __init__(self, seed: int = 0, *, norm: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            middle = nn.BatchNorm1d(8) if norm else nn.ReLU()
            self.net = nn.Sequential(nn.Linear(4, 8), middle, nn.Linear(8, C))
        self.scored: list[int] = []
        self.trained: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        (self.trained if torch.is_grad_enabled() else self.scored).append(len(x))
        return self.net(x)


def _losses(model: Net, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return F.cross_entropy(model.net(DATA.inputs[ids]), DATA.targets[ids], reduction="none")


class Spy(rd.Selector):
    """Passes on another rule's choices; keeps the evidence."""

    def __init__(self, inner: rd.Selector) -> None:
        self.inner, self.needs, self.lr_ratio = inner, inner.needs, inner.lr_ratio
        self.evidence: list[rd.Evidence] = []

    def select(self, evidence: rd.Evidence, k: int, *, generator: torch.Generator) -> rd.Selection:
        self.evidence.append(evidence)
        return self.inner.select(evidence, k, generator=generator)


class Opaque(torch.utils.data.DataLoader[Any]):
    """A subclass may do anything, so its order is not read ahead."""


def _loader(*, opaque: bool = False, repeat: int | None = None) -> Any:
    generator = torch.Generator().manual_seed(3)
    if repeat is not None:  # the same candidates again and again
        return [DATA.fetch(torch.arange(N_B))] * repeat
    if opaque:
        data: Any = list(zip(DATA.inputs, DATA.targets.tolist(), strict=True))
        return Opaque(rd.WithIds(data), batch_size=N_B, shuffle=True, generator=generator)
    return DATA.loader(N_B, generator=generator)


def _batches(
    rule: str | rd.Selector, model: Net, loader: Any = None, *, scoring: Any = None, **options: Any
) -> Any:
    selector = rd.selector(rule) if isinstance(rule, str) else rule
    if "irreducible_loss" in selector.needs and selector.lr_ratio is None:
        options.setdefault("store", STORE)
    options = {"keep": K, "seed": 4} | options
    return rd.SelectingLoader(
        loader or _loader(), model, selector, scoring=rd.Scoring(**(scoring or {})), **options
    )


def _train(
    batches: Any, model: Net, until: int, *, remember: bool = False, save_at: int = -1
) -> tuple[list[list[int]], bytes]:
    """Ids handed out up to step ``until``, and the state at step ``save_at``."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    ids, saved = [], io.BytesIO()
    while batches.step < until:
        for chosen in batches:
            x, y = chosen.batch
            loss = F.cross_entropy(model(x), y, reduction="none")
            if remember:
                batches.remember(chosen.ids, loss)
            optimizer.zero_grad()
            rd.weighted_mean(loss, chosen.weights).backward()
            optimizer.step()
            ids.append(chosen.ids.tolist())
            if batches.step == save_at:
                state = {"loader": batches.state_dict(), "model": model.state_dict()}
                torch.save(state, saved)
            if batches.step == until:
                break
    return ids, saved.getvalue()


def _assert_resumes(
    make: Callable[[], tuple[Net, Any]], *, stop: int, until: int, remember: bool = False
) -> None:
    """Stopping at ``stop``, saving, and going on equals never having stopped."""
    model, batches = make()
    expected, saved = _train(batches, model, until, remember=remember, save_at=stop)
    state = torch.load(io.BytesIO(saved), weights_only=True)
    again, batches = make()
    batches.load_state_dict(state["loader"])
    once_more = batches.state_dict()  # a state that was loaded and saved is the same state
    assert once_more["passes"]["position"] == state["loader"]["passes"]["position"]
    again.load_state_dict(state["model"])
    chosen, _ = _train(batches, again, until, remember=remember)
    assert chosen == expected[stop:]
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)


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
    batches = _batches(spy, model, scoring={"updates_per_scoring": m})
    handed_out = list(batches)
    assert len(handed_out) == m * FULL
    assert model.scored == [N_B] * FULL  # one pass per m updates
    assert batches.ledger.counts.examples_scored == N
    assert batches.ledger.counts.updates == m * FULL
    for scored, evidence in enumerate(spy.evidence):
        rho = _losses(model, evidence.ids) - STORE.lookup(evidence.ids)
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
        _loader(), Net(), rd.selector("rho"), keep=K, store=STORE, seed=4
    )]  # fmt: skip
    asked = [c.ids.tolist() for c in _batches("rho", Net(), scoring={"updates_per_scoring": 1})]
    assert asked == plain


@pytest.mark.parametrize("opaque", [False, True])
@pytest.mark.parametrize("rule", ["rho", "uniform", "rho_soft"])
@pytest.mark.parametrize("stop", [3, 5, 6, 3 * FULL, 3 * FULL + 1])
def test_resuming_between_the_parts(rule: str, opaque: bool, stop: int) -> None:
    def make() -> tuple[Net, Any]:
        model = Net()
        loader = _loader(opaque=opaque)
        return model, _batches(rule, model, loader, scoring={"updates_per_scoring": 3})

    _assert_resumes(make, stop=stop, until=4 * FULL + 2)


@pytest.mark.parametrize("rule", ["uniform", "rho"])
def test_every_rule_has_as_many_updates_from_the_same_candidates(rule: str) -> None:
    """So that runs stay paired, whether or not a rule's rows are drawn ahead of loading."""
    spy = Spy(rd.selector("rho"))
    list(_batches(spy, Net(), scoring={"updates_per_scoring": 2}))
    for opaque in (False, True):
        loader = _loader(opaque=opaque)
        ids = [c.ids for c in _batches(rule, Net(), loader, scoring={"updates_per_scoring": 2})]
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
            _batches("uniform", Net(), _loader(), scoring=scoring),
            _batches("uniform", Net(), _loader(opaque=True), scoring=scoring),
        )
    ]
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("rule", ["uniform", "rho"])
def test_a_pass_that_is_broken_off_leaves_no_parts_behind(rule: str) -> None:
    batches = _batches(rule, Net(), scoring={"updates_per_scoring": 3})
    next(iter(batches))
    rest = list(batches)
    assert len(rest) == 3 * FULL
    for chosen in rest:
        assert torch.equal(chosen.batch[0], DATA.inputs[chosen.ids])


@pytest.mark.parametrize("rule", ["uniform", "rho"])
def test_more_rows_than_there_are_candidates(rule: str) -> None:
    message = "updates_per_scoring=5 of 5 rows each from 20 candidates: give the loader a larger"
    with pytest.raises(rd.ConfigurationError, match=message):
        _batches(rule, Net(), scoring={"updates_per_scoring": 5})
    unknown = _batches(rule, Net(), _loader(repeat=2), scoring={"updates_per_scoring": 5})
    with pytest.raises(rd.DataError, match=message):
        next(iter(unknown))  # its size is known only here
    assert len(list(_batches(rule, Net(), scoring={"updates_per_scoring": 4}))) == 4 * FULL


# -- remembered losses ----------------------------------------------------------------------------


class Known(list[Any]):
    """Batches that say which ids there are."""

    dataset = DATA


def test_only_old_rows_are_scored() -> None:
    """The same candidates at every step: scored anew when the last pass is older than max_age."""
    model = Net()
    batches = _batches("rho", model, Known(_loader(repeat=8)), scoring={"max_age": 2})
    list(batches)
    # scored at step 0, remembered at 1 and 2, and so on
    assert model.scored == [N_B] * 3
    assert batches.ledger.counts.examples_scored == 3 * N_B
    assert batches.ledger.counts.forwards_scored == 3


def test_losses_that_training_saw_are_used() -> None:
    model, spy = Net(), Spy(rd.selector("train_loss"))
    batches = _batches(spy, model, Known(_loader(repeat=3)), scoring={"max_age": 5})
    walk = iter(batches)
    chosen = next(walk)
    told = torch.arange(K) + 100.0
    batches.remember(chosen.ids, told)
    again = next(walk)
    assert model.scored == [N_B]
    assert sorted(again.ids.tolist()) == sorted(chosen.ids.tolist())  # these are the largest now
    assert sorted(again.info["score"].tolist()) == told.tolist()
    at_first, later = (e.require("loss") for e in spy.evidence)
    others = ~torch.isin(spy.evidence[0].ids, chosen.ids)
    assert torch.equal(at_first[others], later[others])


def test_what_training_saw_is_as_old_as_its_batch() -> None:
    model = Net()
    batches = _batches(
        "train_loss", model, Known(_loader(repeat=4)), keep=N_B, scoring={"max_age": 1}
    )
    for step, chosen in enumerate(batches):
        if step == 0:
            batches.remember(chosen.ids, torch.ones(N_B))
    # seen at step 0, still young at 1, scored at 2, young at 3
    assert model.scored == [N_B, N_B]


def test_remembered_and_fresh_losses_stand_in_their_places() -> None:
    model, spy = Net(), Spy(rd.selector("rho"))
    batches = _batches(spy, model, scoring={"max_age": 10**6})
    for chosen in batches:
        batches.remember(chosen.ids, chosen.ids.float())
    assert model.scored == [N_B] * FULL
    told = {i for e in spy.evidence for i in e.ids.tolist()}
    assert told == set(range(N))
    fresh = _losses(model, torch.arange(N))
    first_pass = len(spy.evidence)
    for _ in batches:
        pass
    assert model.scored == [N_B] * FULL  # nothing new in the second pass
    for evidence in spy.evidence[first_pass:]:
        loss, ids = evidence.require("loss"), evidence.ids
        known = loss == ids.float()
        torch.testing.assert_close(loss[~known], fresh[ids][~known])
        assert torch.equal(evidence.require("irreducible_loss"), STORE.lookup(ids))
    given = sum(int((e.require("loss") == e.ids.float()).sum()) for e in spy.evidence[first_pass:])
    assert given == FULL * K  # those trained on in the first pass


def test_a_share_is_scored_all_the_same() -> None:
    steps, refresh = 200, 0.3
    model = Net()
    scoring = {"max_age": 10**6, "rescore": refresh}
    batches = _batches("rho", model, Known(_loader(repeat=steps + 1)), scoring=scoring)
    list(batches)
    assert model.scored[0] == N_B
    n = steps * N_B
    share = sum(model.scored[1:]) / n
    assert abs(share - refresh) < 5 * math.sqrt(refresh * (1 - refresh) / n)
    everything = Net()
    scoring = {"max_age": 10**6, "rescore": 1.0}
    list(_batches("rho", everything, Known(_loader(repeat=3)), scoring=scoring))
    assert everything.scored == [N_B] * 3


@pytest.mark.parametrize("stop", [4, FULL, FULL + 3])
def test_memories_resume(stop: int) -> None:
    def make() -> tuple[Net, Any]:
        model = Net()
        return model, _batches("rho", model, scoring={"max_age": FULL, "rescore": 0.2})

    _assert_resumes(make, stop=stop, until=3 * FULL - 1, remember=True)


def test_memory_goes_with_a_live_irreducible_loss_model() -> None:
    model, live, spy = Net(), Net(1), Spy(rd.selector("rho_updating"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = _batches(
        spy, model, scoring={"max_age": 3}, irreducible_model=live, optimizer=optimizer
    )
    for _ in range(2):
        for chosen in batches:
            assert chosen.ids.numel() == K
    for evidence in spy.evidence:
        assert evidence.require("irreducible_loss").shape == (N_B,)
    assert len(live.trained) == 2 * FULL


@pytest.mark.parametrize("rule", ["grad_norm", "rho_entropy", "bald", "divbs", "rho_divbs"])
def test_rules_that_read_more_than_losses_cannot_remember(rule: str) -> None:
    with pytest.raises(rd.ConfigurationError, match=r"max_age=3 remembers losses, but .* needs \["):
        _batches(rule, Net(), scoring={"max_age": 3})


def test_memory_needs_ids_beforehand() -> None:
    with pytest.raises(rd.ConfigurationError, match="max_age needs ids known beforehand"):
        _batches("rho", Net(), _loader(repeat=2), scoring={"max_age": 3})


@pytest.mark.parametrize(
    ("batchnorm", "norm", "later"),
    [("candidates", True, 32), ("running", True, 0), ("candidates", False, 0)],
)
def test_enough_rows_are_scored_for_batch_statistics(
    batchnorm: str, norm: bool, later: int
) -> None:
    rows = 50
    data = TensorSet(torch.rand(rows, *DATA.inputs.shape[1:]), torch.arange(rows) % 2)
    store = rd.IrreducibleLossStore.from_tensor(torch.zeros(rows))

    class Again(list[Any]):
        dataset = data

    model, spy = Net(norm=norm).train(), Spy(rd.selector("rho"))
    loader = Again([data[list(range(rows))]] * 3)
    scoring = {"max_age": 9, "batchnorm": batchnorm}
    list(_batches(spy, model, loader, keep=K, store=store, scoring=scoring))
    assert model.scored == [rows, *[later] * 2] if later else model.scored == [rows]
    losses = [evidence.require("loss") for evidence in spy.evidence]
    for before, loss in itertools.pairwise(losses):
        moved = int((loss != before).sum())  # 32 rows' own statistics are not those of all 50
        assert 0 < moved <= 32 if later else moved == 0


# -- another model's scores -----------------------------------------------------------------------


def test_a_frozen_scorer_scores_in_the_models_stead() -> None:
    model, scorer, spy = Net(), Net(1), Spy(rd.selector("rho"))
    before = copy.deepcopy(scorer.state_dict())
    batches = _batches(spy, model, scorer=scorer)
    ids, _ = _train(batches, model, FULL)
    for chosen, evidence in zip(ids, spy.evidence, strict=True):
        rho = _losses(scorer, evidence.ids) - STORE.lookup(evidence.ids)
        assert chosen == evidence.ids[rho.argsort(descending=True)[:K]].tolist()
    assert model.scored == []
    assert model.trained == [K] * FULL
    assert scorer.scored == [N_B] * FULL
    torch.testing.assert_close(scorer.state_dict(), before, rtol=0, atol=0)
    assert all(p.grad is None for p in scorer.parameters())


def test_a_frozen_scorer_is_not_told_the_models_losses() -> None:
    model, scorer, spy = Net(), Net(1), Spy(rd.selector("train_loss"))
    batches = _batches(spy, model, Known(_loader(repeat=3)), scorer=scorer, scoring={"max_age": 9})
    _train(batches, model, 3, remember=True)
    for evidence in spy.evidence:
        torch.testing.assert_close(evidence.require("loss"), _losses(scorer, evidence.ids))


def test_a_co_trained_scorer_steps_once_per_batch() -> None:
    model, scorer, literal = Net(), Net(1), Net(1)
    spy = Spy(rd.selector("rho"))
    learner = rd.CoTrained(scorer, torch.optim.Adam(scorer.parameters(), lr=0.05))
    optimizer = torch.optim.Adam(literal.parameters(), lr=0.05)
    batches = _batches(spy, model, scorer=learner)
    for chosen in batches:
        ids = spy.evidence[-1].ids
        torch.testing.assert_close(spy.evidence[-1].loss, _losses(literal, ids))
        x, y = chosen.batch
        optimizer.zero_grad()
        F.cross_entropy(literal(x), y).backward()
        optimizer.step()
        torch.testing.assert_close(scorer.state_dict(), literal.state_dict())
    assert scorer.trained == [K] * FULL
    assert scorer.scored == [N_B] * FULL
    assert model.scored == model.trained == []


def test_a_co_trained_scorer_steps_on_every_part() -> None:
    scorer = Net(1)
    learner = rd.CoTrained(scorer, torch.optim.SGD(scorer.parameters(), lr=0.1))
    list(_batches("rho", Net(), scorer=learner, scoring={"updates_per_scoring": 2}))
    assert scorer.trained == [K] * 2 * FULL


def test_a_scorers_steps_are_charged_to_scoring() -> None:
    class Clock:
        now = 0.0

        def __call__(self) -> float:
            return self.now

    clock = Clock()

    class Slow(Net):
        def forward(self, x: Tensor) -> Tensor:
            clock.now += 1.0 if not torch.is_grad_enabled() else 10.0
            return super().forward(x)

    ledger, scorer = rd.Ledger(clock=clock), Slow(1)
    learner = rd.CoTrained(scorer, torch.optim.SGD(scorer.parameters(), lr=0.1))
    list(_batches("rho", Net(), scorer=learner, ledger=ledger))
    assert ledger.seconds["score"] == ledger.total == (1 + 10) * FULL


@pytest.mark.parametrize("updates", [1, 2])
@pytest.mark.parametrize("stop", [3, FULL])
def test_a_co_trained_scorer_resumes(stop: int, updates: int) -> None:
    def make() -> tuple[Net, Any]:
        model, scorer = Net(), Net(1)
        learner = rd.CoTrained(scorer, torch.optim.Adam(scorer.parameters(), lr=0.05))
        scoring = {"updates_per_scoring": updates}
        return model, _batches("rho", model, scorer=learner, scoring=scoring)

    _assert_resumes(make, stop=stop, until=2 * FULL)


def test_a_scorer_follows_the_rate_of_its_lead() -> None:
    model, scorer, literal = Net(), Net(1), Net(1)
    lead = torch.optim.SGD(model.parameters(), lr=0.2)
    learner = rd.CoTrained.following(scorer, lead, lr_ratio=0.5)
    optimizer = torch.optim.SGD(literal.parameters(), lr=0.0)
    for chosen in _batches("rho", model, scorer=learner):
        optimizer.param_groups[0]["lr"] = 0.5 * lead.param_groups[0]["lr"]
        x, y = chosen.batch
        optimizer.zero_grad()
        F.cross_entropy(literal(x), y).backward()
        optimizer.step()
        torch.testing.assert_close(scorer.state_dict(), literal.state_dict())
        lead.param_groups[0]["lr"] *= 0.8


def test_a_scorer_that_is_none() -> None:
    with pytest.raises(rd.ConfigurationError, match=r"scorer is a str: pass a module"):
        _batches("rho", Net(), scorer="mlp-64")


# -- compiled scoring -----------------------------------------------------------------------------

_CXX = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
_HEADER = Path(sysconfig.get_paths()["include"], "Python.h")
needs_compiler = pytest.mark.skipif(
    shutil.which(_CXX) is None or not _HEADER.exists(),
    reason=f"torch.compile builds C++ here: it needs {_CXX} and {_HEADER}",
)


class Graphs:
    """A backend that runs captured graphs as they are: a network takes half a minute in C++.

    Capturing is where modes, buffers and guards could go wrong; the C++ is tested on a tiny MLP.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.compiled = self.captured = self.runs = 0
        inner = torch.compile

        def compile_(model: nn.Module, **options: Any) -> Any:
            self.compiled += 1
            return inner(model, backend=self, **options)

        monkeypatch.setattr(torch, "compile", compile_)

    def __call__(self, graph: Any, _: Any) -> Any:
        self.captured += 1

        def run(*args: Any) -> Any:
            self.runs += 1
            return graph.forward(*args)

        return run


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Graphs]:
    torch._dynamo.reset()
    yield Graphs(monkeypatch)
    torch._dynamo.reset()


def _tiny(*, norm: bool = True) -> nn.Sequential:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        middle: list[nn.Module] = [nn.BatchNorm1d(8)] if norm else []
        return nn.Sequential(
            nn.Linear(4, 8), *middle, nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, C)
        ).train()


def _trace(model: nn.Module) -> Any:
    tensors = {k: v.tolist() for k, v in model.state_dict().items()}
    modes = [(m.training, getattr(m, "track_running_stats", None)) for m in model.modules()]
    return tensors, modes, [p.grad for p in model.parameters()]


def _compiled_and_not(model: nn.Module, candidates: rd.Candidates, **scoring: Any) -> list[Tensor]:
    needs = frozenset({"loss"})
    return [
        rd.measure(model, candidates, needs, rd.Scoring(compile=c, **scoring)).require("loss")
        for c in (True, False)
    ]


@needs_compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what the compiler imports
def test_a_compiled_mlp_scores_alike_and_keeps_no_trace(
    global_streams: Callable[[], Any],
) -> None:
    torch._dynamo.reset()
    model, candidates = _tiny(), DATA.fetch(torch.arange(N_B))
    before, streams = _trace(model), global_streams()
    compiled, plain = _compiled_and_not(model, candidates)
    for again in (compiled, _compiled_and_not(model, candidates)[0]):
        torch.testing.assert_close(again, plain)
    assert (_trace(model), global_streams()) == (before, streams)
    next(model.parameters()).data.mul_(-1)  # training goes on beneath it
    compiled, other = _compiled_and_not(model, candidates)
    torch.testing.assert_close(compiled, other)
    assert not torch.allclose(other, plain)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_compiled_network_in_every_mode(
    graphs: Graphs, training: bool, global_streams: Callable[[], Any]
) -> None:
    """One model, scored in one mode after the other: each is captured on its own."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = MODELS["resnet-18-16"]().train(training)
        images = torch.randn(6, 1, 16, 16) + 1
    candidates = rd.Candidates(torch.arange(6), (images, torch.arange(6)))
    before, streams = _trace(model), global_streams()
    losses = []
    for batchnorm in ("candidates", "running", "candidates"):
        captured, runs = graphs.captured, graphs.runs
        compiled, plain = _compiled_and_not(model, candidates, batchnorm=batchnorm)
        torch.testing.assert_close(compiled, plain)
        assert graphs.runs > runs
        assert (graphs.captured > captured) == (len(losses) < 2)
        losses.append(plain)
        assert (_trace(model), global_streams()) == (before, streams)
    assert not torch.allclose(losses[0], losses[1])
    assert graphs.compiled == 1


def test_compiled_scoring_in_the_loop_chooses_the_same_rows(graphs: Graphs) -> None:
    chosen, counts = [], []
    for compiled in (True, False):
        model: Any = _tiny(norm=False)
        batches = _batches("rho", model, scoring={"compile": compiled})
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            chosen.append(_train(batches, model, 2 * FULL)[0])
        counts.append(asdict(batches.ledger.counts))
    assert chosen[0] == chosen[1]
    assert counts[0] == counts[1]  # FLOPs too, which cannot be counted inside what is compiled
    assert counts[0]["flops_score"] > 0
    assert graphs.runs == 2 * FULL - 1  # the pass they are counted in is not compiled


def test_a_compiled_model_is_let_go_of_and_copied_without(graphs: Graphs) -> None:
    model, candidates = _tiny(), DATA.fetch(torch.arange(N_B))
    keys = list(model.state_dict())
    _compiled_and_not(model, candidates)
    assert list(model.state_dict()) == keys
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        captured = graphs.captured
        compiled, plain = _compiled_and_not(copied, candidates)
        torch.testing.assert_close(compiled, plain)
        next(copied.parameters()).data.zero_()
        assert not torch.allclose(_compiled_and_not(copied, candidates)[0], plain)
        assert graphs.captured >= captured
    torch.testing.assert_close(*_compiled_and_not(model, candidates))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_features_are_caught_in_passes_as_they_are(graphs: Graphs) -> None:
    model, candidates = _tiny(), DATA.fetch(torch.arange(N_B))
    needs = frozenset({"loss", "features"})
    both = [rd.measure(model, candidates, needs, rd.Scoring(compile=c)) for c in (True, False)]
    for name in needs:
        assert torch.equal(both[0].require(name), both[1].require(name))
    assert graphs.captured == 0
