"""A schedule around a rule: its share, what is measured, and what the rule learns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, final

import numpy as np
import pytest
import torch
from torch import Tensor

import reducible as rd
from reducible.selectors import Chain, Scheduled, Scored

SIZE = 12


def _evidence(step: int) -> rd.Evidence:
    rng = np.random.default_rng(step)
    return rd.Evidence(
        ids=torch.arange(SIZE),
        loss=torch.tensor(rng.exponential(size=SIZE)),
        irreducible_loss=torch.tensor(rng.exponential(size=SIZE)),
        mc_logits=torch.tensor(rng.normal(size=(2, SIZE, 3))),
        context={"step": torch.tensor(step)},
    )


@final
class Recorder(rd.Selector):
    """Takes the rows of highest loss (fewer than asked for, where ``short``); keeps what it saw."""

    needs = frozenset({"loss"})
    samples = 3
    lr_ratio = 0.5

    def __init__(self, short: int = 0) -> None:
        self.seen: list[list[int]] = []
        self.short = short

    def select(self, evidence: rd.Evidence, k: int, *, generator: torch.Generator) -> rd.Selection:
        index = evidence.require("loss").argsort(descending=True)[: k - self.short]
        return rd.Selection(index, torch.full((len(index),), 2.0), {"mine": index})

    def observe(self, evidence: rd.Evidence, selection: rd.Selection) -> None:
        assert selection.weight.tolist() == [2.0] * len(selection.index)
        self.seen.append(selection.index.tolist())

    def state_dict(self) -> dict[str, Any]:
        return {"seen": list(self.seen)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.seen = list(state["seen"])


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


SHARES = [
    ({}, [1, 1, 1, 1, 1]),
    ({"start": 2}, [0, 0, 1, 1, 1]),
    ({"end": 3}, [1, 1, 1, 0, 0]),
    ({"start": 1, "end": 3}, [0, 1, 1, 0, 0]),
    ({"start": 2, "end": 2}, [0, 0, 0, 0]),
    ({"every": 2}, [1, 0, 1, 0, 1]),
    ({"every": 3, "start": 1}, [0, 1, 0, 0, 1]),
    ({"warmup": 3}, [0.25, 0.5, 0.75, 1, 1]),
    ({"warmup": 1, "start": 2}, [0, 0, 0.5, 1, 1]),
    ({"end": 4, "anneal": 2}, [1, 1, 1, 0.5, 0]),
    ({"end": 5, "anneal": 4}, [1, 1, 0.75, 0.5, 0.25, 0]),
    ({"end": 4, "anneal": 4, "warmup": 3}, [0.25, 0.5, 0.5, 0.25, 0]),
    ({"end": 6, "anneal": 4, "every": 2}, [1, 0, 1, 0, 0.5, 0, 0]),
    ({"mix": 0.5}, [0.5, 0.5, 0.5]),
    ({"mix": 0.25, "warmup": 1, "start": 1}, [0, 0.375, 0.75, 0.75]),
    ({"mix": 0.5, "end": 4, "anneal": 2}, [0.5, 0.5, 0.5, 0.25, 0]),
    ({"mix": 0.9}, [0.1, 0.1]),  # of four rows, the rule has none
]


@pytest.mark.parametrize(("schedule", "shares"), SHARES, ids=str)
def test_shares_by_hand(schedule: dict[str, int], shares: list[float]) -> None:
    rule = Scheduled(Scored(rd.scores.rho), **schedule)
    assert [rule.share(step) for step in range(len(shares))] == pytest.approx(shares)


@pytest.mark.parametrize(("schedule", "shares"), SHARES, ids=str)
def test_the_rules_picks_come_first_and_the_rest_is_random(
    schedule: dict[str, int], shares: list[float]
) -> None:
    inner = Recorder()
    rule, k = Scheduled(inner, **schedule), 4
    for step, share in enumerate(shares):
        evidence, by_rule = _evidence(step), math.floor(share * k + 0.5)
        chosen = rule.select(evidence, k, generator=_generator(step))
        assert chosen.index.unique().numel() == k
        best = evidence.require("loss").argsort(descending=True).tolist()
        assert chosen.index[:by_rule].tolist() == best[:by_rule]
        assert chosen.weight.tolist() == [2.0] * by_rule + [1.0] * (k - by_rule)
        before = len(inner.seen)
        rule.observe(evidence, chosen)
        assert inner.seen[before:] == ([best[:by_rule]] if by_rule else [])


def test_the_rest_is_any_of_the_others_as_often() -> None:
    rule, evidence = Scheduled(Recorder(), warmup=1), _evidence(0)
    own = evidence.require("loss").argsort(descending=True)[:2].tolist()
    counts = np.zeros(SIZE)
    for seed in range(2000):
        chosen = rule.select(evidence, 4, generator=_generator(seed))
        counts[chosen.index[2:]] += 1
    assert counts[own].tolist() == [0, 0]
    others = np.delete(counts, own)
    assert bool((abs(others - 400) <= 4 * math.sqrt(2000 * 0.2 * 0.8)).all())


def test_uniform_before_its_start() -> None:
    rule, evidence = Scheduled(Recorder(), start=5), _evidence(0)
    counts = np.zeros(SIZE)
    for seed in range(2000):
        counts[rule.select(evidence, 3, generator=_generator(seed)).index] += 1
    assert bool((abs(counts - 500) <= 4 * math.sqrt(2000 * 0.25 * 0.75)).all())


class Spy:
    """Gives ids and step always, the rest only where it was asked for."""

    def __init__(self, evidence: rd.Evidence) -> None:
        self.evidence = evidence
        self.measured: list[set[str]] = []
        self.samples: list[int] = []
        self.rows: list[int | None] = []

    def __call__(
        self, needs: frozenset[str], rows: Tensor | None = None, *, samples: int = 0
    ) -> rd.Evidence:
        self.measured.append(set(needs) - {"step"})
        self.samples.append(samples)
        self.rows.append(None if rows is None else len(rows))
        full = self.evidence if rows is None else self.evidence.rows(rows)
        fields = {n: getattr(full, n) for n in needs - {"step"}}
        context = dict(full.context) if "step" in needs else {}
        return rd.Evidence(ids=full.ids, context=context, **fields)


@pytest.mark.parametrize(("schedule", "shares"), SHARES, ids=str)
def test_looking_chooses_what_full_evidence_does(
    schedule: dict[str, int], shares: list[float]
) -> None:
    k = 4
    for step, share in enumerate(shares):
        rule = Scheduled(Recorder(), **schedule)
        spy = Spy(_evidence(step))
        choice = rule.choose(spy, k, generator=_generator(step))
        direct = rule.select(_evidence(step), k, generator=_generator(step))
        assert choice.positions.tolist() == direct.index.tolist()
        assert choice.selection.weight.tolist() == direct.weight.tolist()
        measured = set.union(*spy.measured)
        asked = math.floor(share * k + 0.5) > 0
        assert measured == ({"loss"} if asked else set())  # nothing, when uniform
        assert max(spy.samples) == (3 if asked else 0)
        assert rule.is_blind(step, k, SIZE) is not asked
        rule.observe(choice.evidence, choice.selection)


def test_a_chain_inside_still_looks_twice() -> None:
    chain = Chain(Scored(rd.scores.rho), prefilter=5, then=Scored(rd.scores.bald, samples=2))
    rule = Scheduled(chain, start=1)
    spy = Spy(_evidence(1))
    choice = rule.choose(spy, 3, generator=_generator())
    assert spy.measured[1:] == [{"loss", "irreducible_loss"}, {"mc_logits"}]
    assert spy.rows == [None, None, 5]
    rule.observe(choice.evidence, choice.selection)


def test_a_rule_that_takes_fewer_is_left_so_or_filled_up() -> None:
    rule = Scheduled(Recorder(short=1))
    chosen = rule.select(_evidence(0), 4, generator=_generator())
    assert len(chosen.index) == 3
    assert set(chosen.info) == {"mine"}
    rule.observe(_evidence(0), chosen)
    warming = Scheduled(Recorder(short=1), warmup=1)
    chosen = warming.select(_evidence(0), 4, generator=_generator())
    assert chosen.index.unique().numel() == 4
    assert chosen.weight.tolist() == [2.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("looks", [False, True])
def test_a_rule_that_takes_fewer_learns_from_its_own_rows_alone(looks: bool) -> None:
    """It was asked for six and gave three: the random rows that fill up are not its own."""
    inner, evidence = Recorder(short=3), _evidence(0)
    rule = Scheduled(inner, mix=0.5)
    if looks:
        evidence, chosen, _ = rule.choose(Spy(evidence), 12, generator=_generator())
    else:
        chosen = rule.select(evidence, 12, generator=_generator())
    assert chosen.weight.tolist() == [2.0] * 3 + [1.0] * 9
    rule.observe(evidence, chosen)
    best = _evidence(0).require("loss").argsort(descending=True)
    assert inner.seen == [best[:3].tolist()]


def test_the_memory_of_a_rule_of_varying_size_is_of_its_own_rows() -> None:
    """ρ̄ is of the candidates, so schedule or not, ``rho_ema`` remembers the same."""
    alone, rule = rd.selector("rho_ema", k_min=1), Scheduled(rd.selector("rho_ema"), mix=0.5)
    for step in range(3):
        evidence = _evidence(step)
        alone.observe(evidence, alone.select(evidence, 4, generator=_generator()))
        rule.observe(evidence, rule.select(evidence, 4, generator=_generator()))
    assert rule.state_dict() == alone.state_dict()


def test_a_schedule_in_a_schedule_hands_the_rule_its_rows() -> None:
    inner, evidence = Recorder(), _evidence(0)
    rule = Scheduled(Scheduled(inner, mix=0.5), mix=0.5)  # of eight, four, of these two
    chosen = rule.select(evidence, 8, generator=_generator())
    assert chosen.index.unique().numel() == 8
    assert chosen.weight.tolist() == [2.0] * 2 + [1.0] * 6
    rule.observe(evidence, chosen)
    best = evidence.require("loss").argsort(descending=True)
    assert inner.seen == [best[:2].tolist()]


@final
class Talker(rd.Selector):
    """Says of its choice what rules say."""

    needs = frozenset({"loss"})

    def __init__(self, *, unbiased: bool = False, short: int = 0) -> None:
        self.unbiased, self.short = unbiased, short

    def select(self, evidence: rd.Evidence, k: int, *, generator: torch.Generator) -> rd.Selection:
        index = torch.arange(k - self.short)
        info = {"score": evidence.require("loss")[index], "group_weights": torch.tensor([0.25])}
        return rd.Selection(index, torch.ones(len(index), dtype=torch.float64), info)


@pytest.mark.parametrize("unbiased", [False, True])
def test_what_the_rule_says_of_its_choice_survives(unbiased: bool) -> None:
    """A score goes with its row; a row of chance has none."""
    rule = Scheduled(Talker(unbiased=unbiased), mix=0.5)
    evidence = _evidence(0)
    chosen = rule.select(evidence, 4, generator=_generator())
    assert set(chosen.info) == {"score", "group_weights"}
    assert chosen.info["group_weights"].tolist() == [0.25]
    own = evidence.require("loss")[chosen.index[:2]]
    assert chosen.info["score"][:2].tolist() == own.tolist()
    assert chosen.info["score"][2:].isnan().tolist() == [True, True]
    whole = Scheduled(Talker()).select(evidence, 4, generator=_generator())
    assert whole.info["score"].tolist() == evidence.require("loss")[:4].tolist()


def test_an_unbiased_rule_chooses_among_what_chance_leaves() -> None:
    """Its rows are the first of those that are left, so they move with the draw."""
    rule, seen = Scheduled(Talker(unbiased=True), mix=0.5), set[tuple[int, ...]]()
    for seed in range(200):
        chosen = rule.select(_evidence(0), 4, generator=_generator(seed))
        assert chosen.index.unique().numel() == 4
        seen.add(tuple(chosen.index[:2].tolist()))
    assert len(seen) > 50


def test_an_unbiased_rule_that_gives_fewer_is_refused() -> None:
    rule = Scheduled(Talker(unbiased=True, short=1), mix=0.5)
    with pytest.raises(rd.SelectionError, match="Talker says that it is unbiased, but chose 1 row"):
        rule.select(_evidence(0), 4, generator=_generator())


def test_blind_where_the_inner_rule_is() -> None:
    """Shut for 3·k·τ ≤ n + 3·k: of the rows that the inner rule is asked for, and chooses from."""
    gate = rd.selector("grad_norm_is", tau_gate=True)
    rule = Scheduled(gate, mix=0.5, start=1)
    assert rule.hindsight == gate.hindsight
    gate.load_state_dict({"tau": 2.0})  # of k = 8: four by the rule, shut from n − 4 = 12 on
    blind = [rule.is_blind(1, 8, size) for size in (15, 16)]
    assert blind == [False, True]
    assert rule.is_blind(0, 8, 15)  # not asked at all
    assert not rd.Scheduled(rd.selector("rho"), mix=0.5).is_blind(0, 8, 16)
    assert rd.Scheduled(rd.selector("uniform"), mix=0.5).is_blind(0, 8, 16)


def test_in_hindsight_the_rule_is_told_its_share() -> None:
    """Eight rows were drawn blindly and trained on; the first four were the rule's to draw."""
    gate, alone = (rd.selector("grad_norm_is", tau_gate=True) for _ in range(2))
    rule = Scheduled(gate, mix=0.5)
    g = torch.Generator().manual_seed(0)
    rows = rd.Evidence(
        ids=torch.arange(8),
        logits=torch.randn(8, 3, generator=g),
        targets=torch.zeros(8, dtype=torch.int64),
        context={"step": torch.tensor(0)},
    )
    rule.observe(rows, rd.Selection(torch.arange(8), torch.ones(8)))
    first = torch.arange(4)
    alone.observe(rows.rows(first), rd.Selection(first, torch.ones(4)))
    assert rule.state_dict() == alone.state_dict() != {"tau": 0.0}


