"""Every hyperparameter refuses what cannot work, when the rule is built."""

from __future__ import annotations

import math
from typing import Any

import pytest

import reducible as rd

_NOT_NUMBERS: tuple[Any, ...] = (math.nan, "1", None, True)
_NOT_WHOLE: tuple[Any, ...] = (1.5, 2.0, math.inf, math.nan, "1", True)
_NOT_A_SWITCH: tuple[Any, ...] = (None, "yes", 2)

IMPOSSIBLE: dict[str, dict[str, tuple[Any, ...]]] = {
    "rho_entropy": {"beta": (math.inf, -math.inf, *_NOT_NUMBERS)},
    "rho_calibrated": {
        "temperature": (0.0, -1.0, math.inf, *_NOT_NUMBERS),
        "floor": (-0.1, 1.0, math.inf, *_NOT_NUMBERS),
    },
    "grad_norm": {"bound": ("exact", None)},
    "grad_norm_is": {"bound": ("exact", None), "tau_gate": _NOT_A_SWITCH},
    "train_loss_rank": {"pressure": (1.0, 0.5, -3, math.inf, *_NOT_NUMBERS)},
    "rho_updating": {"lr_ratio": (-0.1, math.inf, *_NOT_NUMBERS)},
    "svp": {"uncertainty": ("bald", None)},
    "bald": {"samples": (0, -1, None, *_NOT_WHOLE)},
    "entropy": {"samples": (-1, 0.0, None, *_NOT_WHOLE)},
    "conditional_entropy": {"samples": (0, -1, None, *_NOT_WHOLE)},
    "loss_minus_conditional_entropy": {"samples": (0, -1, None, *_NOT_WHOLE)},
    "reducr": {
        "eta": (-1e-9, math.inf, *_NOT_NUMBERS),
        "gamma": (-1e-9, math.inf, *_NOT_NUMBERS),
        "clip": _NOT_A_SWITCH,
        "class_holdout": _NOT_A_SWITCH,
        "class_irreducible": _NOT_A_SWITCH,
        "model_loss": _NOT_A_SWITCH,
        "reduce": ("max", None),
    },
    "divbs": {"rule": ("random", None), "project": (0, -1, *_NOT_WHOLE)},
    "rho_divbs": {"prefilter": (0, -1, None, *_NOT_WHOLE)},
    "rho_ema": {
        "beta": (-0.1, 1.0, *_NOT_NUMBERS),
        "alpha": (0.0, -1.0, math.inf, *_NOT_NUMBERS),
        "k_base": (0, -1, *_NOT_WHOLE),
        "k_min": (0, -1, None, *_NOT_WHOLE),
        "k_max": (0, -1, 15, *_NOT_WHOLE),  # below k_min = 16
    },
    "rho_bald": {
        "prefilter": (0, -1, None, *_NOT_WHOLE),
        "samples": (0, -1, None, *_NOT_WHOLE),
    },
    "rho_margin": {"prefilter": (0, -1, None, *_NOT_WHOLE)},
    "rho_greedy_diversity": {"lam": (-0.1, math.inf, *_NOT_NUMBERS)},
    "rho_hybrid_diversity": {"lam": (-0.1, math.inf, *_NOT_NUMBERS)},
    "rho_class_balanced": {
        "lam": (-0.1, math.inf, *_NOT_NUMBERS),
        "beta": (-0.1, 1.0, *_NOT_NUMBERS),
        "k_min": (-1, None, *_NOT_WHOLE),
        "adaptive": _NOT_A_SWITCH,
    },
    "curriculum_rho": {"warmup_epochs": (-1, None, *_NOT_WHOLE)},
    "rho_soft": {
        "temperature": (0.0, -1.0, math.inf, *_NOT_NUMBERS),
        "correct": _NOT_A_SWITCH,
    },
    "selective_backprop": {
        "beta": (-0.1, math.inf, *_NOT_NUMBERS),
        "history": (0, -1, None, *_NOT_WHOLE),
    },
    "infobatch": {
        "prune_below_mean": (-0.1, 1.0, *_NOT_NUMBERS),
        "anneal": (-0.1, 1.1, *_NOT_NUMBERS),
    },
}

