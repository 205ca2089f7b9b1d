"""Stores: irreducible losses by id, remembered losses, and which example is which."""

from reducible.stores.identity import (
    WithIds,
    fingerprint,
    ids_of,
    labels_of,
    origin_of,
    require_disjoint,
    require_ids,
)
from reducible.stores.irreducible import IrreducibleLossStore

__all__ = [
    "IrreducibleLossStore",
    "WithIds",
    "fingerprint",
    "ids_of",
    "labels_of",
    "origin_of",
    "require_disjoint",
    "require_ids",
]
