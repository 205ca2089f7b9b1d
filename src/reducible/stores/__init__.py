"""Stores: irreducible losses by id, remembered losses, and which example is which."""

from reducible.loading.labels import key_ids
from reducible.stores.collating import collate_with_ids, noting_ids
from reducible.stores.fingerprints import differ, fingerprint
from reducible.stores.ids import (
    WithIds,
    has_distinct_ids,
    ids_of,
    known_ids,
    known_length,
    labels_of,
    origin_of,
    refuse_keys,
    require_disjoint,
    require_ids,
)
from reducible.stores.irreducible import IrreducibleLossStore, write_in_pieces
from reducible.stores.label_sample import LABEL_SAMPLE, label_sample, label_values
from reducible.stores.memory import LossMemory
from reducible.stores.tokens import TokenLossStore

__all__ = [
    "LABEL_SAMPLE",
    "IrreducibleLossStore",
    "LossMemory",
    "TokenLossStore",
    "WithIds",
    "collate_with_ids",
    "differ",
    "fingerprint",
    "has_distinct_ids",
    "ids_of",
    "key_ids",
    "known_ids",
    "known_length",
    "label_sample",
    "label_values",
    "labels_of",
    "noting_ids",
    "origin_of",
    "refuse_keys",
    "require_disjoint",
    "require_ids",
    "write_in_pieces",
]
