"""TRL's SFTTrainer with selection: rows and tokens, packs, a reference model as it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import reducible as rd
from hf_toys import Ids, gpt, texts

pytest.importorskip("trl", reason="TRL is not installed")
import datasets
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from reducible.adapters.transformers import SelectionArguments, SelectionMixin

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


class SelectionSFTTrainer(SelectionMixin, SFTTrainer):
    """As the documentation says."""


def _words() -> PreTrainedTokenizerFast:
    words = {f"w{i}": i for i in range(3, 50)} | {"<pad>": 0, "<eos>": 1, "<unk>": 2}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def _said(ids: list[int]) -> str:
    return " ".join(f"w{i}" for i in ids if i > 2)


DATA = datasets.Dataset.from_list(
    [
        {"prompt": _said(ids[:2]) + " w5", "completion": " " + _said(ids[2:])}
        for ids in (row["input_ids"] for row in texts(96))
    ]
)  # fmt: skip


def _trainer(folder: Path, selection: SelectionArguments, **changes: Any) -> Any:
    log = Ids()
    options = changes.pop("options", {})
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 4,
        "report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no",
        "logging_steps": 2, "seed": 3, "bf16": False, "max_length": 16,
    }  # fmt: skip
    made = SelectionSFTTrainer(
        gpt(), SFTConfig(str(folder), **(settings | changes)), train_dataset=DATA,
        processing_class=_words(), selection=selection,
        loader_options={"record": log, "shadows": {}}, **options,
    )  # fmt: skip
    return made, log


def test_rows_are_chosen_by_what_a_reference_model_says_of_completions(tmp_path: Path) -> None:
    made, log = _trainer(tmp_path, SelectionArguments("rho", keep=0.25))
    store = made.score_irreducible_loss(gpt(9), batch_size=16, progress=False)
    assert len(store) == len(made.train_dataset)
    made.train()
    assert [len(ids) for ids in log.ids] == [8] * 4
    assert any("entropy" in line for line in made.state.log_history)  # TRL's own figures


def test_tokens_of_completions_are_chosen(tmp_path: Path) -> None:
    made, log = _trainer(tmp_path, SelectionArguments("rho", token_keep=0.5))
    store = made.score_irreducible_loss(gpt(9), batch_size=16, progress=False)
    assert isinstance(store, rd.TokenLossStore)
    made.train()
    assert [len(ids) for ids in log.ids] == [8] * 4
    losses = [line["loss"] for line in made.state.log_history if "loss" in line]
    assert len(losses) == 2
    assert all(torch.tensor(losses).isfinite())


def test_packs_made_by_the_collator_are_refused_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(
        rd.ConfigurationError, match=r"flattens examples.*packing_strategy='wrapped'"
    ):
        _trainer(tmp_path, SelectionArguments("train_loss", keep=0.5), packing=True)
