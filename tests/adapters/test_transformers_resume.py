"""Hugging Face's Trainer: a resumed run goes on as if it had never stopped."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import reducible as rd
from hf_toys import Ids, arguments, bert, gpt, padded, padded_lm, texts

datasets = pytest.importorskip("datasets", reason="reducible[transformers] is not installed")

from reducible.adapters.transformers import SelectionArguments, SelectionTrainer  # noqa: E402

DATA = datasets.Dataset.from_list(texts())


def _trainer(folder: Path, rule: str, **changes: Any) -> tuple[SelectionTrainer, Ids]:
    log = Ids()
    settings = {
        "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 40,
        "save_strategy": "steps", "save_steps": 13,
    }  # fmt: skip
    made = SelectionTrainer(
        bert(), arguments(folder, **(settings | changes)), train_dataset=DATA,
        data_collator=padded, selection=SelectionArguments(selector=rule, keep=0.25),
        loader_options={"record": log, "shadows": {}},
    )  # fmt: skip
    return made, log


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("rule", ["train_loss", "selective_backprop"])
def test_a_run_stopped_inside_a_pass_goes_on_with_the_same_ids(
    rule: str, workers: int, tmp_path: Path
) -> None:
    options = {"dataloader_num_workers": workers, "dataloader_pin_memory": False}
    whole, all_ids = _trainer(tmp_path / "whole", rule, **options)
    whole.train()
    again, ids = _trainer(tmp_path / "again", rule, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-13"))
    assert again.state.global_step == 40
    assert ids.ids == all_ids.ids[13:]
    assert again.model is not None
    assert whole.model is not None
    for mine, theirs in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_run_that_chooses_tokens_goes_on_with_the_same_tokens(tmp_path: Path) -> None:
    def made(folder: Path) -> tuple[SelectionTrainer, Ids]:
        log = Ids()
        settings = arguments(folder, max_steps=12, save_strategy="steps", save_steps=5)
        trainer = SelectionTrainer(
            gpt(), settings, train_dataset=DATA.select_columns(["input_ids", "attention_mask"]),
            data_collator=padded_lm, selection=SelectionArguments("uniform", token_keep=0.5),
            loader_options={"record": log},
        )  # fmt: skip
        return trainer, log

    whole, all_ids = made(tmp_path / "whole")
    whole.train()
    again, ids = made(tmp_path / "again")
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))
    assert ids.ids == all_ids.ids[5:]
    for mine, theirs in zip(again.model.parameters(), whole.model.parameters(), strict=True):  # pyright: ignore[reportOptionalMemberAccess]
        assert torch.equal(mine, theirs)  # tokens are drawn at random, by step


def test_training_again_begins_anew(tmp_path: Path) -> None:
    made, log = _trainer(tmp_path, "uniform", save_strategy="no")
    made.train()
    made.train()
    assert len(log.ids) == 80
    assert log.ids[40:] == log.ids[:40]


def test_a_checkpoint_without_selection_is_refused_with_the_cure(tmp_path: Path) -> None:
    whole, _ = _trainer(tmp_path / "whole", "train_loss", max_steps=13)
    whole.train()
    checkpoint = tmp_path / "copy"
    shutil.copytree(tmp_path / "whole" / "checkpoint-13", checkpoint)
    (checkpoint / "selection-0.safetensors").unlink()
    again, _ = _trainer(tmp_path / "again", "train_loss")
    with pytest.raises(rd.ConfigurationError, match=r"saved without selection.*ignore_data_skip"):
        again.train(resume_from_checkpoint=str(checkpoint))
    anew, ids = _trainer(tmp_path / "anew", "train_loss", ignore_data_skip=True)
    anew.train(resume_from_checkpoint=str(checkpoint))
    assert len(ids.ids) == 27  # the planned updates, on candidates from the beginning


def test_a_checkpoint_of_another_rule_is_refused(tmp_path: Path) -> None:
    whole, _ = _trainer(tmp_path / "whole", "train_loss", max_steps=13)
    whole.train()
    other, _ = _trainer(tmp_path / "other", "grad_norm")
    with pytest.raises(rd.ConfigurationError, match="the state is of another loop"):
        other.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-13"))
