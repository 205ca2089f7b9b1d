"""Texts as data sets: tokenised once, kept in memory, padded batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from reducible.lab.data._memory import InMemory, check_positions
from reducible.lab.data.sentences import sentences
from reducible.types import Candidates, ConfigurationError, DataError, name_ids, require_between


@final
class TokenSet(InMemory):
    """N tokenised texts in memory. A batch is ``Candidates(ids, tokens)``, ``tokens`` a mapping:

    - ``input_ids``: [B, T] int64, T the length of the longest row of the batch
    - ``attention_mask``: [B, T] int64, 1 at tokens, 0 at the padding on their right
    - ``labels``: [B] int64

    A single item has no padding: [T], [T] and []. Models whose rows do not look at padding give
    the same losses whatever T is, up to the rounding of sums of another length.

    Args:
        tokens: [N, T] whole numbers of any type, padded on the right.
        lengths: [N] int64 tokens of each row, in [1, T]; what stands behind them is padding.
        targets: [N] int64, in [0, C).
        ids: [N] int64, unique, not negative; 0 … N−1 by default.
        num_classes: C; the largest target plus one by default.
        classes: the names of the C classes, or nothing.
        origin: what the ids belong to, e.g. ``"snippets"``. Two sets of equal origin share their
            ids, so that overlap between them can be checked. By default an object that equals
            nothing else.

    Raises:
        DataError: no examples, tokens that are no whole numbers, lengths, labels or ids as above
            not kept to.
        ConfigurationError: as many names as there are not classes.

    >>> tokens = torch.tensor([[101, 7, 8, 102], [101, 9, 102, 0]])
    >>> data = TokenSet(tokens, torch.tensor([4, 3]), torch.tensor([0, 1]))
    >>> data[1].batch["input_ids"]
    tensor([101,   9, 102])
    >>> data[[1, 0]].batch["attention_mask"]
    tensor([[1, 1, 1, 0],
            [1, 1, 1, 1]])
    """

    def __init__(
        self,
        tokens: Tensor,
        lengths: Tensor,
        targets: Tensor,
        *,
        ids: Tensor | None = None,
        num_classes: int | None = None,
        classes: tuple[str, ...] = (),
        origin: object | None = None,
    ) -> None:
        super().__init__(targets, ids=ids, num_classes=num_classes, classes=classes, origin=origin)
        if tokens.dim() != 2 or tokens.is_floating_point() or len(tokens) != len(self):
            raise DataError(
                f"tokens must be [N, T] whole numbers with a row for each of {len(self)} targets; "
                f"got {tokens.dtype} of shape {tuple(tokens.shape)}. Texts? Use "
                "TokenSet.from_texts()."
            )
        if lengths.dtype != torch.int64 or lengths.shape != targets.shape:
            raise DataError(
                f"lengths must be [N] int64, one for each of {len(self)} rows; got "
                f"{lengths.dtype} of shape {tuple(lengths.shape)}. An attention mask? Use "
                "mask.sum(1)."
            )
        wrong = (lengths < 1) | (lengths > tokens.shape[1])  # [N]
        if bool(wrong.any()):
            raise DataError(
                f"lengths must lie in [1, {tokens.shape[1]}]; ids {name_ids(self.ids[wrong])} have "
                f"{lengths[wrong][:5].tolist()}. Empty texts, tokenised without [CLS] and [SEP]? "
                "Leave them out."
            )
        self.tokens = tokens  # [N, T]
        self.lengths = lengths  # [N]

    @classmethod
    def from_texts(
        cls,
        texts: Sequence[str],
        targets: Tensor,
        *,
        tokenizer: Any,
        max_length: int = 128,
        **options: Any,
    ) -> TokenSet:
        """Tokenise ``texts``, each cut to its first ``max_length`` tokens.

        What the tokenizer puts at the ends of a text, such as [CLS] and [SEP], is counted and
        never cut. Tokens are stored as int32.

        Args:
            texts: N of them.
            targets: [N] int64, in [0, C).
            tokenizer: a ``tokenizers.Tokenizer``, or a tokenizer of transformers that stands on
                one. It is left as it is; of its padding only the token counts.
            max_length: ≥ 3.
            options: ids, num_classes, classes and origin, as of ``TokenSet``.

        Raises:
            ConfigurationError: another kind of tokenizer, one without a token that pads, or a
                ``max_length`` below 3.
            DataError: as of ``TokenSet``.
        """
        require_between("max_length", max_length, 3, whole=True)
        if len(texts) != targets.numel():
            raise DataError(
                f"{len(texts)} texts for {targets.numel()} targets. Were they cut from one data "
                "set with one index?"
            )
        backend = _backend(tokenizer)
        pad_id = _pad_id(tokenizer, backend)
        backend.no_padding()
        backend.enable_truncation(max_length)
        rows = [text.ids for text in backend.encode_batch(list(texts))]
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)  # [N]
        width = int(lengths.max()) if len(rows) else 0
        padded = [row + [pad_id] * (width - len(row)) for row in rows]
        tokens = torch.tensor(padded, dtype=torch.int32).view(len(rows), width)  # [N, T]
        return cls(tokens, lengths, targets, **options)

    def fetch(self, indices: Tensor) -> Candidates:
        """The examples at positions ``indices`` ([B] int64), padded to the longest of them.

        Returns:
            ``Candidates(ids [B], {input_ids [B, T], attention_mask [B, T], labels [B]})``, all
            int64.

        Raises:
            DataError: positions that are not [B] int64 in [0, N), such as a mask, or ids.
        """
        at = check_positions(indices, len(self)).to(self.ids.device)  # [B]
        lengths = self.lengths.index_select(0, at)  # [B]
        longest = int(lengths.max()) if at.numel() else 0
        columns = torch.arange(longest, device=at.device)  # [T]
        tokens = {
            "input_ids": self.tokens[:, :longest].index_select(0, at).long(),  # [B, T]
            "attention_mask": (columns < lengths.unsqueeze(1)).long(),  # [B, T]
            "labels": self.targets.index_select(0, at),  # [B]
        }
        return Candidates(self.ids.index_select(0, at), tokens)

    def _single(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: rows[0] for name, rows in batch.items()}

    def _rows(self, at: Tensor, *, ids: Tensor | None, origin: object | None) -> TokenSet:
        return self._with(
            tokens=self.tokens[at],
            lengths=self.lengths[at],
            targets=self.targets[at],
            ids=ids,
            origin=origin,
        )

    def _with(self, **changes: Any) -> TokenSet:
        same = {
            "tokens": self.tokens,
            "lengths": self.lengths,
            "targets": self.targets,
            "ids": self.ids,
            "num_classes": self.num_classes,
            "classes": self.classes,
            "origin": self.origin,
        }
        return TokenSet(**(same | changes))


def sentiment(
    tokenizer: Any,
    *,
    neutral: float = 0.5,
    max_length: int = 128,
    root: str | Path | None = None,
    sources: Sequence[str] = ("movie",),
) -> TokenSet:
    """Rated sentences as two classes: 0 negative, 1 positive, by the sign of the mean rating.

    Sentences rated closer to 0 than ``neutral`` are left out: of those, people disagree which
    class they are. Of the 10,605 embedded film sentences the default keeps 10,072, of which
    4,996 are positive; none has more than 79 tokens of BERT's uncased vocabulary.

    An id is the row in the full file, and belongs to the origin ``"snippets"``, whatever
    ``neutral`` and ``sources`` leave out.

    Args:
        tokenizer: as of ``TokenSet.from_texts``; ``reducible.lab.encoders.minilm_tokenizer()``.
        neutral: in [0, 4), on the scale of the ratings, −4 to 4. A rating of 0 is always left out.
        max_length: tokens that are kept of a text.
        root: as of ``sentences``.
        sources: as of ``sentences``.

    Raises:
        DataError: the file is missing or damaged, or has no text from one of ``sources``.
        ConfigurationError: ``neutral`` out of range, or a tokenizer of another kind.
    """
    require_between("neutral", neutral, 0.0, 4.0, open_high=True)
    data = sentences(root=root, sources=sources)
    kept = (data.ratings.abs() >= neutral) & (data.ratings != 0)  # [N]
    return TokenSet.from_texts(
        [text for text, keep in zip(data.texts, kept.tolist(), strict=True) if keep],
        data.targets[kept],
        tokenizer=tokenizer,
        max_length=max_length,
        ids=data.ids[kept],
        num_classes=2,
        classes=("negative", "positive"),
        origin="snippets",
    )


def _backend(tokenizer: Any) -> Any:
    """A ``tokenizers.Tokenizer`` to set up: a copy, so that the caller's stays as it is."""
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)  # of a tokenizer of transformers
    if not hasattr(backend, "encode_batch"):
        raise ConfigurationError(
            "the tokenizer must be a tokenizers.Tokenizer, or one of transformers that stands on "
            f"it; got {type(tokenizer).__name__}. A name or a path? Load it first, e.g. "
            "tokenizers.Tokenizer.from_file('tokenizer.json')."
        )
    return type(backend).from_str(backend.to_str())


def _pad_id(tokenizer: Any, backend: Any) -> int:
    """The token that pads; some models find the end of a text by it."""
    found = [
        getattr(tokenizer, "pad_token_id", None),
        None if backend.padding is None else backend.padding["pad_id"],
        *map(backend.token_to_id, ("[PAD]", "<pad>")),
    ]
    named = next((token for token in found if token is not None), None)
    if named is None:
        raise ConfigurationError(
            "the tokenizer names no token that pads, and has neither [PAD] nor <pad>. Name the "
            "one that the model was trained with: tokenizer.enable_padding(pad_id=…)."
        )
    return named
