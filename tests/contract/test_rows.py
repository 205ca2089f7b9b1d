"""What holds for every row of the table of selectors; a new row is tested by being there."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import reducible as rd
from reducible.selectors import Scored
from reducible.types import CONTEXT_KEYS, EVIDENCE_FIELDS

# Rules that draw with replacement: their weights correct for rows that come twice.
WITH_REPLACEMENT = {"grad_norm_is"}

B, C, D, S, K = 24, 4, 6, 3, 5
ROWS = pytest.mark.parametrize("name", rd.SELECTORS)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])


def make_evidence(
    needs: frozenset[str], *, dtype: torch.dtype = torch.float32, step: int = 0
) -> rd.Evidence:
    """Full and consistent evidence of B candidates, cut down to ids and ``needs``."""
    g = torch.Generator().manual_seed(1000 + step)
    targets = torch.arange(B).remainder(C)[torch.randperm(B, generator=g)]
    logits = torch.randn(B, C, generator=g, dtype=torch.float64).to(dtype)
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    measured = {
        "targets": targets,
        "loss": losses,
        "logits": logits,
        "features": torch.randn(B, D, generator=g, dtype=torch.float64).to(dtype),
        "mc_logits": torch.randn(S, B, C, generator=g, dtype=torch.float64).to(dtype),
        "irreducible_loss": torch.rand(B, generator=g, dtype=torch.float64).to(dtype),
        "group_irreducible_loss": torch.rand(B, C, generator=g, dtype=torch.float64).to(dtype),
        "groups": targets.clone(),
    }
    context = {
        "step": torch.tensor(step),
        "epoch": torch.tensor(step // 10),
        "total_steps": torch.tensor(100),
        "group_holdout_loss": torch.rand(C, generator=g, dtype=torch.float64).to(dtype),
    }
    assert set(measured) | {"ids"} == set(EVIDENCE_FIELDS)
    assert set(context) == set(CONTEXT_KEYS)
    ids = torch.arange(2**53 + 1, 2**53 + 1 + B)[torch.randperm(B, generator=g)]
    return rd.Evidence(
        ids=ids,
        context={n: v for n, v in context.items() if n in needs},
        **{n: v for n, v in measured.items() if n in needs},
    )


def without(evidence: rd.Evidence, name: str) -> rd.Evidence:
    if name in CONTEXT_KEYS:
        return replace(evidence, context={n: v for n, v in evidence.context.items() if n != name})
    changes: dict[str, Any] = {name: None}
    return replace(evidence, **changes)


def tensors(evidence: rd.Evidence) -> dict[str, Tensor]:
    named = {f.name: getattr(evidence, f.name) for f in fields(evidence) if f.name != "context"}
    return {n: v for n, v in (named | dict(evidence.context)).items() if v is not None}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_same(a: Any, b: Any) -> None:
    """Equal nested states, tensors included."""
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def advanced(rule: rd.Selector, first: int, last: int) -> list[list[int]]:
    """Run select and observe for steps first … last−1; returns the chosen positions."""
    chosen = []
    for step in range(first, last):
        evidence = make_evidence(rule.needs, step=step)
        selection = rule.select(evidence, K, generator=generator(step))
        rule.observe(evidence, selection)
        chosen.append(selection.index.tolist())
    return chosen


# -- the row itself -------------------------------------------------------------------------------


@ROWS
def test_row_says_where_it_comes_from(name: str) -> None:
    row = rd.SELECTORS[name]
    assert row.name == name
    for text in (row.paper, row.equation, row.summary, row.against):
        assert text == text.strip()
        assert len(text) > 3
    assert row.summary.endswith(".")


@ROWS
def test_needs_are_evidence_that_can_be_measured(name: str) -> None:
    rule = rd.selector(name)
    assert rule.needs <= {*EVIDENCE_FIELDS, *CONTEXT_KEYS} - {"ids"}
    assert rule.needs == rd.SELECTORS[name].needs
    assert ("mc_logits" in rule.needs) <= (rule.samples > 0)
    assert rule.horizon in ("batch", "epoch", "run")


# -- what is chosen -------------------------------------------------------------------------------


@ROWS
@DTYPES
@pytest.mark.parametrize("k", [1, K, B])
def test_selection_is_well_formed(name: str, dtype: torch.dtype, k: int) -> None:
    rule = rd.selector(name)
    evidence = make_evidence(rule.needs, dtype=dtype)
    for step in range(3):  # a rule may have memory by now
        selection = rule.select(evidence, k, generator=generator(step))
        index, weight = selection.index, selection.weight
        assert index.dtype == torch.int64
        assert index.dim() == 1
        assert 1 <= len(index) <= k
        assert 0 <= int(index.min()) <= int(index.max()) < B
        if name not in WITH_REPLACEMENT:
            assert index.unique().numel() == len(index)
        assert weight.shape == index.shape
        assert weight.is_floating_point()
        assert bool(torch.isfinite(weight).all())
        if any(evidence_is_floating(evidence)):
            assert weight.dtype == dtype
        for key, value in selection.info.items():
            assert isinstance(key, str)
            assert value.numel() <= B * C
            if value.is_floating_point() and any(evidence_is_floating(evidence)):
                assert value.dtype == dtype, key
        rule.observe(evidence, selection)


def evidence_is_floating(evidence: rd.Evidence) -> list[bool]:
    return [t.is_floating_point() for t in tensors(evidence).values()]


@ROWS
@pytest.mark.parametrize("k", [0, -1, B + 1])
def test_k_out_of_range_is_refused(name: str, k: int) -> None:
    rule = rd.selector(name)
    with pytest.raises(rd.SelectionError, match=rf"{k} of {B} candidates"):
        rule.select(make_evidence(rule.needs), k, generator=generator())


@ROWS
def test_each_missing_need_is_named(name: str) -> None:
    rule = rd.selector(name)
    full = make_evidence(rule.needs)
    for need in rule.needs:
        evidence = without(full, need)
        with pytest.raises(rd.MissingEvidence, match=rf"no '{need}' in the evidence"):
            rule.observe(evidence, rule.select(evidence, K, generator=generator()))


BROKEN = {
    "loss": (math.nan, math.inf, -math.inf),
    "logits": (math.nan, math.inf, -math.inf),
    "irreducible_loss": (math.nan, math.inf, -math.inf),
    "group_irreducible_loss": (math.nan,),  # clipping may make 0 of an infinite one
}


def is_never_seen(rule: rd.Selector, field: str, bad: float) -> bool:
    """Rules of whole epochs read remembered losses, where NaN marks an example not seen yet."""
    return rule.horizon == "epoch" and field == "loss" and math.isnan(bad)


@pytest.mark.parametrize(
    ("name", "field", "bad"),
    [
        (name, field, bad)
        for name, row in rd.SELECTORS.items()
        for field in sorted(row.needs & set(BROKEN))
        for bad in BROKEN[field]
        if not is_never_seen(rd.selector(name), field, bad)
    ],
)
def test_nothing_broken_is_chosen(name: str, field: str, bad: float) -> None:
    """A rule that reads a broken number says whose it is, also where the rest would suffice."""
    rule = rd.selector(name)
    evidence = make_evidence(rule.needs)
    at = 3
    tensors(evidence)[field][at] = bad
    with pytest.raises(rd.SelectionError, match=rf"ids {int(evidence.ids[at])}\b"):
        rule.select(evidence, K, generator=generator())


@pytest.mark.parametrize("name", [n for n in rd.SELECTORS if isinstance(rd.selector(n), Scored)])
def test_pure_scores_follow_the_candidates(name: str) -> None:
    """Reordering the candidates reorders the scores, so the chosen scores stay the same."""
    rule = rd.selector(name)
    assert isinstance(rule, Scored)
    evidence = make_evidence(rule.needs, dtype=torch.float64)
    order = torch.randperm(B, generator=generator(5))
    moved = evidence.rows(order)
    torch.testing.assert_close(rule.score(moved), rule.score(evidence)[order])

    def chosen(evidence: rd.Evidence, seed: int) -> tuple[float, ...]:
        index = rule.select(evidence, K, generator=generator(seed)).index
        return tuple(sorted(rule.score(evidence)[index].tolist()))

    here = {chosen(evidence, seed) for seed in range(5)}
    if len(here) == 1:  # the pick leaves nothing but ties to chance
        assert here.pop() == pytest.approx(chosen(moved, 9))
    else:  # no draw of a random pick repeats, so it is the scores that must agree, as above
        assert len(here) == 5


# -- what is left alone ---------------------------------------------------------------------------


@ROWS
def test_select_changes_nothing(name: str, global_streams: Callable[[], Any]) -> None:
    rule = rd.selector(name)
    advanced(rule, 0, 3)
    evidence = make_evidence(rule.needs, step=3)
    before = {n: t.clone() for n, t in tensors(evidence).items()}
    state, streams = copied(rule.state_dict()), global_streams()
    first = rule.select(evidence, K, generator=generator(9))
    again = rule.select(evidence, K, generator=generator(9))
    assert first.index.tolist() == again.index.tolist()
    assert_same(first.weight, again.weight)
    assert_same(rule.state_dict(), state)
    rule.observe(evidence, first)
    assert_same(tensors(evidence), before)
    assert global_streams() == streams


def copied(state: dict[str, Any]) -> dict[str, Any]:
    """``state`` after a trip through a file, as checkpoints make it."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@ROWS
