"""What a new user gets wrong in a Trainer, and what he is told."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import reducible as rd
from hf_toys import arguments, bert, gpt, padded, padded_lm, texts

pytest.importorskip("transformers", reason="reducible[transformers] is not installed")
datasets = pytest.importorskip("datasets", reason="datasets is not installed")
from datasets.distributed import split_dataset_by_node  # noqa: E402

from reducible.adapters.transformers import SelectionArguments, SelectionTrainer  # noqa: E402
from reducible.adapters.transformers_data import of_rank  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
DATA = datasets.Dataset.from_list(texts(64)).add_column("key", list(range(100, 164)))
KEYED = DATA.add_column("uid", [f"doc-{i}" for i in range(64)])
STORE = rd.IrreducibleLossStore.from_tensor(torch.rand(64))
TOKENS = rd.TokenLossStore.from_rows(
    [torch.rand(sum(row["attention_mask"]) - 1) for row in texts(64)], ids=torch.arange(64)
)
PLAN = rd.Plan.from_irreducible_loss(
    STORE, range(64), DATA["labels"][:], noise_floor=torch.tensor([0.1, 0.1])
)


def _made(folder: Path, model: Any = None, data: Any = DATA, **settings: Any) -> SelectionTrainer:
    choice = settings.pop("selection", {"selector": "train_loss", "keep": 0.5})
    choice = SelectionArguments(**choice) if isinstance(choice, dict) else choice
    collate = padded_lm if model is not None else padded
    return SelectionTrainer(
        model or bert(), arguments(folder, max_steps=2), train_dataset=data, data_collator=collate,
        selection=choice, **settings,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"selection": {"ids_column": "uid"}, "data": KEYED}, "'uid' holds str, and ids are whole"),
        ({"selection": {"ids_column": "labels"}}, "does not tell rows apart"),
        ({"selection": SimpleNamespace(token_keep=0.5)}, "selection is SimpleNamespace; pass"),
        ({"selection": {"token_keep": 0.5}}, "token_keep chooses tokens of a causal language"),
        ({"store": TOKENS}, "the store is a TokenLossStore, and rows are chosen"),
        (
            {"store": STORE, "selection": {"token_keep": 0.5}, "model": gpt()},
            "the store is a IrreducibleLossStore, and tokens are chosen",
        ),
        ({"data": DATA.to_iterable_dataset(), "plan": PLAN}, "a plan is of rows with positions"),
    ],
)
def test_it_is_told_at_construction(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(rd.ConfigurationError, match=message):
        _made(tmp_path, **settings)


def test_a_rule_without_its_losses_names_all_three_cures(tmp_path: Path) -> None:
    made = _made(tmp_path, selection={"selector": "rho", "keep": 0.5})
    with pytest.raises(
        rd.ConfigurationError, match=r"store=.*irreducible_loss=.*score_irreducible"
    ):
        made.train()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep": 32}, "keep=32 is a share of the candidates here.*per_device_train_batch_size"),
        ({"keep": 0.5, "token_keep": 0.5}, "all rows are trained on if tokens are chosen"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(rd.ConfigurationError, match=message):
        SelectionArguments(**settings)


def test_a_plan_alone_is_all_the_selection_there_is(tmp_path: Path) -> None:
    made = _made(tmp_path, selection=None, plan=PLAN)
    assert (made.selection.selector, made.selection.keep) == ("uniform", 1.0)
    made.train()
    assert made.batches is not None
    assert made.batches.ledger.counts.examples_scored == 0


def test_a_checkpoint_of_other_settings_says_how_to_go_on(tmp_path: Path) -> None:
    made = _made(tmp_path)
    made.args.save_strategy, made.args.save_steps = "steps", 1  # pyright: ignore[reportAttributeAccessIssue]
    made.train()
    other = _made(tmp_path, selection={"selector": "train_loss", "keep": 0.25})
    with pytest.raises(
        rd.ConfigurationError, match=r"other settings of selection.*ignore_data_skip"
    ):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_a_stream_is_trained_on_without_the_columns_that_the_model_does_not_read(
    tmp_path: Path,
) -> None:
    stream = KEYED.to_iterable_dataset()
    choice = {"selector": "train_loss", "keep": 0.5}
    made = _made(tmp_path, data=stream, selection=choice | {"ids_column": "key"})
    made.train()
    assert made.state.global_step == 2
    with pytest.raises(rd.ConfigurationError, match="cannot be scored beforehand"):
        made.score_irreducible_loss(bert(), progress=False)
    words = _made(tmp_path, data=stream, selection=choice | {"ids_column": "uid"})
    with pytest.raises(rd.DataError, match="'uid' holds str, and ids are whole numbers"):
        words.train()


def test_each_process_reads_its_own_part_of_a_stream() -> None:
    stream = DATA.to_iterable_dataset()
    parts = [[row["key"] for row in of_rank(stream, rank, 2)] for rank in range(2)]
    assert sorted(parts[0] + parts[1]) == list(range(100, 164))
    assert len(parts[0]) == len(parts[1]) == 32
    split = split_dataset_by_node(stream, rank=1, world_size=2)
    assert of_rank(split, 1, 2) is split


def test_flattened_rows_are_refused_whatever_their_number(tmp_path: Path) -> None:
    class Flattening(SelectionTrainer):
        padding_free = True

    with pytest.raises(rd.ConfigurationError, match="packing_strategy='wrapped'"):
        Flattening(bert(), arguments(tmp_path), train_dataset=DATA, data_collator=padded)


def test_what_is_logged_of_tokens(tmp_path: Path) -> None:
    made = _made(tmp_path, model=gpt(), selection={"selector": "train_loss", "token_keep": 0.5})
    made.args.logging_strategy, made.args.logging_steps = "steps", 1  # pyright: ignore[reportAttributeAccessIssue]
    made.train()
    lines = [line for line in made.state.log_history if "loss" in line]
    assert lines
    for line in lines:
        assert line["selection/token_share"] == pytest.approx(0.5, abs=0.02)
        assert line["selection/token_loss"] > line["selection/token_loss_all"] > 0
        assert line["selection/token_loss"] == pytest.approx(line["loss"], abs=1e-3)


# -- fits ------------------------------------------------------------------------------------------


def test_a_model_in_place_of_a_function() -> None:
    with pytest.raises(rd.ConfigurationError, match="pass a function that makes a new one"):
        rd.fit_irreducible_loss(bert(), rd.WithIds(texts(8)), rd.WithIds(texts(8, seed=1)),  # pyright: ignore[reportArgumentType]
                                task=rd.SequenceClassification(), progress=False)  # fmt: skip


def test_a_collator_that_knows_nothing_of_ids_is_noted() -> None:
    with pytest.raises(TypeError, match="indices") as caught:
        rd.fit_irreducible_loss(bert, rd.WithIds(texts(8)), rd.WithIds(texts(8, seed=1)),
                                task=rd.SequenceClassification(), collate_fn=padded,
                                progress=False)  # fmt: skip
    assert "reducible.collate_with_ids(collate_fn)" in caught.value.__notes__[0]


def test_ids_of_a_list_and_what_a_store_says_of_itself(tmp_path: Path) -> None:
    assert rd.WithIds(texts(3), ids=[7, 5, 9])[1].ids == 5
    assert repr(STORE) == "<irreducible losses of 64 examples>"
    TOKENS.save(tmp_path / "tokens.safetensors")
    with pytest.raises(rd.StoreError, match=r"load it with reducible\.TokenLossStore\.load"):
        rd.IrreducibleLossStore.load(tmp_path / "tokens.safetensors")


def test_rows_without_a_score_do_not_spoil_the_mean() -> None:
    metrics = rd.SelectionMetrics()
    metrics.write(0, torch.tensor([1, 2]), torch.tensor([1.0, float("nan")]), None)
    assert metrics.take()["selection/score"] == 1.0