def test_state_and_wishes_are_the_inner_rules() -> None:
    inner = Recorder()
    rule = Scheduled(inner)
    assert (rule.needs, rule.samples, rule.lr_ratio) == ({"loss", "step"}, 3, 0.5)
    rule.observe(_evidence(0), rd.Selection(torch.tensor([4]), torch.full((1,), 2.0)))
    assert rule.state_dict() == {"seen": [[4]]}
    other = Scheduled(Recorder())
    other.load_state_dict(rule.state_dict())
    assert other.state_dict() == {"seen": [[4]]}


@pytest.mark.parametrize("k", [0, SIZE + 1])
def test_k_out_of_range(k: int) -> None:
    for start in (0, 9):
        with pytest.raises(rd.SelectionError, match=f"cannot choose {k} of {SIZE}"):
            Scheduled(Recorder(), start=start).select(_evidence(0), k, generator=_generator())


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"start": -1}, "start must be a whole number"),
        ({"start": 0.5}, "start must be a whole number"),
        ({"every": 0}, "every must be a whole number"),
        ({"warmup": -1}, "warmup must be a whole number"),
        ({"anneal": -1, "end": 3}, "anneal must be a whole number"),
        ({"anneal": 1}, "anneal needs end="),
        ({"mix": -0.1}, r"mix must be a number in \[0.0, 1.0\), got -0.1"),
        ({"mix": 1.0}, "mix must be a number"),
        ({"mix": math.nan}, "mix must be a number"),
        ({"start": 3, "end": 2}, r"end must be a whole number in \[3, inf\], got 2"),
    ],
)
def test_impossible_schedules(schedule: dict[str, Any], message: str) -> None:
    with pytest.raises(rd.ConfigurationError, match=message):
        Scheduled(Recorder(), **schedule)


@pytest.mark.parametrize("name", ["rs2", "svp", "infobatch"])
def test_only_around_rules_that_decide_by_batch(name: str) -> None:
    with pytest.raises(rd.ConfigurationError, match="decide by candidate batch"):
        Scheduled(rd.selector(name))


def test_half_a_row_is_rounded_up() -> None:
    chosen = Scheduled(Recorder(), warmup=1).select(_evidence(0), 3, generator=_generator())
    assert chosen.weight.tolist() == [2.0, 2.0, 1.0]  # half of 3 is 1.5
