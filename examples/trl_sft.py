"""TRL's SFTTrainer on the tokens that a reference model finds learnable (Rho-1)."""

import datasets
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from reducible.adapters.transformers import SelectionArguments, SelectionMixin
from reducible.lab.data import sentences


class SelectionSFTTrainer(SelectionMixin, SFTTrainer):
    """TRL's trainer, which chooses what it trains on."""


def model(words: int) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=words, n_positions=64, n_embd=32, n_layer=1, n_head=2,
                   bos_token_id=0, eos_token_id=0)
    )  # fmt: skip


def settings(steps: int) -> SFTConfig:
    return SFTConfig(
        "runs/trl", max_steps=steps, per_device_train_batch_size=16, learning_rate=5e-3,
        max_length=48, lr_scheduler_type="cosine", logging_steps=steps, report_to=[],
        use_cpu=True, bf16=False, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip


def main() -> None:
    texts = datasets.Dataset.from_dict({"text": sentences().texts})
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel()
    learn = trainers.BpeTrainer(vocab_size=2_000, special_tokens=["<pad>", "<end>"])
    words.train_from_iterator(texts["text"], learn)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<end>"
    )
    holdout, train = texts.select(range(3_000)), texts.select(range(3_000, 5_000))

    reference = SFTTrainer(model(len(tokenizer)), settings(40), train_dataset=holdout,
                           processing_class=tokenizer)  # fmt: skip
    reference.train()
    trainer = SelectionSFTTrainer(
        model(len(tokenizer)), settings(30), train_dataset=train, processing_class=tokenizer,
        selection=SelectionArguments(selector="rho", token_keep=0.6),
    )  # fmt: skip
    store = trainer.score_irreducible_loss(reference.model.eval(), progress=False)
    trainer.train()
    found = trainer.state.log_history[0]
    print(f"{store.tokens} tokens of {len(store)} sentences were scored by the reference")
    print(f"trained on {found['selection/token_share']:.0%} of the tokens of each update")


if __name__ == "__main__":
    main()
