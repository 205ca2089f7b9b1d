"""Gets inputs, labels, logits, features and per-example losses out of (model, batch).

- ``base``: the protocol, and losses example by example
- ``cross_entropy``: what tasks of one label have in common
- ``classification``, ``sequences``: a label per example
- ``causal_lm``: next-token prediction, a sequence an example
- ``regression``: numbers, several labels, a label per pixel
- ``own_loss``: a function that gives losses
- ``fields``, ``tokens``: find things in batches of any structure, and in batches of tokens
"""

from reducible.tasks.base import Outputs, Task, per_example
from reducible.tasks.causal_lm import CausalLM
from reducible.tasks.classification import Classification
from reducible.tasks.own_loss import PerExampleLoss
from reducible.tasks.regression import DensePrediction, MultiLabel, Regression
from reducible.tasks.sequences import SequenceClassification
from reducible.tasks.tokens import IGNORED, is_predicted, token_losses

__all__ = [
    "IGNORED",
    "CausalLM",
    "Classification",
    "DensePrediction",
    "MultiLabel",
    "Outputs",
    "PerExampleLoss",
    "Regression",
    "SequenceClassification",
    "Task",
    "is_predicted",
    "per_example",
    "token_losses",
]
