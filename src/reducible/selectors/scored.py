"""A pure score joined to a pick: the selector that most rules are."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol, final

import torch
from torch import Tensor

from reducible.picks import importance_sample, top_k
from reducible.selectors.base import Selector
from reducible.types import ConfigurationError, Evidence, Selection


class Pick(Protocol):
    """Turns scores into a selection."""

    def __call__(
        self,
        scores: Tensor,
        k: int,
        /,
        *,
        generator: torch.Generator,
        ids: Tensor | None = None,
    ) -> Selection:
        """Choose k of the candidates by their scores ([B])."""
        ...


Score = Callable[..., Tensor]


def evidence_names(score: Score) -> frozenset[str]:
    """Keywords of ``score`` without a default: the evidence it reads.

    >>> from reducible.scores import rho
    >>> sorted(evidence_names(rho))
    ['irreducible_loss', 'loss']
    """
    parameters = inspect.signature(score).parameters.values()
    return frozenset(p.name for p in parameters if p.default is p.empty)


@final
class Scored(Selector):
    """Score the candidates, then pick: ``pick(score(evidence))``; keeps no state.

    Args:
        score: keyword tensors → [B]; its keywords without default are the evidence needed.
        pick: scores → Selection; the k largest by default.
        hyperparameters: passed on to the score.
        pick_options: passed on to the pick.
        samples: dropout passes to ask for.
        unbiased: whether the pick's weights make Σ w_i·L_i / K an unbiased estimate of the mean
            loss over the candidates.

    >>> from reducible import scores
    >>> sorted(Scored(scores.rho).needs)
    ['irreducible_loss', 'loss']
    """

    def __init__(
        self,
        score: Score,
        *,
        pick: Pick = top_k,
        hyperparameters: Mapping[str, Any] | None = None,
        pick_options: Mapping[str, Any] | None = None,
        samples: int = 0,
        unbiased: bool = False,
    ) -> None:
        self._score = score
        self._pick = partial(pick, **pick_options) if pick_options else pick
        self._hyperparameters = dict(hyperparameters or {})
        self._evidence = tuple(sorted(evidence_names(score)))
        self.needs = frozenset(self._evidence)
        self.samples = samples
        self.unbiased = unbiased
        self.repeats = pick is importance_sample
        unknown = set(self._hyperparameters) - set(inspect.signature(score).parameters)
        if unknown:
            raise ConfigurationError(
                f"the score {getattr(score, '__name__', score)!r} has no {sorted(unknown)}."
            )

    def score(self, evidence: Evidence) -> Tensor:
        """[B]: the score of each candidate."""
        tensors = {name: evidence.require(name) for name in self._evidence}
        return self._score(**tensors, **self._hyperparameters)

    def select(self, evidence: Evidence, k: int, *, generator: torch.Generator) -> Selection:
        """The pick's choice by this score."""
        return self._pick(self.score(evidence), k, generator=generator, ids=evidence.ids)
