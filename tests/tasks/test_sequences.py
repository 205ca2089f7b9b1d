"""Tasks on texts: tokens and masks, features of transformers, padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reducible.scoring.evidence import measure
from reducible.scoring.settings import Scoring
from reducible.tasks import Classification, SequenceClassification
from reducible.types import Candidates, ConfigurationError, DataError
from task_toys import X, Y

TOKENS = {
    "input_ids": torch.tensor([[4, 5, 6, 7, 8], [9, 5, 4, 0, 0], [6, 0, 0, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]),
    "labels": torch.tensor([0, 2, 1]),
}
SIZES = {
    "vocab_size": 20,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "num_labels": 3,
    "pad_token_id": 0,
    "initializer_range": 0.5,  # weights so large that what is cut or padded shows
}
HEADS = {
    "bert": "classifier",
    "roberta": "classifier.out_proj",
    "distilbert": "classifier",
    "modernbert": "classifier",
    "gpt2": "score",
    "llama": "score",
}


def transformer(kind: str) -> nn.Module:
    """A small model of transformers, from its configuration alone."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    special = {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    config = AutoConfig.for_model(kind, **SIZES, **special)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return AutoModelForSequenceClassification.from_config(config).eval()


def candidates(batch: dict[str, Tensor]) -> Candidates:
    return Candidates(torch.arange(3), batch)


