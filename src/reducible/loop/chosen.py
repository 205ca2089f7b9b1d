"""Defines what is handed out: chosen rows, the parts they come in, and their log."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, final, runtime_checkable

import torch
from torch import Tensor

from reducible.types import Candidates


class Chosen(NamedTuple):
    """The rows to train on; a tuple, so that whatever moves nested batches moves these too.

    >>> import torch
    >>> ids, weights = torch.arange(2), torch.ones(2)
    >>> chosen = Chosen(batch=torch.zeros(2, 4), ids=ids, weights=weights, info={})
    >>> chosen.ids.tolist()
    [0, 1]
    """

    batch: Any
    """The loader's own structure, K rows, on the model's device."""
    ids: Tensor
    """[K] int64."""
    weights: Tensor
    """[K] for ``weighted_mean``."""
    info: Mapping[str, Tensor]
    """What the rule says of its choice, for the log."""
    shadows: Mapping[str, Tensor] = {}
    """Ids that each shadow selector would have chosen, [K'] int64."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Rows chosen from a candidate batch, before they are gathered."""

    positions: Tensor  # [K] int64
    ids: Tensor  # [K] int64
    weights: Tensor  # [K]
    info: Mapping[str, Tensor]
    shadows: Mapping[str, Tensor]
    drawn_at: int | None = None
    """The step at which the rows were drawn blindly, if the rule learns of them in hindsight."""

    @classmethod
    def plain(
        cls, candidates: Candidates, positions: Tensor, device: torch.device, drawn_at: int | None
    ) -> Part:
        """Rows at random, at ``positions`` ([K] int64), with weights of 1 on ``device``."""
        ids = candidates.ids[positions.to(candidates.ids.device)]
        return cls(positions, ids, torch.ones(len(positions), device=device), {}, {}, drawn_at)

    def split(self, k: int) -> list[Part]:
        """Parts of k rows, in order; what the rule says beside the scores goes with every part."""
        size = self.ids.numel()
        return self._cut([*range(0, size, k), size])

    def split_into(self, parts: int) -> list[Part]:
        """Cuts into as many parts, in order, whose sizes differ by a row at most."""
        return self._cut([self.ids.numel() * i // parts for i in range(parts + 1)])

    def _cut(self, bounds: list[int]) -> list[Part]:
        parts: list[Part] = []
        for first, last in pairwise(bounds):
            rows = slice(first, last)
            # Scores go by row; whatever else a rule says is of the whole choice.
            info = {n: v[rows] if n == "score" else v for n, v in self.info.items()}
            parts.append(
                Part(
                    self.positions[rows],
                    self.ids[rows],
                    self.weights[rows],
                    info,
                    {n: ids[rows] for n, ids in self.shadows.items()},
                    self.drawn_at,
                )
            )
        return parts

    @property
    def says_more(self) -> bool:
        """Whether there is something to log beside ids, scores and weights."""
        return bool(self.shadows) or len(self.info) > ("score" in self.info)

    def state_dict(self) -> dict[str, Any]:
        """All fields."""
        return {
            "positions": self.positions,
            "ids": self.ids,
            "weights": self.weights,
            "info": dict(self.info),
            "shadows": dict(self.shadows),
            "drawn_at": self.drawn_at,
        }


@final
class Parts:
    """The choice from one candidate batch, handed out part by part.

    Args:
        left: what is not yet handed out.
        handed_out: how many parts were, before.
    """

    def __init__(self, left: Iterable[Part] = (), *, handed_out: int = 0) -> None:
        self._left = deque(left)
        self.handed_out = handed_out

    def __bool__(self) -> bool:
        return bool(self._left)

    def take(self) -> Part:
        """The next part."""
        self.handed_out += 1
        return self._left.popleft()

    def state_dict(self) -> list[dict[str, Any]]:
        """The parts that are left."""
        return [part.state_dict() for part in self._left]

    @classmethod
    def from_state(cls, state: list[dict[str, Any]], parts: int) -> Parts:
        """Parts as they were saved, of a choice that is handed out in so many ``parts``."""
        left = [Part(**part) for part in state]
        return cls(left, handed_out=parts - len(left) if left else 0)


class PickLog(Protocol):
    """Takes chosen ids; ``reducible.lab.records.PickWriter`` is one.

    A log that has ``write_info`` too, as ``InfoLog``, gets what the rule says of its choice beside
    the scores, and the choices of shadows.
    """

    def write(self, step: int, ids: Tensor, scores: Tensor | None, weights: Tensor | None) -> None:
        """One step's choice: [K] each."""
        ...


@runtime_checkable
class InfoLog(PickLog, Protocol):
    """Takes more than picks; ``reducible.lab.info_records.StepWriter`` is one."""

    def write_info(
        self, step: int, info: Mapping[str, Tensor], shadows: Mapping[str, Tensor]
    ) -> None:
        """Takes what a rule says of a choice, and the ids ([K'] each) that shadows would take.

        Called for steps only at which there is something beside ``info["score"]``.
        """
        ...
