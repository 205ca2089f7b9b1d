"""Says how many rows of a candidate batch are trained on."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import final

from reducible.types import ConfigurationError, DataError


@final
class Keep:
    """n_b of every candidate batch: a number of rows, or a share of each batch.

    Args:
        keep: rows (int), or a share in (0, 1] (float) of each batch, rounded, and at least a row;
            see ``check_keep``.
        updates: batches of n_b that are handed out from one candidate batch.
        size: of candidate batches, if the loader says it.

    Raises:
        ConfigurationError: it cannot be had from batches of that size.
    """

    def __init__(self, keep: float, updates: int, size: int | None) -> None:
        if size is not None:
            require_rows(rows_to_keep(keep, size), updates, size)
        elif not isinstance(keep, Integral) and keep * updates > 1:
            raise ConfigurationError(
                f"updates_per_scoring={updates} of a share of {keep} each are more than all of the "
                "candidates. Lower one of them."
            )
        self._keep, self._updates = keep, updates

    def rows(self, candidates: int, there: int) -> int | None:
        """n_b for a batch of ``candidates`` rows of which some are there; None: they are too few.

        >>> Keep(4, 2, None).rows(8, 8), Keep(4, 2, None).rows(7, 7), Keep(0.1, 1, None).rows(3, 3)
        (4, None, 1)
        """
        if isinstance(self._keep, Integral):
            k = int(self._keep)
        else:  # rounded up, several updates might ask for more than there are
            k = max(1, min(_share(self._keep, candidates), there // self._updates))
        return k if k * self._updates <= there else None

    def lacks(self, size: int) -> str:
        """Says what a batch of ``size`` rows lacks, and a cure."""
        if not isinstance(self._keep, Integral):
            return (
                f"keep={self._keep} takes at least a row for each update, "
                f"updates_per_scoring={self._updates}, but the candidate batch has {size}. Let "
                "the loader, or its collate function, leave no fewer rows than that."
            )
        if self._updates == 1:
            return (
                f"keep={self._keep} rows, but the candidate batch has {size}. Let the loader, or "
                "its collate function, leave no fewer rows than are trained on."
            )
        return (
            f"updates_per_scoring={self._updates} of {self._keep} rows each from {size} "
            "candidates: give the loader a larger batch size."
        )

    def too_few(self, size: int, drawn: bool = False) -> DataError:
        """Builds the error for a batch of ``size`` rows that is not the last of a pass.

        Args:
            size: rows that there are.
            drawn: whether they are what is left of rows that were chosen before loading.
        """
        if drawn:
            return DataError(
                f"the selector drew its rows before they were loaded, and {size} of them came, "
                f"which are too few for keep={self._keep} and {self._updates} updates per scoring: "
                "the loader's collate function left the others out. Leave unreadable rows out "
                "beforehand, as Subset(dataset, positions), or pass keep as a share (float)."
            )
        share = ""
        if isinstance(self._keep, Integral):
            share = " Or pass keep as a share (float), which is taken of each batch."
        return DataError(f"{self.lacks(size)}{share} Only the last batch of a pass is left out.")


def rows_to_keep(keep: float, candidates: int) -> int:
    """n_b for a candidate batch of ``candidates`` rows.

    >>> rows_to_keep(0.1, 320), rows_to_keep(16, 320)
    (32, 16)
    """
    k = int(keep) if isinstance(keep, Integral) else _share(keep, candidates)
    if k < 1:
        raise ConfigurationError(
            f"keep={keep} of {candidates} candidates rounds to no row at all. Raise keep, or the "
            "loader's batch size."
        )
    if k > candidates:
        raise ConfigurationError(
            f"keep={keep} rows, but the candidate batch has {candidates}. Give the loader the "
            "larger batch size n_B; keep is what is trained on."
        )
    return k


def _share(keep: float, candidates: int) -> int:
    # Half up, since `round` goes to even: 2.5 rows would be 2, and 3.5 rows 4.
    return math.floor(keep * candidates + 0.5)


def require_rows(k: int, updates: int, candidates: int) -> None:
    """Raise ConfigurationError unless ``updates`` batches of k rows are in the candidates."""
    if updates * k > candidates:
        raise ConfigurationError(
            f"updates_per_scoring={updates} of {k} rows each from {candidates} candidates: give "
            "the loader a larger batch size."
        )


def check_keep(keep: float) -> None:
    """Raise ConfigurationError unless ``keep`` is a number of rows or a share in (0, 1]."""
    whole = isinstance(keep, Integral) and not isinstance(keep, bool)
    if not whole and (not isinstance(keep, Real) or isinstance(keep, bool)):
        raise ConfigurationError(f"keep must be a number of rows or a share, got {keep!r}.")
    if (whole and keep < 1) or (not whole and not 0 < keep <= 1):
        raise ConfigurationError(
            f"keep must be at least 1 row (int) or a share in (0, 1] (float), got {keep!r}."
        )
