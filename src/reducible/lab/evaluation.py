"""Judges a model: its accuracy and loss on a data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reducible.lab.data import TensorSet, TokenSet
from reducible.scoring import without_graph
from reducible.tasks import Classification, SequenceClassification


@final
@dataclass(frozen=True, slots=True)
class Evaluation:
    """Says how good a model is.

    Attributes:
        accuracy: share of correct predictions.
        loss: mean cross-entropy.
        by_class: accuracy of each class that occurs.
    """

    accuracy: float
    loss: float
    by_class: list[float]


@without_graph()
def evaluate(
    model: nn.Module,
    data: TensorSet | TokenSet,
    task: Classification | SequenceClassification | None = None,
) -> Evaluation:
    """Accuracy and loss in eval mode; the model's mode is given back.

    Args:
        model: any.
        data: what it is judged by.
        task: what batches mean; ``Classification()`` by default.
    """
    task = task or Classification()
    was_training = model.training
    model.eval()
    correct = torch.zeros(data.num_classes, dtype=torch.int64)
    loss = 0.0
    for _, batch in evaluation_batches(data):
        logits, y = task.forward(model, batch).logits, task.targets(batch)  # [B, C], [B]
        correct += torch.bincount(y[logits.argmax(1) == y], minlength=data.num_classes)
        loss += float(F.cross_entropy(logits, y, reduction="sum"))
    model.train(was_training)
    count = torch.bincount(data.targets, minlength=data.num_classes)
    by_class = (correct / count.clamp(min=1))[count > 0].tolist()
    return Evaluation(int(correct.sum()) / len(data), loss / len(data), by_class)


@without_graph()
def correctness(
    model: nn.Module, data: TensorSet | TokenSet, task: Classification | SequenceClassification
) -> Tensor:
    """[N] bool: whether each example is predicted right in eval mode; in the same order always."""
    was_training = model.training
    model.eval()
    right = [
        task.forward(model, batch).logits.argmax(1) == task.targets(batch)
        for _, batch in evaluation_batches(data)
    ]
    model.train(was_training)
    return torch.cat(right).cpu()


def evaluation_batches(data: TensorSet | TokenSet) -> Any:
    """The data set in large batches; texts by length, which pads least, and in smaller ones."""
    if isinstance(data, TokenSet):
        by_length = data.subset(data.lengths.argsort(stable=True))
        return by_length.loader(250, shuffle=False, drop_last=False)
    return data.loader(1000, shuffle=False, drop_last=False)
