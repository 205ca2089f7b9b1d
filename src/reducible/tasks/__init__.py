"""Gets inputs, labels, logits, features and per-example losses out of (model, batch).

- ``base``: the protocol, and losses example by example
- ``cross_entropy``: what tasks of one label have in common
- ``classification``, ``sequences``: the tasks of this library
"""

from reducible.tasks.base import Outputs, Task, per_example
from reducible.tasks.classification import Classification
from reducible.tasks.sequences import SequenceClassification

__all__ = ["Classification", "Outputs", "SequenceClassification", "Task", "per_example"]
