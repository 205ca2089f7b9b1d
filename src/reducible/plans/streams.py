"""A filter of a stream: a threshold that follows the losses, where nothing can be ranked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from reducible.types import ConfigurationError, DataError, require_between


@final
class StreamFilter:
    """Keeps the share of a stream with the lowest losses; in constant memory.

    What ``Plan.toward`` does by rank is done by a threshold here: the ``keep`` quantile of the last
    ``window`` losses, those asked about among them. Losses come from a store, or are computed as
    the stream passes (``LossColumn``), by a model of a trusted set:
    ``stream.map(LossColumn(…), batched=True).filter(StreamFilter(0.2), batched=True,
    input_columns="irreducible_loss")``.

    Args:
        keep: share of the stream, in (0, 1].
        window: how many losses are remembered.
        threshold: to begin with, such as a plan's of a sample (``plan.report["threshold"]``); until
            a window has been seen, losses are compared with it. If None, with those seen so far.

    >>> keeps = StreamFilter(0.5)
    >>> keeps([3.0, 1.0, 4.0, 2.0])
    [False, True, False, True]
    >>> keeps(torch.tensor([2.5, 9.0]))
    [True, False]
    """

    def __init__(
        self, keep: float = 0.2, *, window: int = 10_000, threshold: float | None = None
    ) -> None:
        require_between("keep", keep, 0.0, 1.0, open_low=True)
        require_between("window", window, 1, whole=True)
        if window * keep < 1:
            raise ConfigurationError(
                f"a share of {keep} of {window} losses is not one of them. Raise window."
            )
        if threshold is not None and not math.isfinite(threshold):
            raise ConfigurationError(f"threshold is {threshold}; pass a finite loss, or None.")
        self._keep, self._first = keep, threshold
        self._last = torch.empty(window)  # the last losses, as a ring
        self._seen = 0

    def __call__(self, losses: Sequence[float] | Tensor) -> list[bool]:
        """Which of these, the next of the stream, are kept.

        Args:
            losses: [B], finite.

        Raises:
            DataError: a loss that is not finite.
        """
        asked = torch.as_tensor(losses, dtype=torch.float32).flatten().cpu()
        if not bool(asked.isfinite().all()):
            raise DataError(
                "losses that are not finite: a stream cannot be filtered by them. Is the model "
                "that gives them broken, or were some examples never scored?"
            )
        if asked.numel():
            self._remember(asked)
        return (asked <= self.threshold).tolist()

    @property
    def threshold(self) -> float:
        """The highest loss that is kept now; +∞ if nothing was seen."""
        there = min(self._seen, self._last.numel())
        if self._first is not None and there < self._last.numel():
            return self._first
        if not there:
            return math.inf
        rank = max(1, round(self._keep * there))
        return float(self._last[:there].kthvalue(rank).values)

    def state_dict(self) -> dict[str, Any]:
        """What was seen; to be gone on with by ``load_state_dict``."""
        return {
            "last": self._last[: min(self._seen, self._last.numel())].clone(),
            "seen": self._seen,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state of a filter with the same window."""
        last, seen = state["last"], int(state["seen"])
        if last.numel() != min(seen, self._last.numel()):
            raise ConfigurationError(
                f"a state of {last.numel()} losses, and a window of {self._last.numel()}: it was "
                "saved by a filter with another window."
            )
        self._last[: last.numel()] = last
        self._seen = seen

    def _remember(self, losses: Tensor) -> None:
        window = self._last.numel()
        latest = losses[-window:]
        where = self._seen + losses.numel() - latest.numel()
        self._last[(where + torch.arange(latest.numel())) % window] = latest
        self._seen += losses.numel()
