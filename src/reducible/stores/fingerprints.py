"""Fingerprints of ids and labels, by which a store knows its data."""

from __future__ import annotations

import hashlib

from torch import Tensor


def fingerprint(ids: Tensor, labels: Tensor | None = None) -> str:
    """Tells what a store is of: the number of examples, their ids and, if given, their labels.

    The order of the examples does not matter. Without labels the fingerprint says so and covers
    the ids alone.

    Args:
        ids: [N] int64.
        labels: [N] or [N, L], hashed by value, whatever their dtype.

    >>> import torch
    >>> fingerprint(torch.tensor([1, 0])) == fingerprint(torch.tensor([0, 1]))
    True
    """
    order = ids.cpu().argsort()
    parts = [f"n={ids.numel()}", f"ids={digest_of(ids.cpu()[order])}"]
    parts.append("labels=none" if labels is None else f"labels={digest_of(labels.cpu()[order])}")
    return ";".join(parts)


def differ(made: str, here: str) -> str | None:
    """Says what something that was made of other data is of; None if the data are the same.

    An empty fingerprint on either side is unchecked; if one side has no labels, the ids alone are
    compared.

    Args:
        made: fingerprint of the data that it was made of.
        here: fingerprint of the data that it is used with.

    >>> import torch
    >>> differ(fingerprint(torch.arange(3)), fingerprint(torch.arange(4)))
    'other examples (3 in it, 4 here)'
    """
    if not made or not here or made == here:
        return None
    mine, theirs = (
        dict(part.split("=", 1) for part in of.split(";") if "=" in part) for of in (made, here)
    )
    same_ids = bool(mine) and all(mine.get(k) == theirs.get(k) for k in ("n", "ids"))
    if same_ids and "none" in (mine.get("labels"), theirs.get("labels")):
        return None
    if same_ids:
        return "the same ids with other labels: relabelled, other noise, or the rows permuted"
    return f"other examples ({mine.get('n', '?')} in it, {theirs.get('n', '?')} here)"


def digest_of(values: Tensor) -> str:
    """Returns a digest of the values as int64; as float64 if they are not whole."""
    whole = values.long()
    values = whole if bool((whole == values).all()) else values.double()
    return hashlib.blake2b(values.contiguous().numpy().data, digest_size=8).hexdigest()
