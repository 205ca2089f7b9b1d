"""Batches of tokens: what a model is called with, padding, and losses token by token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from reducible.tasks.fields import describe
from reducible.types import DataError

IGNORED = -100
"""Label of tokens that are not trained on, as in transformers."""
_TOKEN_KEYS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
_ODD = 0x5851F42D4C957F2D  # multiplier of a full-period generator modulo 2**64
_AT_ONCE = 2**24  # logits that are widened to float32 at once if no gradient is wanted


def tokens_of(batch: Any, *, pad_id: int | None, task: str) -> dict[str, Tensor]:
    """Returns what a model of padded tokens is called with, by keyword.

    Args:
        batch: a mapping with ``input_ids`` [B, T], and ``attention_mask`` [B, T] if there is one.
        pad_id: the token that pads, from which a missing mask is made.
        task: its name, for errors.

    Raises:
        DataError: tokens or mask are missing, or of other shapes.
    """
    if not isinstance(batch, Mapping) or "input_ids" not in batch:
        raise DataError(
            f"no 'input_ids' in a batch of {describe(batch)}: a mapping with input_ids, "
            "attention_mask and labels was expected. Other inputs than tokens? Use "
            "Classification(inputs=…)."
        )
    tokens = {k: batch[k] for k in _TOKEN_KEYS if k in batch}
    ids = tokens["input_ids"]
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.is_floating_point():
        what = type(ids).__name__
        if isinstance(ids, Tensor):
            what = f"{ids.dtype} of shape {tuple(ids.shape)}"
        raise DataError(
            f"input_ids must be whole numbers of shape [B, T], got {what}. Rows of unequal "
            "length? Pad them, as data.TokenSet does."
        )
    if "attention_mask" not in tokens:
        if pad_id is None:
            raise DataError(
                f"no 'attention_mask' in a batch of {describe(batch)}, so padding would be "
                "read as text. Let the tokenizer return it, or name the token that pads: "
                f"{task}(pad_id=…)."
            )
        tokens["attention_mask"] = (ids != pad_id).long()  # [B, T]
    mask = tokens["attention_mask"]
    if mask.shape != ids.shape:
        raise DataError(
            f"attention_mask of shape {tuple(mask.shape)} for input_ids of shape "
            f"{tuple(ids.shape)}: both must be [B, T]. Was one of them cut or padded alone?"
        )
    return tokens


def cut_padding(batch: Mapping[str, Any], mask: Tensor) -> dict[str, Any]:
    """``batch`` without the columns on the right at which ``mask`` ([B, T]) is 0 in every row."""
    columns = (mask != 0).any(dim=0).nonzero()  # [T', 1]
    longest = int(columns[-1]) + 1 if columns.numel() else 0
    return {
        k: v[:, :longest] if isinstance(v, Tensor) and v.shape == mask.shape else v
        for k, v in batch.items()
    }


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """−log p(labels_t | tokens before t), 0 at ignored labels and in the first column: [B, T].

    Args:
        logits: [B, T, V] of a causal model: column t − 1 predicts label t.
        labels: [B, T] int64, −100 at tokens that are not trained on.

    >>> logits = torch.zeros(1, 3, 4)
    >>> token_losses(logits, torch.tensor([[1, 2, -100]]))
    tensor([[0.0000, 1.3863, 0.0000]])
    """
    if logits.dim() != 3 or logits.shape[:2] != labels.shape:
        raise DataError(
            f"the model gave logits of shape {tuple(logits.shape)} for labels of shape "
            f"{tuple(labels.shape)}; [B, T, V] for [B, T] was expected. Does the loader flatten "
            "several examples into one row (padding-free)? Turn that off."
        )
    rows, length, words = logits.shape
    # Labels are moved, not logits: the largest tensor of all is neither cut nor transposed.
    wanted = F.pad(labels[:, 1:], (0, 1), value=IGNORED)  # [B, T]
    # Without a graph the wide copy of half-precision logits is made in pieces.
    step = rows if logits.requires_grad else max(1, _AT_ONCE // max(1, length * words))
    parts = [
        F.cross_entropy(
            part.flatten(0, 1).float(), at.flatten(), reduction="none", ignore_index=IGNORED
        )
        for part, at in zip(logits.split(step), wanted.split(step), strict=True)
    ]
    losses = torch.cat(parts).view(rows, length)
    return F.pad(losses[:, :-1], (1, 0))


def is_predicted(labels: Tensor) -> Tensor:
    """[B, T] bool: the tokens that a causal model is trained to predict."""
    wanted = labels != IGNORED
    wanted[:, 0] = False  # nothing stands before it
    return wanted


def row_hashes(labels: Tensor) -> Tensor:
    """[B] int64: a hash of the labels of each row that are not ignored, in their order.

    >>> same = torch.tensor([[-100, 7, 8], [7, 8, -100]])
    >>> first, second = row_hashes(same)
    >>> bool(first == second), bool(first == row_hashes(torch.tensor([[8, 7]])))
    (True, False)
    """
    counts = labels != IGNORED  # [B, T]
    rank = counts.cumsum(1)
    powers = torch.full((labels.shape[1] + 1,), _ODD, device=labels.device).cumprod(0)
    return ((labels + 1) * powers[rank - 1] * counts).sum(1)
