"""Causal language models in Hugging Face's Trainer: gradients of the chosen rows and tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import reducible as rd
from hf_toys import Ids, arguments, gpt, padded_lm, plain_loop, texts

datasets = pytest.importorskip("datasets", reason="reducible[transformers] is not installed")
from transformers import Trainer  # noqa: E402

from reducible.adapters.transformers import SelectionArguments, SelectionTrainer  # noqa: E402

COLUMNS = ["input_ids", "attention_mask"]
DATA = datasets.Dataset.from_list(texts(128)).select_columns(COLUMNS)
ONE_STEP = {"max_steps": 1, "optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0,
            "lr_scheduler_type": "constant"}  # fmt: skip


def _token_store(seed: int = 5) -> rd.TokenLossStore:
    return rd.score_token_irreducible_loss(
        gpt(seed), rd.WithIds(DATA), collate_fn=rd.collate_with_ids(padded_lm), progress=False
    )


def _trainer(folder: Path, log: Ids, model: Any = None, **changes: Any) -> SelectionTrainer:
    selection = changes.pop("selection", None) or SelectionArguments("train_loss", keep=0.25)
    store = changes.pop("store", None)
    return SelectionTrainer(
        gpt() if model is None else model, arguments(folder, **changes), train_dataset=DATA,
        data_collator=padded_lm, selection=selection, store=store,
        loader_options={"record": log, "shadows": {}},
    )  # fmt: skip


def _step_of(model: Any) -> Tensor:
    """The step that SGD at a rate of 1 took: minus the gradient."""
    before = torch.cat([p.detach().flatten() for p in gpt().parameters()])
    return torch.cat([p.detach().flatten() for p in model.parameters()]) - before


@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_gradient_is_that_of_the_chosen_rows_alone(accumulation: int, tmp_path: Path) -> None:
    """Ratio 1: the items are counted over what is trained on, not over the candidates."""
    batch = {"per_device_train_batch_size": 8 // accumulation,
             "gradient_accumulation_steps": accumulation}  # fmt: skip
    log = Ids()
    made = _trainer(tmp_path, log, **ONE_STEP, **batch)
    made.train()

    class InOrder(Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return torch.utils.data.SequentialSampler(train_dataset)

    alone = InOrder(gpt(), arguments(tmp_path, **ONE_STEP, **batch), data_collator=padded_lm,
                    train_dataset=DATA.select(log.ids[0]))  # fmt: skip
    alone.train()
    mine, theirs = _step_of(made.model), _step_of(alone.model)
    assert theirs.norm() > 0.1
    assert float(mine.norm() / theirs.norm()) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("rule", ["rho", "train_loss"])
def test_the_gradient_is_that_of_the_chosen_tokens_alone(
    rule: str, accumulation: int, tmp_path: Path
) -> None:
    store = _token_store()
    log = Ids()
    made = _trainer(
        tmp_path, log, selection=SelectionArguments(rule, token_keep=0.4), store=store, **ONE_STEP,
        per_device_train_batch_size=8 // accumulation, gradient_accumulation_steps=accumulation,
    )  # fmt: skip
    made.train()
    model = gpt()
    total = torch.zeros(())
    count = 0
    each = 8 // accumulation
    for part in range(accumulation):
        ids = log.ids[0][part * each : (part + 1) * each]
        batch = padded_lm([DATA[i] for i in ids])
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        loss, excess = [], []  # token by token, by hand
        for row, i in enumerate(ids):
            reference = store.lookup(
                torch.tensor([i]), (batch["labels"][row : row + 1] != -100).index_fill(
                    1, torch.tensor([0]), False)
            )[0]  # fmt: skip
            for t in range(1, len(DATA[i]["input_ids"])):
                one = F.cross_entropy(logits[row, t - 1], batch["labels"][row, t])
                loss.append(one)
                known = float(reference[t]) if rule == "rho" else 0.0
                excess.append(float(one.detach()) - known)
        k = int(0.4 * len(loss) + 0.5)
        best = sorted(range(len(loss)), key=lambda j: -excess[j])[:k]
        total = total + torch.stack([loss[j] for j in best]).sum()
        count += k
    (total / count).backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    mine = -_step_of(made.model)
    assert float(mine.norm() / gradient.norm()) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(mine, gradient, rtol=1e-4, atol=1e-6)


def test_sequences_are_chosen_as_in_the_plain_loop(tmp_path: Path) -> None:
    store = rd.score_irreducible_loss(
        gpt(5), rd.WithIds(DATA), task=rd.CausalLM(), progress=False,
        collate_fn=rd.collate_with_ids(padded_lm),
    )  # fmt: skip
    log = Ids()
    made = _trainer(tmp_path, log, selection=SelectionArguments("rho", keep=0.25), store=store,
                    max_steps=3)  # fmt: skip
    made.train()
    by_hand = plain_loop(gpt(), DATA, "rho", steps=3, collate=padded_lm, task=rd.CausalLM(),
                         store=store)  # fmt: skip
    # The Trainer weighs tokens alike, this loop sequences: alike only at the first step.
    assert log.ids[0] == by_hand.ids[0]
    excess = {}
    batch = padded_lm([DATA[i] for i in range(len(DATA))])
    logits = gpt()(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    for i in range(len(DATA)):
        n = len(DATA[i]["input_ids"])
        mean = F.cross_entropy(logits[i, : n - 1], batch["labels"][i, 1:n])
        excess[i] = float(mean.detach() - store.lookup(torch.tensor([i])))
    assert made.batches is not None
    chosen = [excess[i] for i in log.ids[0]]
    assert chosen == sorted(chosen, reverse=True)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # of frameworks
@pytest.mark.parametrize("how", ["bf16", "checkpointing", "compiled", "lora", "clipped"])
def test_selection_goes_with_what_trainers_do(how: str, tmp_path: Path) -> None:
    changes: dict[str, dict[str, Any]] = {
        "bf16": {"bf16": True},
        "checkpointing": {"gradient_checkpointing": True},
        "compiled": {"torch_compile": True, "torch_compile_backend": "eager"},
        "lora": {},
        "clipped": {"max_grad_norm": 0.01},
    }
    plain, log = Ids(), Ids()
    _trainer(tmp_path, plain, max_steps=6).train()
    model: Any = gpt()
    if how == "lora":
        peft = pytest.importorskip("peft")
        model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["c_attn"],
                                                           fan_in_fan_out=True))  # fmt: skip
    made = _trainer(tmp_path, log, model=model, max_steps=6, **changes[how])
    made.train()
    assert [len(ids) for ids in log.ids] == [8] * 6
    if how in ("checkpointing", "compiled"):
        assert log.ids == plain.ids  # the same arithmetic
    elif how != "bf16":
        assert log.ids[0] == plain.ids[0]  # the same weights, at first
    losses = [line["train_loss"] for line in made.state.log_history if "train_loss" in line]
    assert all(torch.tensor(losses).isfinite())


def test_prompts_that_are_masked_are_not_chosen_from(tmp_path: Path) -> None:
    """Labels of −100 are neither counted nor trained on, whichever share is kept."""

    def answers(items: list[Any]) -> dict[str, Tensor]:
        batch = padded_lm(items)
        batch["labels"][:, :3] = -100
        return batch

    store = rd.score_token_irreducible_loss(
        gpt(5), rd.WithIds(DATA), collate_fn=rd.collate_with_ids(answers), progress=False
    )
    assert store.tokens == sum(len(row["input_ids"]) - 3 for row in DATA)
    made = SelectionTrainer(
        gpt(), arguments(tmp_path, max_steps=2), train_dataset=DATA, data_collator=answers,
        selection=SelectionArguments("rho", token_keep=0.5), store=store,
    )  # fmt: skip
    made.train()
    other = SelectionTrainer(
        gpt(), arguments(tmp_path, max_steps=2), train_dataset=DATA, data_collator=padded_lm,
        selection=SelectionArguments("rho", token_keep=0.5), store=store,
    )  # fmt: skip
    with pytest.raises(rd.StoreError, match="its prompt masked since"):
        other.train()


def test_remembered_losses_leave_the_trainers_own_loss_as_it_is(tmp_path: Path) -> None:
    """Tokens weigh alike in it, sequences in what is remembered."""
    plain, remembering = Ids(), Ids()
    first = _trainer(tmp_path, plain, **ONE_STEP)
    first.train()
    selection = SelectionArguments("train_loss", keep=0.25, max_age=4)
    second = _trainer(tmp_path, remembering, selection=selection, **ONE_STEP)
    second.train()
    assert remembering.ids == plain.ids  # nothing is remembered at the first step
    torch.testing.assert_close(_step_of(second.model), _step_of(first.model))
    longer = _trainer(tmp_path, Ids(), selection=selection, max_steps=8)
    longer.train()
    assert longer.batches is not None
    assert longer.batches.ledger.counts.examples_scored < 8 * 32  # four passes over 128 rows


def test_irreducible_losses_are_read_from_the_file_that_is_named(tmp_path: Path) -> None:
    _token_store().save(tmp_path / "tokens")
    by_token = SelectionArguments("rho", token_keep=0.5, irreducible_loss=str(tmp_path / "tokens"))
    _trainer(tmp_path, Ids(), selection=by_token, max_steps=2).train()
    by_row = SelectionArguments("rho", keep=0.5, irreducible_loss=str(tmp_path / "tokens"))
    with pytest.raises(rd.StoreError, match="not a readable store"):
        _trainer(tmp_path, Ids(), selection=by_row)


def test_rules_that_read_class_probabilities_are_refused(tmp_path: Path) -> None:
    made = _trainer(tmp_path, Ids(), selection=SelectionArguments("entropy", keep=0.25))
    with pytest.raises(rd.ConfigurationError, match=r"needs \['mc_logits'\], which CausalLM does"):
        made.train()
