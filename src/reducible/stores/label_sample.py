"""Labels of a few rows, kept with a store, by which batches are told from those of other data."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from reducible.stores.fingerprints import digest_of

LABEL_SAMPLE = "label_sample"
"""Key in the header of a store."""

SAMPLED_ROWS = 1024


def label_sample(ids: Tensor, labels: Tensor) -> dict[str, list[Any]]:
    """Returns the labels of at most 1,024 rows: the same rows for the same ids, in any order.

    It goes into the header of a store, which fitting does by itself:
    ``from_tensor(…, header={"label_sample": label_sample(ids, labels)})``.

    Args:
        ids: [N] int64.
        labels: [N], or [N, L] if an example has several.

    Returns:
        ``ids`` and their ``labels`` as in ``label_values``; lists, as JSON takes.

    >>> import torch
    >>> label_sample(torch.tensor([7, 3]), torch.tensor([1, 0]))
    {'ids': [3, 7], 'labels': [0, 1]}
    """
    ids, labels = ids.cpu(), labels.cpu()
    rows = _scattered(ids).argsort()[:SAMPLED_ROWS]
    rows = rows[ids[rows].argsort()]
    return {"ids": ids[rows].tolist(), "labels": label_values(labels[rows])}


def label_values(labels: Tensor) -> list[Any]:
    """Returns each row's label so that equal values are equal, whatever their dtype.

    Args:
        labels: [B], or anything else that leads with B.

    Returns:
        B numbers; digests of the rows, if a row is not one number.
    """
    labels = labels.detach()
    return labels.tolist() if labels.dim() == 1 else [digest_of(row) for row in labels]


def _scattered(ids: Tensor) -> Tensor:
    """[N] int64 in an order that has nothing to do with that of the ids (splitmix64's mixing)."""
    mixed = (ids ^ (ids >> 30)) * -4658895280553007687
    mixed = (mixed ^ (mixed >> 27)) * -7723592293110705685
    return mixed ^ (mixed >> 31)
