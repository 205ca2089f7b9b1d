"""Real text that is at hand: source, documentation and licences of installed packages."""

from __future__ import annotations

import hashlib
import importlib.metadata as metadata
import pydoc_data
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

SOURCE = {"numpy": "BSD-3-Clause", "torch": "BSD-3-Clause", "matplotlib": "PSF-based"}
"""Package → licence of its source, which is read as it is."""
FOLDERS = {"torch": ("torch/nn/", "torch/optim/", "torch/utils/data/")}
LICENCES = ("torch", "numpy", "matplotlib", "pandas", "pyarrow", "scipy", "scikit-learn")
"""Packages whose licences are read as text."""
WORDS, LENGTH = 1024, 64
_LARGEST = 60_000  # characters of a file that are read, so that no file is half of it all


@dataclass(frozen=True, slots=True)
class Text:
    """A file's text, and what kind it is of."""

    name: str
    kind: str
    text: str


def texts() -> list[Text]:
    """All texts, each once, in an order of their own; of installed packages only."""
    found: dict[str, Text] = {}
    for text in (*_source(), *_licences(), *_documentation()):
        if len(text.text) > 500:
            found.setdefault(hashlib.sha1(text.text.encode()).hexdigest(), text)
    return [found[key] for key in sorted(found)]


def _source() -> Iterator[Text]:
    for package in SOURCE:
        folders = FOLDERS.get(package, (f"{package}/",))
        for file in metadata.files(package) or []:
            name = str(file)
            if name.startswith(folders) and name.endswith(".py") and "/tests/" not in name:
                yield Text(name, "source", _read(Path(str(file.locate()))))


def _licences() -> Iterator[Text]:
    for package in LICENCES:
        for file in metadata.files(package) or []:
            if "LICEN" in str(file).upper() and Path(str(file)).suffix in ("", ".txt", ".md"):
                yield Text(str(file), "licence", _read(Path(str(file.locate())), 4 * _LARGEST))


def _documentation() -> Iterator[Text]:
    """Python's own help topics, each a text (PSF licence)."""
    (folder,) = pydoc_data.__path__
    topics = Path(folder, "topics.py").read_text(encoding="utf-8")
    for number, part in enumerate(topics.split("\n\n\n")):
        for piece in range(0, len(part), 4000):
            yield Text(f"topics/{number}/{piece}", "documentation", part[piece : piece + 4000])


def _read(path: Path, largest: int = _LARGEST) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="ignore")[:largest]
    except OSError:
        return ""


@dataclass(frozen=True, slots=True)
class Parts:
    """Sequences of tokens, cut from texts of their own."""

    train: Tensor  # [N, T] int64
    holdout: Tensor
    test: Tensor
    kinds: list[str]  # [N] of the train set
    digest: str
    characters: dict[str, int]


def parts(seed: int, *, holdout: float = 0.2, test: float = 0.1) -> Parts:
    """Splits the texts by file, and learns the tokens from what is not test.

    Args:
        seed: of the split.
        holdout: share of the texts for the reference model.
        test: share of the texts that is judged on.
    """
    every = texts()
    digest = hashlib.blake2b("".join(t.text for t in every).encode(), digest_size=8).hexdigest()
    characters: dict[str, int] = {}
    for text in every:
        characters[text.kind] = characters.get(text.kind, 0) + len(text.text)
    random.Random(seed).shuffle(every)
    first, second = int(test * len(every)), int((test + holdout) * len(every))
    tokenizer = _tokenizer([t.text for t in every[first:]])
    cut = {
        name: _sequences(tokenizer, some)
        for name, some in (
            ("test", every[:first]), ("holdout", every[first:second]), ("train", every[second:])
        )
    }  # fmt: skip
    return Parts(
        cut["train"][0], cut["holdout"][0], cut["test"][0], cut["train"][1], digest, characters
    )


def _tokenizer(texts: list[str]) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    made.train_from_iterator(texts, trainer)
    return made


def _sequences(tokenizer: Tokenizer, some: list[Text]) -> tuple[Tensor, list[str]]:
    rows: list[Tensor] = []
    kinds: list[str] = []
    for text, encoded in zip(some, tokenizer.encode_batch([t.text for t in some]), strict=True):
        ids = torch.tensor(encoded.ids)
        whole = ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)
        rows.append(whole)
        kinds += [text.kind] * len(whole)
    return torch.cat(rows), kinds
