"""Every composition of rules is refused, biased because a part is, or unbiased."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch

import reducible as rd
from reducible.picks import importance_sample
from reducible.selectors import Chain, Scheduled, Selector

N, K, PREFILTER, C = 8, 6, 7, 3
DRAWS, ERRORS = 500, 4.0  # draws of each composition; standard errors that chance may make

Make = Callable[[], Selector]


def _evidence(size: int = N, step: int = 1, seed: int = 0) -> rd.Evidence:
    """All that rules by candidate batch read; losses and gradients differ widely."""
    g = torch.Generator().manual_seed(seed)
    logits = 1.5 * torch.randn(size, C, generator=g, dtype=torch.float64)
    targets = torch.arange(size).remainder(C)
    return rd.Evidence(
        ids=torch.arange(100, 100 + size),
        targets=targets,
        loss=torch.nn.functional.cross_entropy(logits, targets, reduction="none"),
        logits=logits,
        features=torch.randn(size, 5, generator=g, dtype=torch.float64),
        mc_logits=torch.randn(2, size, C, generator=g, dtype=torch.float64),
        irreducible_loss=torch.rand(size, generator=g, dtype=torch.float64),
        group_irreducible_loss=torch.rand(size, C, generator=g, dtype=torch.float64),
        groups=targets,
        context={
            "step": torch.tensor(step),
            "epoch": torch.tensor(0),
            "total_steps": torch.tensor(10),
            "group_holdout_loss": torch.rand(C, generator=g, dtype=torch.float64),
        },
    )


def _given(evidence: rd.Evidence) -> Any:
    """A look at all of it, whatever is asked for."""

    def look(needs: frozenset[str], rows: Any = None, *, samples: int = 0) -> rd.Evidence:
        return evidence if rows is None else evidence.rows(rows)

    return look


def _rule(name: str, **hyperparameters: Any) -> Make:
    return lambda: rd.selector(name, **hyperparameters)


def _open_gate() -> Selector:
    rule = rd.selector("grad_norm_is", tau_gate=True)
    rule.load_state_dict({"tau": 1e6})
    return rule


RULES: dict[str, Make] = {
    name: _rule(name, **({"prefilter": PREFILTER} if "prefilter" in row.hyperparameters else {}))
    for name, row in rd.SELECTORS.items()
    if rd.selector(name).horizon == "batch"
} | {
    "rho_ema, fewer rows": _rule("rho_ema", k_min=1, alpha=0.2),
    "rho_class_balanced, fewer rows": _rule("rho_class_balanced", adaptive=False),
    "rho_soft, corrected": _rule("rho_soft", temperature=2.0, correct=True),
    "grad_norm_is, last layer": _rule("grad_norm_is", bound="last_layer"),
    "grad_norm_is, shut": _rule("grad_norm_is", tau_gate=True),
    "grad_norm_is, open": _open_gate,
}
UNBIASED = {
    "uniform",
    "grad_norm_is",
    "rho_soft, corrected",
    "grad_norm_is, last layer",
    "grad_norm_is, shut",
    "grad_norm_is, open",
}
SCHEDULES: dict[str, dict[str, Any]] = {  # at step 1
    "mix": {"mix": 0.5},
    "warmup": {"warmup": 7},  # a quarter, of six rows two
    "anneal": {"end": 5, "anneal": 5, "warmup": 1},  # 0.8, of six rows five
    "asked": {"start": 1, "every": 2},
    "resting": {"every": 2},
}
FEW = ("uniform", "rho", "rho_soft, corrected", "grad_norm_is", "grad_norm_is, shut")


def _chained(first: Make, then: Make) -> Make:
    return lambda: Chain(first(), prefilter=PREFILTER, then=then())


def _scheduled(inner: Make, name: str) -> Make:
    return lambda: Scheduled(inner(), **SCHEDULES[name])


class Composition(NamedTuple):
    make: Make
    parts: tuple[str, ...]
    refused: bool


def _cannot_be_first(name: str) -> bool:
    return name.startswith("grad_norm_is") or bool(RULES[name]().state_dict())


def _compositions() -> Iterator[tuple[str, Composition]]:
    bad_first = {name: _cannot_be_first(name) for name in RULES}
    for a, rule in RULES.items():
        yield f"{a}", Composition(rule, (a,), refused=False)
        for when in SCHEDULES:
            yield f"{when}({a})", Composition(_scheduled(rule, when), (a,), refused=False)
        for b, then in RULES.items():
            chain = Composition(_chained(rule, then), (a, b), bad_first[a])
            yield f"{a} → {b}", chain
            if a in FEW and b in FEW:
                around = _scheduled(chain.make, "mix")
                yield f"mix({a} → {b})", chain._replace(make=around)
                left = _chained(_scheduled(rule, "mix"), then)
                yield f"mix({a}) → {b}", chain._replace(make=left)
                right = _chained(rule, _scheduled(then, "mix"))
                yield f"{a} → mix({b})", chain._replace(make=right)
        if a in FEW:
            twice = _scheduled(_scheduled(rule, "mix"), "anneal")
            yield f"anneal(mix({a}))", Composition(twice, (a,), refused=False)


COMPOSITIONS = dict(_compositions())
ALLOWED = {name: made for name, made in COMPOSITIONS.items() if not made.refused}
CLAIMS = [name for name, made in ALLOWED.items() if UNBIASED.issuperset(made.parts)]


def _off_by(rule: Selector, evidence: rd.Evidence, k: int, draws: int = DRAWS) -> float:
    """How far Σ w_i·X_i / K is off the mean of X on average, in standard errors; the worst of X.

    X are each candidate by itself, and what rules go by: the gradient's norm and ρ.
    """
    loss, size = evidence.require("loss"), evidence.ids.numel()
    norm = rd.scores.grad_norm(
        logits=evidence.require("logits"), targets=evidence.require("targets")
    )
    rho = loss - evidence.require("irreducible_loss")
    values = torch.cat([torch.eye(size, dtype=loss.dtype), torch.stack([norm, rho], 1)], 1)
    values = values - values.mean(0)  # [B, X]
    generator = torch.Generator().manual_seed(0)
    found = torch.zeros(draws, values.shape[1], dtype=values.dtype)
    for row in found:
        chosen = rule.select(evidence, k, generator=generator)
        row += (chosen.weight.unsqueeze(1) * values[chosen.index]).sum(0) / len(chosen.index)
    error = found.std(0).clamp(min=1e-12) / math.sqrt(draws)
    return float((found.mean(0) / error).abs().max())


# -- what is declared -----------------------------------------------------------------------------


def test_what_each_rule_declares() -> None:
    declared = {name for name, make in RULES.items() if make().unbiased}
    assert declared == UNBIASED
    repeats = {name for name, make in RULES.items() if make().repeats}
    assert repeats == {name for name in RULES if name.startswith("grad_norm_is")}
    scored = rd.Scored(rd.scores.train_loss)
    assert (scored.unbiased, scored.repeats) == (False, False)
    drawn = rd.Scored(rd.scores.train_loss, pick=importance_sample, unbiased=True)
    assert (drawn.unbiased, drawn.repeats) == (True, True)


@pytest.mark.parametrize("name", ["rho", "train_loss_rank", "rho_soft", "selective_backprop"])
def test_the_check_sees_a_bias(name: str) -> None:
    assert _off_by(RULES[name](), _evidence(), K) > 3 * ERRORS


def test_compositions_are_refused_or_say_what_their_parts_do() -> None:
    evidence = _evidence()
    for name, made in COMPOSITIONS.items():
        if made.refused:
            with pytest.raises(rd.ConfigurationError, match="the first rule of a chain"):
                made.make()
            continue
        rule, parts = made.make(), [RULES[part]() for part in made.parts]
        assert rule.unbiased is all(part.unbiased for part in parts), name
        assert rule.repeats is parts[-1].repeats, name
        chosen = rule.select(evidence, K, generator=torch.Generator().manual_seed(0))
        assert 1 <= chosen.index.numel() <= K, name
        assert chosen.weight.shape == chosen.index.shape, name
        if not rule.repeats:
            assert chosen.index.unique().numel() == chosen.index.numel(), name
        if "score" in chosen.info:
            assert chosen.info["score"].shape == chosen.index.shape, name
        looked = rule.choose(_given(evidence), K, generator=torch.Generator().manual_seed(0))
        assert looked.positions.tolist() == chosen.index.tolist(), name
        assert looked.selection.weight.tolist() == chosen.weight.tolist(), name


@pytest.mark.parametrize("name", CLAIMS)
def test_a_composition_of_unbiased_rules_is_unbiased(name: str) -> None:
    assert _off_by(ALLOWED[name].make(), _evidence(), K) <= ERRORS


def test_what_is_observed_does_not_depend_on_how_it_was_looked_at() -> None:
    for name, made in ALLOWED.items():
        if not made.make().state_dict() or ("→" in name and made.parts[0] != "rho"):
            continue  # remembers nothing, or hands on what any other first rule leaves
        states = []
        for looks in (False, True):
            rule, evidence = made.make(), _evidence()
            generator = torch.Generator().manual_seed(0)
            if looks:
                choice = rule.choose(_given(evidence), K, generator=generator)
                evidence, chosen = choice.evidence, choice.selection
            else:
                chosen = rule.select(evidence, K, generator=generator)
            if not rule.is_blind(1, K, N):  # such a choice is not observed
                rule.observe(evidence, chosen)
            states.append(rule.state_dict())
        torch.testing.assert_close(*states, rtol=0, atol=0, msg=name)


# -- the mean loss, by hand -----------------------------------------------------------------------


def _mean_loss(rule: Selector, evidence: rd.Evidence, k: int, draws: int) -> tuple[float, float]:
    """Mean and standard error of Σ w_i·L_i / K."""
    generator = torch.Generator().manual_seed(0)
    loss = evidence.require("loss")
    means = torch.empty(draws, dtype=torch.float64)
    for i in range(draws):
        chosen = rule.select(evidence, k, generator=generator)
        means[i] = rd.weighted_mean(loss[chosen.index], chosen.weight)
    return float(means.mean()), float(means.std()) / math.sqrt(draws)


def test_a_chain_keeps_the_first_rules_weights() -> None:
    evidence = _evidence(20, seed=3)
    soft = rd.selector("rho_soft", temperature=0.7, correct=True)
    chain = Chain(soft, prefilter=10, then=rd.selector("uniform"))
    mean, error = _mean_loss(chain, evidence, 4, 2000)
    assert abs(mean - float(evidence.require("loss").mean())) <= 4 * error
    survivors = soft.select(evidence, 10, generator=torch.Generator().manual_seed(1))
    weight_of = dict(zip(survivors.index.tolist(), survivors.weight.tolist(), strict=True))
    chosen = chain.select(evidence, 4, generator=torch.Generator().manual_seed(1))
    assert chosen.weight.tolist() == [weight_of[i] for i in chosen.index.tolist()]
    assert len(set(weight_of.values())) > 1
    twice = Chain(soft, prefilter=10, then=soft)
    chosen = twice.select(evidence, 4, generator=torch.Generator().manual_seed(1))
    among = evidence.rows(survivors.index)
    g = torch.Generator().manual_seed(1)
    soft.select(evidence, 10, generator=g)
    own = soft.select(among, 4, generator=g)
    by_hand = [survivors.weight[j] * w for j, w in zip(own.index, own.weight, strict=True)]
    assert chosen.weight.tolist() == pytest.approx([float(w) for w in by_hand])


def test_a_random_share_leaves_an_unbiased_rule_unbiased() -> None:
    evidence = _evidence(40, seed=5)
    rule = Scheduled(rd.selector("grad_norm_is"), mix=0.5)
    mean, error = _mean_loss(rule, evidence, 20, 2000)
    assert abs(mean - float(evidence.require("loss").mean())) <= 4 * error


def test_a_first_rule_that_draws_with_replacement_is_refused_with_the_cure() -> None:
    drawn = rd.Scored(rd.scores.train_loss, pick=importance_sample)
    for first in (drawn, rd.selector("grad_norm_is"), Scheduled(drawn, mix=0.5)):
        with pytest.raises(rd.ConfigurationError, match=r"with replacement.*Let it choose second"):
            Chain(first, prefilter=5, then=rd.selector("uniform"))
