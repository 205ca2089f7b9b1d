"""Data: sets in memory with stable ids, embedded and official files, noise, relevance.

Sets: ``TensorSet``, ``fashion_mnist``; ``TokenSet``, ``sentiment``, ``sentences``; files:
``read_idx``, ``EMBEDDED``.
Corruptions: ``flip_labels``, ``confuse_labels``, ``confusable_pairs``, ``ambiguous_mix``,
``imbalance``, ``relevance_split``, ``web_like``. Augmentation: ``random_crop_flip``.
"""

from reducible.lab.data._files import EMBEDDED
from reducible.lab.data.augment import random_crop_flip
from reducible.lab.data.fashion_mnist import fashion_mnist
from reducible.lab.data.idx import read_idx
from reducible.lab.data.noise import (
    AmbiguousMix,
    NoisyLabels,
    ambiguous_mix,
    confusable_pairs,
    confuse_labels,
    flip_labels,
)
from reducible.lab.data.relevance import (
    RelevanceSplit,
    WebLike,
    imbalance,
    relevance_split,
    web_like,
)
from reducible.lab.data.sentences import Sentences, sentences
from reducible.lab.data.tensors import TensorSet
from reducible.lab.data.tokens import TokenSet, sentiment

__all__ = [
    "EMBEDDED",
    "AmbiguousMix",
    "NoisyLabels",
    "RelevanceSplit",
    "Sentences",
    "TensorSet",
    "TokenSet",
    "WebLike",
    "ambiguous_mix",
    "confusable_pairs",
    "confuse_labels",
    "fashion_mnist",
    "flip_labels",
    "imbalance",
    "random_crop_flip",
    "read_idx",
    "relevance_split",
    "sentences",
    "sentiment",
    "web_like",
]
