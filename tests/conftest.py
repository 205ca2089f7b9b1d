"""Fixtures of the whole suite: one thread, so that floats come out the same everywhere."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

torch.set_num_threads(1)
os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported: nothing is asked for


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def global_streams() -> Callable[[], Any]:
    """A function that says where torch's, NumPy's and Python's global random streams stand."""

    def where() -> Any:
        name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
        numpy_state = (name, np.asarray(keys).tolist(), rest)
        return torch.get_rng_state().tolist(), numpy_state, random.getstate()

    return where


@pytest.fixture(scope="session")
def wordpiece() -> Any:
    """An uncased WordPiece tokenizer of twelve words: tokens 0, [PAD], to 11, a full stop."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = "[PAD] [UNK] [CLS] [SEP] a good bad film ##s dull very ."
    vocabulary = {word: token for token, word in enumerate(words.split())}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return made


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory: pytest.TempPathFactory, wordpiece: Any) -> Path:
    """A BERT encoder of one layer of width 16, in the official files, written by their authors."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=12,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=128,
        initializer_range=0.5,
    )
    at = tmp_path_factory.mktemp("bert")
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        BertModel(config).save_pretrained(at)
    wordpiece.save(str(at / "tokenizer.json"))
    return at


@pytest.fixture
def tiny_texts(bert_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``minilm`` and all that goes with it are the tiny encoder's, of a vocabulary of twelve."""
    monkeypatch.setattr("reducible.lab.encoders._folder", lambda given: Path(given or bert_folder))
