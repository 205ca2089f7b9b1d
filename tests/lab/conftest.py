"""Fixtures of the tests of the laboratory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from encoder_toys import N, texts
from reducible.lab.data import EMBEDDED, TokenSet, fashion_mnist
from reducible.lab.encoders import minilm_tokenizer
from reducible.lab.splits import _embedded
from run_toys import DEMO, short_run

_READ: dict[str, Any] = {}


@pytest.fixture
def read_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Reading the embedded files takes most of the time; only tests that ask for it see these."""

    def read(split: Any, **_: Any) -> Any:
        if split not in _READ:
            data = fashion_mnist(split, root=EMBEDDED)
            _READ[split] = data if split == "train" else data.subset(torch.arange(500))
        return _READ[split]

    monkeypatch.setattr("reducible.lab.splits.fashion_mnist", read)
    _embedded.cache_clear()
    yield
    _embedded.cache_clear()


@pytest.fixture(scope="session")
def finished_demos(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Every demo recipe, run once without a stop."""
    done = {}
    for name in DEMO:
        out = tmp_path_factory.mktemp("runs") / name
        done[name] = (out, short_run(name, out).start())
    return done


@pytest.fixture(scope="session")
def reviews(bert_folder: Path) -> TokenSet:
    """Reviews of up to nine words as tokens, half of them to train on and half held out."""
    made, good = texts(2 * N, seed=0)
    return TokenSet.from_texts(
        made, good, tokenizer=minilm_tokenizer(bert_folder), origin="reviews", num_classes=2
    )