POSSIBLE: list[tuple[str, dict[str, Any]]] = [
    ("rho_entropy", {"beta": -2}),
    ("rho_calibrated", {"temperature": 1e-9, "floor": 0}),
    ("rho_calibrated", {"temperature": 1e9, "floor": 0.999}),
    ("train_loss_rank", {"pressure": 1.01}),
    ("rho_updating", {"lr_ratio": 0.0}),
    ("bald", {"samples": 1}),
    ("entropy", {"samples": 0}),
    ("entropy", {"samples": 1}),
    ("reducr", {"eta": 0, "gamma": 0}),
    ("divbs", {"project": 1}),
    ("rho_margin", {"prefilter": 1}),
    ("rho_ema", {"beta": 0, "alpha": 1e-9, "k_min": 1, "k_max": 1, "k_base": 1}),
    ("rho_hybrid_diversity", {"lam": 0}),
    ("rho_class_balanced", {"lam": 0, "beta": 0, "k_min": 0, "adaptive": False}),
    ("curriculum_rho", {"warmup_epochs": 0}),
    ("rho_soft", {"temperature": 1e-9}),
    ("selective_backprop", {"beta": 0, "history": 1}),
    ("infobatch", {"prune_below_mean": 0, "anneal": 0}),
    ("infobatch", {"prune_below_mean": 0.99, "anneal": 1}),
]


def test_every_hyperparameter_of_the_table_is_here() -> None:
    expected = {n: set(row.hyperparameters) for n, row in rd.SELECTORS.items()}
    assert {n: set(p) for n, p in IMPOSSIBLE.items()} == {n: p for n, p in expected.items() if p}


@pytest.mark.parametrize(
    ("name", "hyperparameter", "value"),
    [(n, p, v) for n, some in IMPOSSIBLE.items() for p, values in some.items() for v in values],
)
def test_impossible_values(name: str, hyperparameter: str, value: Any) -> None:
    named = "k_min" if (hyperparameter, value) == ("k_max", 15) else hyperparameter
    with pytest.raises(rd.ConfigurationError, match=rf"^{named} must be"):
        rd.selector(name, **{hyperparameter: value})


@pytest.mark.parametrize(("name", "hyperparameters"), POSSIBLE, ids=str)
def test_values_at_the_edge(name: str, hyperparameters: dict[str, Any]) -> None:
    rd.selector(name, **hyperparameters)


@pytest.mark.parametrize("name", rd.SELECTORS)
def test_the_table_gives_a_range_for_each(name: str) -> None:
    row = rd.SELECTORS[name]
    assert set(row.ranges) == set(row.hyperparameters)


def test_nothing_is_left_to_score_by() -> None:
    with pytest.raises(rd.ConfigurationError, match="model_loss or class_irreducible must be"):
        rd.selector("reducr", model_loss=False, class_irreducible=False)


DEFAULTS: dict[str, dict[str, Any]] = {
    "grad_norm": {"bound": "logits"},
    "grad_norm_is": {"bound": "logits", "tau_gate": False},
    "train_loss_rank": {"pressure": 100},
    "rho_updating": {"lr_ratio": 0.01},
    "svp": {"uncertainty": "entropy"},
    "bald": {"samples": 10},
    "entropy": {"samples": 10},
    "conditional_entropy": {"samples": 10},
    "loss_minus_conditional_entropy": {"samples": 10},
    "reducr": {
        "eta": 1e-4,
        "gamma": 9.0,
        "clip": True,
        "class_holdout": True,
        "class_irreducible": True,
        "model_loss": True,
        "reduce": "sum",
    },
    "divbs": {"rule": "greedy", "project": None},
    "rho_divbs": {"prefilter": 50},
    "rho_ema": {"beta": 0.9, "alpha": 0.1, "k_base": None, "k_min": 16, "k_max": None},
    "rho_entropy": {"beta": 0.7},
    "rho_bald": {"prefilter": 100, "samples": 10},
    "rho_margin": {"prefilter": 100},
    "rho_greedy_diversity": {"lam": 0.1},
    "rho_hybrid_diversity": {"lam": 0.3},
    "rho_class_balanced": {"lam": 0.2, "beta": 0.9, "k_min": 1, "adaptive": True},
    "curriculum_rho": {"warmup_epochs": 4},
    "rho_calibrated": {"temperature": 1.0, "floor": 0.1},
    "rho_soft": {"temperature": 1.0, "correct": False},
    "selective_backprop": {"beta": 1.0, "history": 1024},
    "infobatch": {"prune_below_mean": 0.5, "anneal": 0.125},
}


def test_defaults_are_the_papers() -> None:
    given = {n: dict(row.hyperparameters) for n, row in rd.SELECTORS.items()}
    assert {n: d for n, d in given.items() if d} == DEFAULTS
