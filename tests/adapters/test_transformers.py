"""Hugging Face's Trainer: the plain loop's picks, what was planned happens, ids survive."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

import reducible as rd
from hf_toys import Ids, arguments, bert, padded, plain_loop, texts

datasets = pytest.importorskip("datasets", reason="reducible[transformers] is not installed")
from transformers import HfArgumentParser, Trainer, TrainingArguments  # noqa: E402

from reducible.adapters.transformers import SelectionArguments, SelectionTrainer  # noqa: E402

DATA = datasets.Dataset.from_list(texts())


def trainer(
    folder: Path, *, rule: str = "train_loss", keep: float = 0.25, data: Any = DATA, **changes: Any
) -> tuple[SelectionTrainer, Ids]:
    log = Ids()
    options = changes.pop("options", {})
    made = SelectionTrainer(
        bert(),
        arguments(folder, **changes),
        train_dataset=data,
        data_collator=padded,
        selection=SelectionArguments(selector=rule, keep=keep),
        loader_options={"record": log, "shadows": {}},
        **options,
    )
    return made, log


@pytest.mark.parametrize("rule", ["train_loss", "uniform", "grad_norm_is", "infobatch"])
def test_the_picks_of_the_plain_loop_over_200_steps(rule: str, tmp_path: Path) -> None:
    keep = 1.0 if rule == "infobatch" else 0.25
    made, log = trainer(tmp_path, rule=rule, keep=keep, max_steps=200)
    made.train()
    model = bert()
    by_hand = plain_loop(model, DATA, rule, steps=200, keep=keep)
    assert log.ids == by_hand.ids
    torch.testing.assert_close(torch.tensor(log.weights), torch.tensor(by_hand.weights))
    assert made.model is not None
    for mine, theirs in zip(made.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_rows_of_an_update_are_shared_over_its_micro_batches(
    accumulation: int, tmp_path: Path
) -> None:
    seen: list[int] = []

    class Watching(SelectionTrainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append(len(inputs["labels"]))
            return super().compute_loss(model, inputs, *args, **kwargs)

    log = Ids()
    made = Watching(
        bert(),
        arguments(
            tmp_path,
            per_device_train_batch_size=8 // accumulation,
            gradient_accumulation_steps=accumulation,
            max_steps=-1,
            num_train_epochs=2,
        ),
        train_dataset=DATA,
        data_collator=padded,
        rule="train_loss",
        selection=SelectionArguments(keep=0.25),
        loader_options={"record": log, "shadows": {}},
    )
    made.train()
    assert {len(ids) for ids in log.ids} == {8}
    assert seen == [8 // accumulation] * (64 * accumulation)
    assert made.state.global_step == 64 == len(log.ids)  # two epochs of 256 rows, 8 at a time
    schedule: Any = made.lr_scheduler
    assert schedule.get_last_lr() == [0.0, 0.0]
    assert made.state.epoch == 2.0
    assert made.batches is not None
    assert made.batches.epoch == 7  # eight passes over the candidates: 64 updates of 32 each


@pytest.mark.parametrize(
    ("rows", "accumulation", "drop"), [(250, 4, False), (250, 4, True), (70, 1, False)]
)
def test_epochs_have_the_updates_that_they_have_without_selection(
    rows: int, accumulation: int, drop: bool, tmp_path: Path
) -> None:
    data = datasets.Dataset.from_list(texts(rows))
    settings = {
        "per_device_train_batch_size": 4, "gradient_accumulation_steps": accumulation,
        "max_steps": -1, "num_train_epochs": 3, "dataloader_drop_last": drop,
    }  # fmt: skip
    plain = Trainer(bert(), arguments(tmp_path, **settings), train_dataset=data,
                    data_collator=padded)  # fmt: skip
    plain.train()
    made, log = trainer(tmp_path, data=data, **settings)
    made.train()
    assert made.state.global_step == plain.state.global_step == len(log.ids)
    assert made.state.epoch == plain.state.epoch
    assert {len(ids) for ids in log.ids} == {4 * accumulation}
    dataloader = made.get_train_dataloader()
    assert made.num_examples(dataloader) == rows


def test_evaluation_is_left_alone(tmp_path: Path) -> None:
    held_out = datasets.Dataset.from_list(texts(40, seed=9))
    made, _ = trainer(
        tmp_path, eval_strategy="steps", eval_steps=4, options={"eval_dataset": held_out}
    )
    made.train()
    assert [line["step"] for line in made.state.log_history if "eval_loss" in line] == [4, 8, 12]
    plain = Trainer(made.model, made.args, eval_dataset=held_out, data_collator=padded)
    assert made.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"])
    assert made.batches is not None
    assert made.batches.ledger.seconds["evaluate"] > 0


def test_ids_of_a_column_survive_though_the_model_does_not_read_it(tmp_path: Path) -> None:
    keyed = DATA.add_column("key", [10**12 + 7 * i for i in range(len(DATA))])
    log = Ids()
    made = SelectionTrainer(
        bert(), arguments(tmp_path), train_dataset=keyed, data_collator=padded, rule="train_loss",
        selection=SelectionArguments(ids_column="key", keep=0.25),
        loader_options={"record": log, "shadows": {}},
    )  # fmt: skip
    made.train()
    by_position, positions = trainer(tmp_path)
    by_position.train()
    assert log.ids == [[10**12 + 7 * i for i in ids] for ids in positions.ids]


def test_what_cannot_work_is_told_at_construction(tmp_path: Path) -> None:
    def make(data: Any = DATA, **settings: Any) -> SelectionTrainer:
        return SelectionTrainer(
            bert(), arguments(tmp_path), train_dataset=data, data_collator=padded,
            selection=SelectionArguments(**settings),
        )  # fmt: skip

    with pytest.raises(rd.ConfigurationError, match=r"no column 'key' of ids .* remove_columns"):
        make(ids_column="key")
    with pytest.raises(rd.ConfigurationError, match="a candidate batch has 800 rows, but there"):
        make(keep=0.01)
    with pytest.raises(rd.ConfigurationError, match="keep must be"):
        make(keep=0.0)
    with pytest.raises(rd.ConfigurationError, match=r"updates_per_scoring=3 of a share of 0\.5"):
        make(keep=0.5, updates_per_scoring=3)
    with pytest.raises(rd.ConfigurationError, match="name the column of their ids"):
        make(data=DATA.to_iterable_dataset())
    with pytest.raises(rd.ConfigurationError, match=r"rhoo"):
        make(selector="rhoo")


def test_weights_and_a_loss_of_the_trainers_own_do_not_go_together(tmp_path: Path) -> None:
    made, _ = trainer(tmp_path, rule="grad_norm_is", label_smoothing_factor=0.1)
    with pytest.raises(rd.ConfigurationError, match="that takes no weights"):
        made.train()


def test_a_rule_that_draws_blindly_loads_what_it_trains_on_alone(tmp_path: Path) -> None:
    """With its figures logged, too."""
    loaded: list[int] = []

    def counting(items: list[Any]) -> Any:
        loaded.append(len(items))
        return padded(items)

    made = SelectionTrainer(
        bert(), arguments(tmp_path), train_dataset=DATA, data_collator=counting,
        rule="uniform", selection=SelectionArguments(keep=0.25),
    )  # fmt: skip
    made.train()
    assert set(loaded) == {8}


def test_a_plan_in_two_lines(tmp_path: Path) -> None:
    """Together with a rule, and alone: then every row of the plan in its turn."""
    store = rd.IrreducibleLossStore.from_tensor(torch.linspace(0.1, 5.0, 256))
    labels, floor = torch.tensor(DATA["labels"][:]), torch.tensor([0.05, 0.05])
    plan = rd.Plan.from_irreducible_loss(store, range(256), labels, noise_floor=floor)
    for rule, keep in (("uniform", 1.0), ("train_loss", 0.5)):
        made, log = trainer(tmp_path, rule=rule, keep=keep, max_steps=40, options={"plan": plan})
        made.train()
        assert made.state.global_step == 40
        assert {i for ids in log.ids for i in ids} <= set(plan.ids.tolist())


def test_a_streamed_data_set_with_a_column_of_ids(tmp_path: Path) -> None:
    stream = DATA.add_column("key", list(range(len(DATA)))).to_iterable_dataset()
    log = Ids()
    made = SelectionTrainer(
        bert(), arguments(tmp_path, max_steps=20), train_dataset=stream, data_collator=padded,
        rule="train_loss", selection=SelectionArguments(ids_column="key", keep=0.25),
        loader_options={"record": log, "shadows": {}},
    )  # fmt: skip
    made.train()
    assert [len(ids) for ids in log.ids] == [8] * 20
    assert all(set(ids) <= set(range(32 * (n % 8), 32 * (n % 8) + 32))
               for n, ids in enumerate(log.ids))  # fmt: skip


def test_what_is_logged(tmp_path: Path) -> None:
    made = SelectionTrainer(
        bert(), arguments(tmp_path, logging_strategy="steps", logging_steps=4),
        train_dataset=DATA, data_collator=padded, rule="train_loss",
        selection=SelectionArguments(keep=0.25),
    )  # fmt: skip
    made.train()
    lines = [line for line in made.state.log_history if "loss" in line]
    assert len(lines) == 3
    for line in lines:
        assert 0 < line["selection/scoring_share"] < 1
        assert 0 <= line["selection/overlap_with_chance"] < 1
        assert line["selection/score"] >= line["loss"] - 1e-4  # losses of the chosen, before


def test_labels_that_are_known_to_be_wrong_are_logged(tmp_path: Path) -> None:
    wrong = torch.arange(0, len(DATA), 2)
    metrics = rd.SelectionMetrics(corrupted=wrong)
    made = SelectionTrainer(
        bert(), arguments(tmp_path, max_steps=4, logging_strategy="steps", logging_steps=2),
        train_dataset=DATA, data_collator=padded, loader_options={"record": metrics},
        selection=SelectionArguments("train_loss", keep=0.25),
    )  # fmt: skip
    assert made.metrics is None
    made.train()
    assert made.metrics is metrics
    lines = [line for line in made.state.log_history if "loss" in line]
    assert len(lines) == 2
    assert all(0 < line["selection/corrupted"] < 1 for line in lines)


def test_what_is_passed_over_is_not_counted_as_trained(tmp_path: Path) -> None:
    made, log = trainer(tmp_path, max_steps=10, include_num_input_tokens_seen="all")
    made.train()
    assert made.batches is not None
    counts = made.batches.ledger.counts
    assert (counts.examples_scored, counts.examples_trained, counts.updates) == (320, 80, 10)
    longest = [max(len(DATA[i]["input_ids"]) for i in ids) for ids in log.ids]
    assert made.state.num_input_tokens_seen == sum(8 * length for length in longest)
    done = next(line for line in made.state.log_history if "train_samples_per_second" in line)
    rate = done["train_samples_per_second"] * done["train_runtime"]
    assert rate == pytest.approx(80, rel=0.05)


def test_arguments_are_read_from_a_command_line(tmp_path: Path) -> None:
    parser = HfArgumentParser((TrainingArguments, SelectionArguments))  # pyright: ignore[reportArgumentType]
    args, selection = parser.parse_args_into_dataclasses(
        ["--output_dir", str(tmp_path), "--selector", "rho", "--keep", "0.2", "--max_age", "30"]
    )
    assert args.output_dir == str(tmp_path)
    assert (selection.selector, selection.keep, selection.scoring.max_age) == ("rho", 0.2, 30)


@pytest.mark.parametrize(
    "name",
    [
        "get_batch_samples", "training_step", "compute_loss", "get_train_dataloader",
        "num_examples", "evaluate", "log", "_save_checkpoint", "_load_optimizer_and_scheduler",
        "_inner_training_loop",
    ],
)  # fmt: skip
def test_overrides_take_what_the_installed_trainer_passes(name: str) -> None:
    mine = inspect.signature(getattr(SelectionTrainer, name)).parameters
    theirs = inspect.signature(getattr(Trainer, name)).parameters
    if not any(p.kind is p.VAR_POSITIONAL for p in mine.values()):
        assert list(mine) == list(theirs)
    else:
        named = [n for n, p in mine.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
        assert named == list(theirs)[: len(named)]


def test_hooks_that_are_called_exist() -> None:
    for name in ("_get_num_items_in_batch", "_remove_unused_columns", "_get_output_dir",
                 "_get_collator_with_removed_columns", "_get_train_sampler"):  # fmt: skip
        assert callable(getattr(Trainer, name))
