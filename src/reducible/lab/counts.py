"""Counts what was chosen: how much of it was corrupted, already correct, seen before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from reducible.types import ReducibleError, require_between

_COUNTS = ("chosen", "corrupted", "corrupted_of", "already_correct", "already_correct_of")


class ChosenCounts:
    """Counts the chosen points: corrupted, already correct, of each class, chosen before.

    Shares are totals over totals, so a step with no corrupted point counts like any other. Adding
    keeps the step's tensors on their device; they are counted at ``take``, ``overall`` and
    ``state_dict``, or once ``count_every`` steps have come together.

    >>> tally = ChosenCounts(num_classes=2)
    >>> no, yes = torch.tensor([False, False]), torch.tensor([True, False])
    >>> tally.add(torch.tensor([3, 5]), torch.tensor([0, 1]), correct=yes, corrupted=no)
    >>> tally.add(torch.tensor([3, 4]), torch.tensor([0, 0]), correct=yes, corrupted=yes)
    >>> tally.take()["corrupted_share"]
    0.25
    """

    def __init__(self, num_classes: int, *, count_every: int = 1024):
        require_between("num_classes", num_classes, 1, whole=True)
        require_between("count_every", count_every, 1, whole=True)
        self._num_classes = num_classes
        self._count_every = count_every
        self._pending: list[tuple[Tensor, Tensor, Tensor | None, Tensor | None]] = []
        self._since = torch.zeros(len(_COUNTS) + num_classes, dtype=torch.int64)  # [5 + C]
        self._overall = torch.zeros_like(self._since)  # [5 + C], without what is in _since
        self._ids = torch.empty(0, dtype=torch.int64)  # [U] every id ever chosen, sorted
        self._repeats = torch.empty(0, dtype=torch.int64)  # [U] how often

    def add(
        self,
        ids: Tensor,
        targets: Tensor,
        correct: Tensor | None = None,
        corrupted: Tensor | None = None,
    ) -> None:
        """One step's choice.

        ``ids`` and ``targets`` are [K] int64, ``correct`` and ``corrupted`` [K] bool. ``correct``
        says whether the model was right before this update, ``corrupted`` whether the label is
        known to be wrong. Where nobody knows, leave it out: its share is then of the points for
        which somebody did, and None if there are none.
        """
        for name, value in (("targets", targets), ("correct", correct), ("corrupted", corrupted)):
            if value is not None and value.shape != ids.shape:
                raise ReducibleError(
                    f"{name} must have one entry per chosen id, {list(ids.shape)}, got "
                    f"{list(value.shape)}: index those of the candidates by selection.index."
                )
            if value is not None and name != "targets" and value.dtype != torch.bool:
                raise ReducibleError(f"{name} must be bool, got {value.dtype}: pass a comparison.")
        step = (ids, targets, correct, corrupted)
        self._pending.append(tuple(None if t is None else t.detach().clone() for t in step))  # pyright: ignore[reportArgumentType]
        if len(self._pending) >= self._count_every:
            self._count()

    def take(self) -> dict[str, Any]:
        """Reports choices since the last ``take``; distinct ids and repeats of the whole run."""
        self._count()
        taken = self._report(self._since)
        self._overall += self._since
        self._since.zero_()
        return taken

    def overall(self) -> dict[str, Any]:
        """Reports the choices of the whole run, in the same words."""
        self._count()
        return self._report(self._overall + self._since)

    def state_dict(self) -> dict[str, Any]:
        """Everything counted so far."""
        self._count()
        names = ("since", "overall", "ids", "repeats")
        return {name: getattr(self, f"_{name}").clone() for name in names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state_dict()``; raises ReducibleError if it counted other classes."""
        classes = len(state["since"]) - len(_COUNTS)
        if classes != self._num_classes:
            raise ReducibleError(
                f"the saved tally counted {classes} classes, this one {self._num_classes}: it is "
                "of another data set. Resume with the run's own configuration."
            )
        self._pending.clear()
        for name, value in state.items():
            setattr(self, f"_{name}", value.clone())

    def _count(self) -> None:
        if not self._pending:
            return
        columns = [
            torch.cat([t for t in column if t is not None] or [torch.empty(0)]).cpu()
            for column in zip(*self._pending, strict=True)
        ]
        ids, targets, correct, corrupted = columns
        if (
            targets.numel()
            and not 0 <= int(targets.min()) <= int(targets.max()) < self._num_classes
        ):
            raise ReducibleError(
                f"targets run from {int(targets.min())} to {int(targets.max())}, the tally has "
                f"{self._num_classes} classes. Give it the number of classes of the data set."
            )
        counts = (len(ids), int(corrupted.sum()), len(corrupted), int(correct.sum()), len(correct))
        self._since[: len(_COUNTS)] += torch.tensor(counts)
        self._since[len(_COUNTS) :] += torch.bincount(targets, minlength=self._num_classes)
        self._ids, where = torch.cat([self._ids, ids]).unique(return_inverse=True)
        seen = torch.cat([self._repeats, torch.ones_like(ids)])
        self._repeats = torch.zeros_like(self._ids).index_add_(0, where, seen)
        self._pending.clear()

    def _report(self, counts: Tensor) -> dict[str, Any]:
        n = dict(zip(_COUNTS, counts.tolist(), strict=False))
        return {
            "chosen": n["chosen"],
            "corrupted": n["corrupted"],
            "corrupted_share": _share(n["corrupted"], n["corrupted_of"]),
            "already_correct": n["already_correct"],
            "already_correct_share": _share(n["already_correct"], n["already_correct_of"]),
            "by_class": counts[len(_COUNTS) :].tolist(),
            "distinct_ids": self._ids.numel(),
            "max_repeats": int(self._repeats.max()) if self._ids.numel() else 0,
        }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
