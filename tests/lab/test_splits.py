"""Splits: disjoint, paired by seed, and every wrong label known to be wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import reducible as rd
from reducible.lab.data import EMBEDDED, TensorSet, TokenSet, fashion_mnist, sentiment
from reducible.lab.recipe import Recipe
from reducible.lab.splits import _embedded, make_splits

POOL = fashion_mnist("train", root=EMBEDDED)
TEST = fashion_mnist("test", root=EMBEDDED)


@pytest.fixture(autouse=True)
def read_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Reading the embedded files takes most of the time; no other module's tests see these."""
    read = {"train": POOL, "test": TEST}
    monkeypatch.setattr("reducible.lab.splits.fashion_mnist", lambda split, **_: read[split])
    _embedded.cache_clear()
    yield
    _embedded.cache_clear()


def _splits(seed: int = 1, **settings: Any) -> Any:
    """Splits whose parts are TensorSets."""
    small: dict[str, Any] = {"train_examples": 1000, "holdout_examples": 400, "n_candidates": 100}
    return make_splits(
        Recipe.from_settings({"name": "r", "selector": "uniform"} | small | settings), seed
    )


def _truth(part: TensorSet) -> torch.Tensor:
    return POOL.targets[part.ids]  # ids are places in the pool, which is in order


def test_train_and_holdout_share_nothing() -> None:
    splits = _splits()
    assert splits.holdout is not None
    train, holdout = splits.train, splits.holdout
    assert (len(train), len(holdout)) == (1000, 400)
    assert not set(train.ids.tolist()) & set(holdout.ids.tolist())
    assert torch.equal(train.inputs, POOL.inputs[train.ids])
    assert torch.equal(splits.test.inputs, TEST.inputs)
    assert _splits(holdout_examples=0).holdout is None


def test_the_same_seed_gives_the_same_data() -> None:
    first, again, other = _splits(1), _splits(1), _splits(2)
    assert torch.equal(first.train.ids, again.train.ids)
    assert torch.equal(first.train.targets, again.train.targets)
    assert not torch.equal(first.train.ids, other.train.ids)


def test_the_train_set_does_not_depend_on_the_holdout() -> None:
    """So that recipes that differ in their holdout stay paired."""
    first = _splits()
    changes: list[dict[str, Any]] = [
        {"holdout_noise": 0.5}, {"holdout_examples": 100}, {"holdout_examples": 0},
    ]  # fmt: skip
    for settings in changes:
        other = _splits(**settings)
        assert torch.equal(other.train.ids, first.train.ids)
        assert torch.equal(other.train.targets, first.train.targets)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_flips_are_as_many_as_asked_for(share: float) -> None:
    splits = _splits(label_noise=share)
    wrong = splits.train.targets != _truth(splits.train)
    assert int(wrong.sum()) == round(share * 1000)
    assert torch.equal(splits.corrupted[splits.train.ids], wrong)
    assert int(splits.corrupted.sum()) == int(wrong.sum())
    assert splits.holdout is not None
    assert torch.equal(splits.holdout.targets, _truth(splits.holdout))


def test_a_noisy_holdout_has_noise_of_its_own() -> None:
    splits = _splits(label_noise=0.1, holdout_noise=0.25)
    assert splits.holdout is not None
    assert int((splits.holdout.targets != _truth(splits.holdout)).sum()) == 100
    assert int(splits.corrupted.sum()) == 100  # of the train set alone


