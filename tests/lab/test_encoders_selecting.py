"""Irreducible losses of texts, and selection on tokens from end to end."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

import reducible as rd
from encoder_toys import N_B, TASK, K, N, tiny
from reducible.lab.data import TokenSet
from reducible.lab.encoders import minilm
from reducible.stores import fingerprint


@pytest.fixture
def train(reviews: TokenSet) -> TokenSet:
    return reviews.subset(torch.arange(N))


@pytest.fixture
def holdout(reviews: TokenSet) -> TokenSet:
    return reviews.subset(torch.arange(N, 2 * N))


def test_irreducible_losses_of_texts(
    bert_folder: Path, train: TokenSet, holdout: TokenSet, tmp_path: Path
) -> None:
    store = rd.fit_irreducible_loss(
        lambda: minilm(2, folder=bert_folder),
        holdout,
        train,
        task=TASK,
        epochs=8,
        make_optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
        save_model=tmp_path / "kept.safetensors",
        progress=False,
    )
    model = tiny(bert_folder).eval()
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
    bert_folder: Path, train: TokenSet, reviews: TokenSet
) -> None:
    with pytest.raises(rd.DataError, match="share 96 examples of one data set"):
        rd.fit_irreducible_loss(
            lambda: tiny(bert_folder), reviews, train, task=TASK, epochs=1, progress=False
        )


def test_cross_fitting_cuts_texts_into_folds(bert_folder: Path, train: TokenSet) -> None:
    few = train.subset(torch.arange(0, N, 4))
    store = rd.cross_fit_irreducible_loss(
        lambda: tiny(bert_folder), few, task=TASK, epochs=1, progress=False
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
