"""RHO-LOSS in Hugging Face's Trainer: a pretrained MiniLM on film sentences, 10 % wrong labels."""

import datasets
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    TrainingArguments,
)

import reducible as rd
from reducible.adapters.transformers import SelectionArguments, SelectionTrainer
from reducible.lab.data import flip_labels, sentences
from reducible.lab.encoders import bag_of_embeddings, minilm_folder


def main() -> None:
    folder = minilm_folder()  # the installed files of all-MiniLM-L6-v2; a name on the hub will do
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = sentences()
    noisy = flip_labels(texts.targets, 0.1, num_classes=2, generator=torch.Generator())
    columns = {"text": texts.texts, "labels": noisy.targets.tolist()}
    data = datasets.Dataset.from_dict(columns | {"truth": texts.targets.tolist()}).shuffle(seed=0)
    data = data.map(lambda rows: tokenizer(rows["text"], truncation=True, max_length=32),
                    batched=True, remove_columns="text")  # fmt: skip
    holdout, train = data.select(range(3_000)), data.select(range(3_000, 8_000))
    test = (
        data.select(range(9_000, 9_400)).remove_columns("labels").rename_column("truth", "labels")
    )
    pad = DataCollatorWithPadding(tokenizer)

    store = rd.fit_irreducible_loss(
        bag_of_embeddings, rd.WithIds(holdout), rd.WithIds(train), epochs=10, progress=False,
        task=rd.SequenceClassification(), collate_fn=rd.collate_with_ids(pad),
    )  # fmt: skip
    trainer = SelectionTrainer(
        AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2),
        TrainingArguments("runs/huggingface", per_device_train_batch_size=16, max_steps=30,
                          learning_rate=2e-4, warmup_steps=5, logging_steps=15, report_to=[],
                          use_cpu=True, save_strategy="no", disable_tqdm=True),
        train_dataset=train, eval_dataset=test, data_collator=pad, store=store,
        selection=SelectionArguments(selector="rho", keep=0.25),
        compute_metrics=lambda p: {"accuracy": (p.predictions.argmax(1) == p.label_ids).mean()},
    )  # fmt: skip
    trainer.train()
    print(f"test accuracy {trainer.evaluate()['eval_accuracy']:.1%}")


if __name__ == "__main__":
    main()
