"""Measures scoring a candidate over training on an example, way by way."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from reducible.costs import times_in_turn
from reducible.lab.bench.rows import row
from reducible.lab.bench.training import N_B, N_CANDIDATES, adamw, new_model, update
from reducible.lab.data import fashion_mnist
from reducible.scoring import CoTrained, Scoring, early_exit, measure
from reducible.tasks import Classification
from reducible.types import Candidates

SCORED = ("lenet", "resnet-18-16", "mlp-512")
_EXITS = {"lenet": "2", "lenet-8": "2", "resnet-18-16": "4", "mlp-512": "2"}


def scoring_costs(name: str, *, repeats: int, compiled: bool = False) -> list[dict[str, Any]]:
    """Scoring a candidate over training on an example, for each way of scoring a network.

    Scorers that learn along are charged for their step on the 32 chosen of the 320 as well.
    ``compiled``: torch.compile too, which takes half a minute to begin with.
    """
    model, optimizer = new_model(name)
    scorer, _ = new_model("mlp-64")
    ids, (x, y) = fashion_mnist("train")[list(range(N_CANDIDATES))]
    candidates = Candidates(ids, (x, y))
    ways: dict[str, tuple[nn.Module, Scoring]] = {
        "exact": (model, Scoring()),
        "bfloat16": (model, Scoring(precision="bfloat16")),
        "bfloat16, channels last": (model, Scoring(precision="bfloat16", channels_last=True)),
        "by an mlp-64": (scorer, Scoring()),
    }
    if name.startswith("resnet"):
        half = Scoring(precision="bfloat16", channels_last=True, resolution=14)
        ways["bfloat16, channels last, 14 × 14"] = (model, half)
    left_out = _cannot_compile(model, candidates) if compiled else ""
    if compiled and not left_out:
        ways["compiled"] = (model, Scoring(compile=True))
    work: dict[str, Callable[[], Any]] = {
        "train": lambda: update(model, optimizer, x[:N_B], y[:N_B], torch.ones(N_B))
    }
    for way, (runs, scoring) in ways.items():
        work[way] = partial(measure, runs, candidates, frozenset({"loss"}), scoring)
    learners = {
        "by an mlp-64 that learns along": CoTrained(scorer, adamw(scorer)),
        "by an mlp-64 that learns its predictions": CoTrained(scorer, adamw(scorer), distil=True),
        f"by its first blocks, up to {_EXITS[name]}, and a head": early_exit(
            model, _EXITS[name], num_classes=10
        ),
    }
    chosen, ones = (x[:N_B], y[:N_B]), torch.ones(N_B)
    captured = torch.full((N_B, 10), 0.1)  # in training, which costs nothing

    def learn_along(learner: CoTrained) -> None:
        measure(learner.model, candidates, frozenset({"loss"}))
        learner.step(Classification(), chosen, ones, predictions=captured)

    for way, learner in learners.items():
        work[way] = partial(learn_along, learner)
    taken = times_in_turn(work, repeats=repeats, device=x.device)
    trained = statistics.median(taken["train"]) / N_B
    what = f"scoring a candidate over training on one, {name}"
    rows = [
        row(f"{what}: {way}", [t / N_CANDIDATES / trained for t in taken[way]], "ratio")
        for way in (*ways, *learners)
    ]
    return [*rows, row(f"{what}: compiled, left out: {left_out}", [0.0], "–")] if left_out else rows


def _cannot_compile(model: nn.Module, candidates: Candidates) -> str:
    """Says why the model cannot be scored compiled on this machine; empty if it can."""
    try:
        measure(model, candidates, frozenset({"loss"}), Scoring(compile=True))
    except RuntimeError as error:
        return str(error).strip().split("\n")[0]
    return ""
