"""Single-label classification of sequences of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from reducible.tasks.cross_entropy import CrossEntropy
from reducible.tasks.fields import Field
from reducible.tasks.tokens import cut_padding, tokens_of
from reducible.types import require_between


@final
class SequenceClassification(CrossEntropy):
    """Classification of texts, by models that take padded tokens by keyword.

    Such as ``AutoModelForSequenceClassification`` of transformers, or
    ``reducible.lab.encoders.minilm``. Batches are mappings with ``input_ids`` [B, T] int64,
    ``attention_mask`` [B, T], 1 at tokens and 0 at padding, and labels [B]; ``token_type_ids`` and
    ``position_ids`` go to the model too if they are there, and nothing else does. So the model
    makes no loss of its own, and texts or lengths may stand in the batch.

    Features are what the classifier layer takes in, pooled as the model does it: before the layer,
    or, if a causal model classifies every token, at the last token of each row.
    ``Scoring(max_length=…)`` cuts tokens and mask alike, to the start of each text if padding
    stands on the right; of rows padded on the left it would keep the padding.

    Args:
        targets: key or function of the batch, for the labels; found if None under one of
            labels, label, targets, target, y.
        features: name of the classifier layer; found by a trial pass if None.
        label_smoothing: of the cross-entropy, in [0, 1).
        pad_id: the token that pads, from which the mask is made if a batch has none.

    >>> task = SequenceClassification(pad_id=0)
    >>> task.targets({"input_ids": torch.tensor([[5, 0]]), "labels": torch.tensor([1])})
    tensor([1])
    """

    def __init__(
        self,
        *,
        targets: Field | None = None,
        features: str | None = None,
        label_smoothing: float = 0.0,
        pad_id: int | None = None,
    ) -> None:
        super().__init__(targets=targets, features=features, label_smoothing=label_smoothing)
        if pad_id is not None:
            require_between("pad_id", pad_id, 0, whole=True)
        self._pad_id = pad_id

    def unpadded(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """``batch`` without the columns on the right that are padding in every row.

        Rows chosen from many candidates are padded to the longest of the candidates; cut to the
        longest of their own, they cost less to train on, and the model sees the same texts.
        """
        return cut_padding(batch, self._tokens(batch)["attention_mask"])

    def _tokens(self, batch: Any) -> dict[str, Tensor]:
        return tokens_of(batch, pad_id=self._pad_id, task="SequenceClassification")

    def _call(self, model: nn.Module, batch: Any) -> Any:
        return model(**self._tokens(batch))

    def _pooled(self, seen: Tensor, batch: Any) -> Tensor:
        """[B, D]: as it is, or of [B, T, D] the last token that is not padding."""
        mask = self._tokens(batch)["attention_mask"]  # [B, T]
        if seen.shape[:-1] != mask.shape:
            return seen
        columns = torch.arange(mask.shape[1], device=mask.device)  # [T]
        last = (columns * (mask != 0)).argmax(dim=1)  # [B]
        return seen[torch.arange(len(last), device=last.device), last]

    def _head_before_pooling(
        self, model: nn.Module, batch: Any, last: nn.Module
    ) -> nn.Module | None:
        """The linear layer that ran last, if its rows at the last tokens are the logits."""
        pooled: list[Tensor] = []

        def keep(module: nn.Module, _: Any, out: Tensor) -> None:
            if module is last:
                pooled.append(self._pooled(out, batch))

        logits = self._call_watched(model, batch, keep)
        return last if torch.equal(pooled[-1], logits) else None
