"""Small models, data and collators for tests of trainers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import reducible as rd

WORDS = 50


class Ids:
    """A log that keeps the ids of every update, and their weights."""

    def __init__(self) -> None:
        self.ids: list[list[int]] = []
        self.weights: list[list[float]] = []

    def write(self, step: int, ids: Tensor, scores: Any, weights: Tensor | None) -> None:
        self.ids.append(ids.tolist())
        self.weights.append([] if weights is None else weights.tolist())


def texts(rows: int = 256, *, seed: int = 0) -> list[dict[str, Any]]:
    """Token lists of 4 to 11 words, with a label and a column that no model reads."""
    g = torch.Generator().manual_seed(seed)
    made: list[dict[str, Any]] = []
    for length in torch.randint(4, 12, (rows,), generator=g).tolist():
        ids = torch.randint(1, WORDS, (length,), generator=g).tolist()
        kind = int(sum(ids) % 2)
        made.append({"input_ids": ids, "attention_mask": [1] * length, "labels": kind, "note": "x"})
    return made


def padded(items: list[Any]) -> dict[str, Tensor]:
    """Pads on the right; labels as they are."""
    longest = max(len(item["input_ids"]) for item in items)
    batch = {
        name: torch.tensor([i[name] + [0] * (longest - len(i[name])) for i in items])
        for name in ("input_ids", "attention_mask")
    }
    return batch | {"labels": torch.tensor([i["labels"] for i in items])}


def padded_lm(items: list[Any]) -> dict[str, Tensor]:
    """Pads on the right; every token is to be predicted."""
    batch = padded([item | {"labels": 0} for item in items])
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return batch | {"labels": labels}


def bert(seed: int = 1) -> nn.Module:
    """A classifier without dropout, of a few thousand parameters."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(seed)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=WORDS, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )
    )  # fmt: skip


def gpt(seed: int = 1) -> Any:
    """A causal language model without dropout, of a few thousand parameters."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=WORDS, n_positions=32, n_embd=16, n_layer=1, n_head=2, resid_pdrop=0.0,
            embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip


def arguments(folder: Path, **changes: Any) -> Any:
    """TrainingArguments for the CPU, silent."""
    from transformers import TrainingArguments

    settings: dict[str, Any] = {
        "per_device_train_batch_size": 8, "max_steps": 12, "learning_rate": 1e-3,
        "report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no",
        "logging_strategy": "no", "seed": 3,
    }  # fmt: skip
    return TrainingArguments(str(folder), **(settings | changes))


def plain_loop(
    model: nn.Module,
    data: Any,
    rule: str,
    *,
    steps: int,
    keep: float = 0.25,
    n_b: int = 8,
    collate: Any = padded,
    task: Any = None,
    store: Any = None,
) -> Ids:
    """What a user would write by hand with the same settings; trains the model."""
    from transformers import get_linear_schedule_with_warmup

    task = task or rd.SequenceClassification()
    loader = torch.utils.data.DataLoader(
        rd.WithIds(data), batch_size=int(n_b / keep), shuffle=True, drop_last=True,
        generator=torch.Generator().manual_seed(3), collate_fn=rd.collate_with_ids(collate),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, steps)
    log = Ids()
    batches = rd.SelectingLoader(
        loader, model, rd.selector(rule), keep=n_b, task=task, seed=3, record=log, store=store,
        scoring=rd.Scoring(batchnorm="running"), total_steps=steps,
    )  # fmt: skip
    model.train()
    while batches.step < steps:
        for chosen in batches:
            batch = task.unpadded(chosen.batch)
            loss = task.loss(task.forward(model, batch).logits, task.targets(batch))
            batches.remember(chosen.ids, loss)
            rd.weighted_mean(loss, chosen.weights).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if batches.step == steps:
                break
    return log
