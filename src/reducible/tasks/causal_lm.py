"""Causal language models, sequence by sequence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

from torch import Tensor, nn

from reducible.tasks.base import Outputs, Task
from reducible.tasks.fields import logits_in
from reducible.tasks.tokens import (
    IGNORED,
    cut_padding,
    is_predicted,
    row_hashes,
    token_losses,
    tokens_of,
)
from reducible.types import require_between, require_one_of


@final
class CausalLM(Task):
    """Next-token prediction; an example is a sequence, its loss the mean over its tokens.

    Such as ``AutoModelForCausalLM`` of transformers. Batches are mappings with ``input_ids``
    [B, T] int64 and ``attention_mask`` [B, T]; ``labels`` [B, T], −100 at tokens that are not
    trained on (a prompt, padding), or all tokens that are attended to if there are none. The model
    makes no loss of its own.

    A sequence that has no token to train on has loss 0. Several texts that were packed into a row
    before it got its id are one example.

    Rules that choose by loss (``rho``, ``train_loss``, …) go with it, and rules that need none;
    those that read class probabilities or features are refused.

    Args:
        pad_id: the token that pads, from which the mask is made if a batch has none.
        reduce: ``"mean"`` over a sequence's tokens, or their ``"sum"``, which long texts win.

    >>> import torch
    >>> task = CausalLM()
    >>> ids = torch.tensor([[5, 6, 7], [5, 6, 0]])
    >>> batch = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    >>> task.targets(batch)
    tensor([[   5,    6,    7],
            [   5,    6, -100]])
    >>> task.loss(torch.zeros(2, 3, 8), task.targets(batch))
    tensor([2.0794, 2.0794])
    """

    gives = frozenset({"loss"})

    def __init__(self, *, pad_id: int | None = None, reduce: str = "mean") -> None:
        if pad_id is not None:
            require_between("pad_id", pad_id, 0, whole=True)
        require_one_of("reduce", reduce, ("mean", "sum"))
        self._pad_id, self._reduce = pad_id, reduce

    def _tokens(self, batch: Any) -> dict[str, Tensor]:
        return tokens_of(batch, pad_id=self._pad_id, task="CausalLM")

    def targets(self, batch: Any) -> Tensor:
        """[B, T] int64, −100 at tokens that are not trained on."""
        if isinstance(batch, Mapping) and "labels" in batch:
            return batch["labels"]
        tokens = self._tokens(batch)
        return tokens["input_ids"].masked_fill(tokens["attention_mask"] == 0, IGNORED)

    def forward(self, model: nn.Module, batch: Any, *, features: bool = False) -> Outputs:
        """Logits [B, T, V]."""
        return Outputs(logits_in(model(**self._tokens(batch))), None)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean (or sum) of −log p(token | those before it) over each sequence: [B]."""
        total = token_losses(logits, targets).sum(1)
        if self._reduce == "sum":
            return total
        return total / is_predicted(targets).sum(1).clamp(min=1)

    def labels(self, targets: Tensor) -> Tensor:
        """[B] int64: a hash of each sequence's tokens to train on, wherever padding stands."""
        return row_hashes(targets)

    def unpadded(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """``batch`` without the columns on the right that are padding in every row."""
        return cut_padding(batch, self._tokens(batch)["attention_mask"])