def test_the_generator_decides_alone(name: str) -> None:
    """A fresh generator of the same seed gives the same choices, whatever the global streams do."""
    first = advanced(rd.selector(name), 0, 5)
    torch.manual_seed(123)
    assert advanced(rd.selector(name), 0, 5) == first


# -- memory ---------------------------------------------------------------------------------------


@ROWS
@pytest.mark.parametrize("stop", [0, 1, 10])
def test_saved_and_loaded_is_never_stopped(name: str, stop: int) -> None:
    steps = 20
    rule = rd.selector(name)
    expected = advanced(rule, 0, steps)
    stopped = rd.selector(name)
    chosen = advanced(stopped, 0, stop)
    resumed = rd.selector(name)
    resumed.load_state_dict(copied(stopped.state_dict()))
    assert_same(resumed.state_dict(), stopped.state_dict())
    chosen += advanced(resumed, stop, steps)
    assert chosen == expected
    assert_same(resumed.state_dict(), rule.state_dict())


@ROWS
def test_a_saved_state_does_not_move_with_the_rule(name: str) -> None:
    rule = rd.selector(name)
    advanced(rule, 0, 2)
    saved = rule.state_dict()
    frozen = copied(saved)
    advanced(rule, 2, 4)
    assert_same(saved, frozen)


@ROWS
def test_state_of_another_rule_is_refused(name: str) -> None:
    rule = rd.selector(name)
    state = rule.state_dict()
    wrong = [{**state, "nonsense": 1.0}]
    wrong += [{k: v for k, v in state.items() if k != key} for key in state]
    for other in wrong:
        with pytest.raises(rd.ConfigurationError, match="saved by another selector"):
            rd.selector(name).load_state_dict(other)
