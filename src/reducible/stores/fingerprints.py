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


def digest_of(values: Tensor) -> str:
    """Returns a digest of the values as int64; as float64 if they are not whole."""
    whole = values.long()
    values = whole if bool((whole == values).all()) else values.double()
    return hashlib.blake2b(values.contiguous().numpy().data, digest_size=8).hexdigest()