def test_asymmetric_noise_sends_every_class_to_one_other() -> None:
    splits = _splits(noise="asymmetric", label_noise=0.4, holdout_noise=0.2)
    truth, wrong = _truth(splits.train), splits.corrupted[splits.train.ids]
    assert torch.equal(wrong, splits.train.targets != truth)
    # every row has its coin: five standard errors of 1000
    assert abs(float(wrong.double().mean()) - 0.4) < 5 * (0.24 / 1000) ** 0.5
    goes_to: dict[int, set[int]] = {}
    assert splits.holdout is not None
    for part in (splits.train, splits.holdout):
        for old, new in zip(_truth(part).tolist(), part.targets.tolist(), strict=True):
            if old != new:
                goes_to.setdefault(old, set()).add(new)
    assert sorted(goes_to) == list(range(10))
    assert all(len(partners) == 1 for partners in goes_to.values())  # one table for both


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_web_like_data_repeats_rows_and_has_rare_classes(share: float) -> None:
    splits = _splits(noise="web-like", label_noise=share)
    train = splits.train
    assert train.ids.tolist() == list(range(len(train)))  # every copy is an example
    images, inverse, copies = train.inputs.flatten(1).unique(
        dim=0, return_inverse=True, return_counts=True
    )
    assert int((copies >= 5).sum()) == pytest.approx(len(images) / 3, abs=2)
    assert set(copies.tolist()) == {1, 5}
    pool = {p.numpy().tobytes(): int(t) for p, t in zip(POOL.inputs, POOL.targets, strict=True)}
    truth = torch.tensor([pool[x.numpy().tobytes()] for x in train.inputs])
    wrong = train.targets != truth
    assert torch.equal(splits.corrupted, wrong)
    assert int(wrong.sum()) == round(share * len(train))
    per_class = torch.zeros(10).index_add_(0, truth[_firsts(inverse)], torch.ones(len(images)))
    assert int((per_class < 30).sum()) == 2  # of about 100 each
    # a clean holdout is as it is: no copies, no rare classes
    assert splits.holdout is not None
    assert len(splits.holdout) == 400
    assert torch.equal(splits.holdout.targets, _truth(splits.holdout))


def _firsts(inverse: torch.Tensor) -> torch.Tensor:
    """The first row of each distinct image."""
    first = torch.full((int(inverse.max()) + 1,), len(inverse))
    return first.scatter_reduce(0, inverse, torch.arange(len(inverse)), "amin")


def test_validation_examples_replace_the_test_set() -> None:
    splits = _splits(validation_examples=300)
    assert splits.holdout is not None
    assert len(splits.test) == 300
    ids = set(splits.test.ids.tolist())
    assert not ids & (set(splits.train.ids.tolist()) | set(splits.holdout.ids.tolist()))
    assert torch.equal(splits.test.targets, _truth(splits.test))  # never corrupted
    assert torch.equal(splits.test.inputs, POOL.inputs[splits.test.ids])
    assert torch.equal(splits.train.ids, _splits().train.ids)


@pytest.mark.parametrize("holdout_noise", [0.0, 0.25])
@pytest.mark.parametrize("noise", ["flip", "web-like"])
def test_baselines_that_train_on_the_holdout(noise: str, holdout_noise: float) -> None:
    settings = {"noise": noise, "holdout_noise": holdout_noise}
    plain = _splits(**settings)
    assert plain.holdout is not None
    both = _splits(train_on="train+holdout", **settings)
    only = _splits(train_on="holdout", **settings)
    n, held = len(plain.train), len(plain.holdout)
    assert (len(both.train), len(only.train)) == (n + held, held)
    for part in (both.train, only.train):
        assert part.ids.tolist() == list(range(len(part)))
        assert torch.equal(part.inputs[-held:], plain.holdout.inputs)
        assert torch.equal(part.targets[-held:], plain.holdout.targets)
        assert (part.mean, part.std) == (POOL.mean, POOL.std)
    assert torch.equal(both.train.targets[:n], plain.train.targets)
    # the holdout's model judges D alone, and knows both by the ids that are trained on
    assert both.scored.ids.tolist() == list(range(n))
    assert torch.equal(both.scored.targets, plain.train.targets)
    assert both.holdout is not None
    assert both.holdout.ids.tolist() == list(range(n, n + held))
    assert torch.equal(both.holdout.targets, plain.holdout.targets)
    assert plain.scored is plain.train
    assert torch.equal(both.corrupted[:n], plain.corrupted[plain.train.ids])
    for corrupted in (both.corrupted[n:], only.corrupted):
        assert len(corrupted) == held
        assert int(corrupted.sum()) == round(holdout_noise * held)