class Bag(nn.Module):
    """Mean of token vectors, then a linear layer; keeps what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 4)
        self.head = nn.Linear(4, 3)
        self.seen: dict[str, Tensor] = {}

    def forward(self, input_ids: Tensor, **others: Tensor) -> Tensor:
        self.seen = {"input_ids": input_ids, **others}
        mask = others["attention_mask"].unsqueeze(2)  # [B, T, 1]
        return self.head((self.words(input_ids) * mask).sum(1) / mask.sum(1))


@pytest.mark.parametrize("kind", HEADS)
def test_features_of_a_transformer_are_what_its_classifier_takes_in(kind: str) -> None:
    model = transformer(kind)
    task = SequenceClassification()
    with torch.inference_mode():
        plain = task.forward(model, TOKENS)
        out = task.forward(model, TOKENS, features=True)
        assert out.features is not None
        assert out.features.shape == (3, 16)
        head = model.get_submodule(HEADS[kind])
        torch.testing.assert_close(head(out.features), out.logits)
    assert plain.features is None
    torch.testing.assert_close(plain.logits, out.logits)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_features_of_bert_are_its_pooled_output_and_of_gpt2_its_last_token() -> None:
    task = SequenceClassification()
    inputs = {k: TOKENS[k] for k in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        bert: Any = transformer("bert")
        found = task.forward(bert, TOKENS, features=True).features
        torch.testing.assert_close(found, bert.bert(**inputs).pooler_output)
        gpt2: Any = transformer("gpt2")
        found = task.forward(gpt2, TOKENS, features=True).features
        hidden = gpt2.transformer(**inputs).last_hidden_state  # [B, T, D]
        torch.testing.assert_close(found, hidden[[0, 1, 2], [4, 2, 0]])


def test_padding_changes_no_loss_of_a_transformer() -> None:
    model, task = transformer("bert"), SequenceClassification()
    loss = measure(model, candidates(TOKENS), frozenset({"loss"}), task=task).loss
    alone = {"input_ids": [9, 5, 4], "attention_mask": [1, 1, 1]}
    row = {k: torch.tensor([v]) for k, v in alone.items()} | {"labels": torch.tensor([2])}
    single = measure(model, Candidates(torch.tensor([1]), row), frozenset({"loss"}), task=task).loss
    assert loss is not None
    assert single is not None
    torch.testing.assert_close(loss[1:2], single)


def test_scoring_by_the_start_of_a_text_cuts_tokens_and_mask_alike() -> None:
    model, task = transformer("bert"), SequenceClassification()
    needs = frozenset({"loss", "features"})
    cut = {k: v[:, :2] if v.dim() == 2 else v for k, v in TOKENS.items()}
    expected = measure(model, candidates(cut), needs, task=task)
    found = measure(model, candidates(TOKENS), needs, Scoring(max_length=2), task=task)
    whole = measure(model, candidates(TOKENS), needs, Scoring(max_length=9), task=task)
    assert found.loss is not None
    assert whole.loss is not None
    assert torch.equal(found.loss, expected.require("loss"))
    assert torch.equal(found.require("features"), expected.require("features"))
    assert not torch.allclose(found.loss[:2], whole.loss[:2])
    torch.testing.assert_close(found.loss[2], whole.loss[2])  # one token long


def test_the_model_is_called_with_tokens_alone() -> None:
    model = Bag()
    extra = {"token_type_ids": torch.zeros(3, 5).long(), "text": ["a", "b", "c"], "length": Y[:3]}
    out = SequenceClassification().forward(model, {**TOKENS, **extra}, features=True)
    assert sorted(model.seen) == ["attention_mask", "input_ids", "token_type_ids"]
    assert out.features is not None
    assert torch.equal(model.head(out.features), out.logits)


def test_a_mask_is_made_from_the_token_that_pads() -> None:
    model = Bag()
    bare = {k: v for k, v in TOKENS.items() if k != "attention_mask"}
    SequenceClassification(pad_id=0).forward(model, bare)
    assert torch.equal(model.seen["attention_mask"], TOKENS["attention_mask"])
    SequenceClassification(pad_id=5).forward(model, TOKENS)  # a mask that is there counts
    assert torch.equal(model.seen["attention_mask"], TOKENS["attention_mask"])
    with pytest.raises(DataError, match=r"no 'attention_mask' in a batch .*read as text.*pad_id="):
        SequenceClassification().forward(model, bare)
    with pytest.raises(ConfigurationError, match="pad_id must be a whole number in"):
        SequenceClassification(pad_id=-1)


def test_columns_that_are_padding_in_every_row_go() -> None:
    rows = {k: v[1:] for k, v in TOKENS.items()} | {"text": ["b", "c"]}
    cut = SequenceClassification().unpadded(rows)
    assert cut["input_ids"].tolist() == [[9, 5, 4], [6, 0, 0]]
    assert cut["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert cut["labels"].tolist() == [2, 1]
    assert cut["text"] == ["b", "c"]
    whole = SequenceClassification(pad_id=0).unpadded({"input_ids": TOKENS["input_ids"]})
    assert whole["input_ids"].tolist() == TOKENS["input_ids"].tolist()


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((X, Y), r"no 'input_ids' in a batch of tuple of length 2.*Classification\(inputs="),
        ({"x": X}, r"no 'input_ids' in a batch of dict with keys \['x'\]"),
        ({**TOKENS, "input_ids": X}, r"of shape \[B, T\], got torch\.float32 of shape \(6, 4\)"),
        ({**TOKENS, "input_ids": [[4], [5, 6]]}, r"got list\. Rows of unequal length\? Pad them"),
        ({**TOKENS, "attention_mask": Y}, r"shape \(6,\) for input_ids of shape \(3, 5\): both"),
    ],
)
def test_batches_that_are_no_tokens(batch: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        SequenceClassification().forward(Bag(), batch)


def test_errors_name_the_task_that_raised_them() -> None:
    task = SequenceClassification()
    with pytest.raises(DataError, match=r"Name them: SequenceClassification\(targets="):
        task.targets({"input_ids": X})
    with pytest.raises(DataError, match=r"labels are named as SequenceClassification\(targets="):
        task.targets({"labels": Y.float()})
    named = SequenceClassification(targets="kind", label_smoothing=0.1)
    assert named.targets({"kind": Y}).tolist() == Y.tolist()
    with pytest.raises(DataError, match="the model has no module 'top'"):
        SequenceClassification(features="top").forward(Bag(), TOKENS, features=True)
    with pytest.raises(ConfigurationError, match="label_smoothing must be a number in"):
        SequenceClassification(label_smoothing=1.0)


def test_a_layer_whose_rows_are_not_the_logits_is_no_head() -> None:
    class Mean(Bag):
        def forward(self, input_ids: Tensor, **others: Tensor) -> Tensor:
            return self.head(self.words(input_ids)).mean(1)

    with pytest.raises(DataError, match=r"SequenceClassification\(features='<module name>'\)"):
        SequenceClassification().forward(Mean(), TOKENS, features=True)


def test_the_classifier_layer_is_looked_for_once() -> None:
    model, task = Bag(), SequenceClassification()
    passes: list[int] = []
    model.register_forward_hook(lambda *_: passes.append(1))
    for expected in (2, 3, 4):  # the first time, a trial pass more
        task.forward(model, TOKENS, features=True)
        assert len(passes) == expected


def test_losses_are_those_of_classification() -> None:
    logits, labels = torch.randn(6, 3), Y
    for smoothing in (0.0, 0.2):
        torch.testing.assert_close(
            SequenceClassification(label_smoothing=smoothing).loss(logits, labels),
            Classification(label_smoothing=smoothing).loss(logits, labels),
        )
