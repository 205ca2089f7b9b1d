"""Losses remembered from training: by id, with the step at which they were seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from reducible.stores.ids import require_ids
from reducible.types import DataError, name_ids, require_finite


@final
class LossMemory:
    """The last loss seen of each id of a data set, and when.

    Args:
        ids: [N] int64, all ids of the data set.
    """

    def __init__(self, ids: Tensor) -> None:
        require_ids(ids)
        self._ids, self._order = ids.cpu().sort()  # ascending, and where each stands in the data
        self._loss = torch.full((ids.numel(),), float("nan"))  # [N] in ascending order of ids
        self._step = torch.full((ids.numel(),), -1, dtype=torch.int64)

    def _rows(self, ids: Tensor) -> Tensor:
        where = torch.searchsorted(self._ids, ids).clamp_(max=self._ids.numel() - 1)
        unknown = self._ids[where] != ids
        if bool(unknown.any()):
            raise DataError(f"ids {name_ids(ids[unknown])} are not of this data set.")
        return where

    def remember(self, ids: Tensor, loss: Tensor, step: int) -> None:
        """Keep ``loss`` ([B]) as the last one of ``ids`` ([B] int64), seen at ``step``.

        Raises:
            DataError: an id of another data set, or losses of another shape.
            SelectionError: a loss is not finite.
        """
        if loss.shape != ids.shape:
            raise DataError(
                f"losses of shape {tuple(loss.shape)} for {ids.numel()} ids: compute them with "
                "reduction='none'."
            )
        ids, loss = ids.cpu(), loss.detach().to("cpu", torch.float32)
        rows = self._rows(ids)
        require_finite(loss, ids, "the loss to remember", "The model has diverged.")
        self._loss[rows] = loss
        self._step[rows] = step

    def lookup(self, ids: Tensor) -> Tensor:
        """Last losses of ``ids`` ([B]): [B] float32, NaN for an id never seen."""
        return self._loss[self._rows(ids.cpu())]

    def age(self, ids: Tensor, step: int) -> Tensor:
        """Steps since each of ``ids`` ([B]) was seen: [B] int64; 2**62 if never."""
        seen_at = self._step[self._rows(ids.cpu())]
        return torch.where(seen_at < 0, 2**62, step - seen_at)

    @property
    def in_data_order(self) -> Tensor:
        """[N] float32: the last losses in the order of the ids given; NaN if never seen."""
        out = torch.empty_like(self._loss)
        out[self._order] = self._loss
        return out

    @property
    def empty(self) -> bool:
        """True before the first loss."""
        return bool((self._step < 0).all())

    def state_dict(self) -> dict[str, Any]:
        """Losses and steps."""
        return {"loss": self._loss.clone(), "step": self._step.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over losses and steps of the same data set."""
        if state["loss"].shape != self._loss.shape:
            raise DataError(
                f"remembered losses of {state['loss'].numel()} examples for a data set of "
                f"{self._loss.numel()}: the state is of another data set."
            )
        self._loss, self._step = state["loss"].clone(), state["step"].clone()