def test_more_examples_than_there_are() -> None:
    with pytest.raises(rd.ConfigurationError, match="want 30300 examples, the data set has 30000"):
        _splits(train_examples=20_000, holdout_examples=10_000, validation_examples=300)


# -- texts ----------------------------------------------------------------------------------------


@pytest.fixture
def film(wordpiece: Any, monkeypatch: pytest.MonkeyPatch, tiny_texts: None) -> TokenSet:
    """All film sentences, in a vocabulary of twelve words; what splits are cut from."""
    data = sentiment(wordpiece, root=EMBEDDED)
    monkeypatch.setattr("reducible.lab.splits.sentiment", lambda _: data)
    return data


def _texts(seed: int = 1, **settings: Any) -> Any:
    """Splits whose parts are TokenSets."""
    texts = {
        "dataset": "film-sentences", "model": "minilm", "irreducible_model": "bag-of-embeddings",
    }  # fmt: skip
    return _splits(seed, **(texts | settings))


def _true_of(film: TokenSet, part: TokenSet) -> torch.Tensor:
    return film.targets[torch.searchsorted(film.ids, part.ids)]  # ids ascend in the file


def test_sentences_are_cut_by_seed_and_tested_on_the_same(film: TokenSet) -> None:
    first, again, other = _texts(1), _texts(1), _texts(2)
    assert [len(p) for p in (first.train, first.holdout, first.test)] == [1000, 400, 2000]
    assert torch.equal(first.test.ids, other.test.ids)
    assert torch.equal(first.train.ids, again.train.ids)
    assert torch.equal(first.train.targets, again.train.targets)
    assert not torch.equal(first.train.ids, other.train.ids)
    whole = _texts(train_examples=6000, holdout_examples=1000, validation_examples=1072)
    parts = [whole.train, whole.holdout, whole.test, first.test]
    assert sorted(torch.cat([p.ids for p in parts]).tolist()) == film.ids.tolist()
    for part in parts[1:]:
        assert torch.equal(part.targets, _true_of(film, part))
    positive = first.test.targets.double().mean()
    assert abs(float(positive) - 0.5) < 5 * (0.25 / 2000) ** 0.5  # drawn from all of the file


def test_wrong_sentiments_are_the_other_one(film: TokenSet) -> None:
    splits = _texts(label_noise=0.2, holdout_noise=0.1)
    for part, share in ((splits.train, 0.2), (splits.holdout, 0.1)):
        wrong = part.targets != _true_of(film, part)
        assert int(wrong.sum()) == round(share * len(part))
    wrong = splits.train.targets != _true_of(film, splits.train)
    assert torch.equal(splits.corrupted[splits.train.ids], wrong)
    assert int(splits.corrupted.sum()) == 200


def test_sentences_of_the_holdout_may_be_trained_on(film: TokenSet) -> None:
    plain = _texts(holdout_noise=0.25)
    both = _texts(holdout_noise=0.25, train_on="train+holdout")
    only = _texts(holdout_noise=0.25, train_on="holdout")
    assert (len(both.train), len(only.train)) == (1400, 400)
    assert only.train.num_classes == both.train.num_classes == 2
    for part in (both.train, only.train):
        assert part.ids.tolist() == list(range(len(part)))
        for name in ("tokens", "lengths", "targets"):
            assert torch.equal(getattr(part, name)[-400:], getattr(plain.holdout, name))
    for name in ("tokens", "lengths", "targets"):
        assert torch.equal(getattr(both.train, name)[:1000], getattr(plain.train, name))
    wrong = plain.holdout.targets != _true_of(film, plain.holdout)
    assert torch.equal(only.corrupted, wrong)
    assert torch.equal(both.corrupted[1000:], wrong)
    assert torch.equal(both.corrupted[:1000], plain.corrupted[plain.train.ids])


def test_more_sentences_than_there_are(film: TokenSet) -> None:
    message = r"want 8100 examples, the data set has 8072\. Ask for fewer\.$"
    with pytest.raises(rd.ConfigurationError, match=message):
        _texts(train_examples=8000, holdout_examples=100)
