"""Tasks: finding inputs, labels, logits, features; per-example losses."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reducible.lab.models import MODELS
from reducible.scoring.evidence import measure
from reducible.scoring.settings import Scoring
from reducible.tasks import Classification, SequenceClassification, per_example
from reducible.types import Candidates, ConfigurationError, DataError

X, Y = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])


class ByKeyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, *, a: Tensor, b: Tensor) -> Any:
        return SimpleNamespace(logits=self.head(a + b))


# -- targets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [(X, Y), [X, Y], *({"x": X, k: Y} for k in ("labels", "y"))])
def test_targets_are_found(batch: Any) -> None:
    assert Classification().targets(batch).tolist() == Y.tolist()


def test_nothing_is_padding_where_batches_are_no_texts() -> None:
    batch = (torch.zeros(2, 3), torch.zeros(2))
    assert Classification().unpadded(batch) is batch


@pytest.mark.parametrize("key", ["labels", "label", "targets", "target", "y"])
def test_every_usual_key(key: str) -> None:
    assert Classification().targets({"x": X, key: Y}) is Y


@pytest.mark.parametrize(
    ("field", "batch"),
    [("kind", {"x": X, "kind": Y}), (2, (X, X, Y)), (lambda b: b[1]["k"], (X, {"k": Y}))],
)
def test_targets_are_named(field: Any, batch: Any) -> None:
    assert Classification(targets=field).targets(batch).tolist() == Y.tolist()


def test_targets_become_int64() -> None:
    assert Classification().targets((X, Y.int())).dtype == torch.int64


@pytest.mark.parametrize("batch", [X, (X, Y, Y), {"x": X, "kind": Y}, 3])
def test_labels_that_cannot_be_found(batch: Any) -> None:
    with pytest.raises(DataError, match=r"cannot find the labels in a batch of .*Name them"):
        Classification().targets(batch)


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(DataError, match=r"no targets at 'kind' in a batch of dict with keys \['x"):
        Classification(targets="kind").targets({"x": X})
    with pytest.raises(DataError, match="no targets at 4 in a batch of tuple of length 2"):
        Classification(targets=4).targets((X, Y))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Y.float(), r"float32 of shape \(6,\): floats that hold whole numbers. Take y.long\(\)"),
        (
            Y + 0.5,
            r"float32 of shape \(6,\): no classes. Probabilities, or targets of a regression",
        ),
        (F.one_hot(Y, 3), r"int64 of shape \(6, 3\), which is one-hot. Take y.argmax\(dim=1\)"),
        (F.one_hot(Y, 3).float(), r"float32 of shape \(6, 3\), which is one-hot. Take y.argmax"),
        (torch.stack([Y, Y + 1], 1), r"shape \(6, 2\): 2 numbers for each example. Several labels"),
        ([0, 1], r"got list. Numbers\? Make them a tensor in the loader's collate_fn"),
        (["cat", "dog"], r"strings such as 'cat'. Number the classes once, outside the loop"),
        (torch.tensor(1), r"got int64 of shape \(\)"),
    ],
)
def test_labels_of_another_kind(wrong: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        Classification().targets((X, wrong))
    assert "named as Classification(targets=<key" in str(caught.value)


def test_labels_of_one_column_are_labels() -> None:
    assert Classification().targets((X, Y.view(6, 1).int())).tolist() == Y.tolist()


# -- forward --------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["inputs", "input", "x", "image", "images", "pixel_values"])
def test_inputs_by_every_usual_key(key: str) -> None:
    model = nn.Linear(4, 3)
    out = Classification().forward(model, {key: X, "label": Y, "extra": Y})
    assert torch.equal(out.logits, model(X))
    assert out.features is None


def test_what_is_not_the_target_is_passed_by_keyword() -> None:
    model = ByKeyword()
    out = Classification().forward(model, {"a": X, "b": X, "labels": Y})
    assert torch.equal(out.logits, model.head(2 * X))


def test_inputs_are_named() -> None:
    model = nn.Linear(4, 3)
    task = Classification(inputs=lambda b: b["deep"][0], targets="kind")
    assert torch.equal(task.forward(model, {"deep": [X], "kind": Y}).logits, model(X))
    assert torch.equal(Classification(inputs=1).forward(model, (Y, X)).logits, model(X))
    with pytest.raises(DataError, match="no inputs at 'deep'"):
        Classification(inputs="deep").forward(model, {"x": X})
    with pytest.raises(DataError, match="cannot find the inputs in a batch of Tensor"):
        Classification().forward(model, X)


def test_logits_are_taken_from_what_models_return() -> None:
    class Returns(nn.Module):
        def __init__(self, wrap: Any) -> None:
            super().__init__()
            self.wrap = wrap

        def forward(self, x: Tensor) -> Any:
            return self.wrap(x)

    for wrap in (lambda x: x, lambda x: (x, 1), lambda x: [x], lambda x: SimpleNamespace(logits=x)):
        assert Classification().forward(Returns(wrap), (X, Y)).logits is X
    for wrap in (lambda _: None, lambda _: {}, lambda _: (), lambda _: ("a",)):
        with pytest.raises(DataError, match=r"the model returned .*: a tensor of logits"):
            Classification().forward(Returns(wrap), (X, Y))


# -- features -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp-64", "lenet-8", "resnet-18-16"])
def test_features_are_the_input_of_the_last_layer(name: str) -> None:
    model = MODELS[name]().eval()
    assert isinstance(model, nn.Sequential)
    images = torch.randn(3, 1, 28, 28)
    out = Classification().forward(model, (images, Y[:3]), features=True)
    assert out.features is not None
    torch.testing.assert_close(out.features, model[:-1](images))
    last = model[-1]
    assert isinstance(last, nn.Linear)
    torch.testing.assert_close(last(out.features), out.logits)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_features_of_the_layer_that_puts_out_the_logits_not_the_last_one_made() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(5, 3)
            self.body = nn.Linear(4, 5)
            self.side = nn.Linear(5, 9)

        def forward(self, x: Tensor) -> Tensor:
            f = self.body(x).relu()
            logits = self.head(f)
            self.side(f)  # runs last, but is not the output
            return logits

    model = Two()
    out = Classification().forward(model, (X, Y), features=True)
    assert out.features is not None
    assert torch.equal(out.features, model.body(X).relu())


def test_features_by_name() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3), nn.LogSoftmax(1))
    with pytest.raises(DataError, match=r"no nn\.Linear of the model puts out the logits"):
        Classification().forward(model, (X, Y), features=True)
    out = Classification(features="2").forward(model, (X, Y), features=True)
    assert out.features is not None
    assert torch.equal(out.features, model[:2](X))
    with pytest.raises(DataError, match="the model has no module 'head'"):
        Classification(features="head").forward(model, (X, Y), features=True)


def test_features_that_are_not_one_row_per_example() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.unsqueeze(1).expand(-1, 2, -1)).mean(1)

    with pytest.raises(DataError, match=r"the last linear layer saw \(6, 2, 4\), not \[B, D\]"):
        Classification(features="head").forward(Tokens(), (X, Y), features=True)


# -- texts ----------------------------------------------------------------------------------------

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


# -- loss -----------------------------------------------------------------------------------------


def test_hand_worked_loss() -> None:
    loss = Classification().loss(torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([0]))
    assert loss.tolist() == pytest.approx([0.239545], abs=1e-6)


def test_label_smoothing_literally() -> None:
    logits, eps = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.5]]), 0.1
    expected = []
    for z, y in zip(logits.tolist(), (0, 2), strict=True):
        log_p = [v - math.log(sum(math.exp(u) for u in z)) for v in z]
        expected.append(-(1 - eps) * log_p[y] - eps / 3 * sum(log_p))
    task = Classification(label_smoothing=eps)
    assert task.loss(logits, torch.tensor([0, 2])).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("value", [-0.1, 1.0, math.nan])
def test_a_smoothing_that_cannot_work_fails_at_construction(value: float) -> None:
    with pytest.raises(ConfigurationError, match="label_smoothing must be a number in"):
        Classification(label_smoothing=value)


@pytest.mark.parametrize("bad", [-1, 3, -100])
def test_a_label_outside_is_named(bad: int) -> None:
    with pytest.raises(DataError, match=rf"labels outside \[0, 3\): \[{bad}\]\. The model has 3"):
        Classification().loss(torch.zeros(2, 3), torch.tensor([0, bad]))


def test_logits_of_another_shape() -> None:
    with pytest.raises(DataError, match=r"logits of shape \(5, 3\) for 2 labels"):
        Classification().loss(torch.zeros(5, 3), torch.tensor([0, 1]))


def test_nan_logits_give_nan_losses_for_selection_to_name() -> None:
    logits = torch.zeros(2, 3)
    logits[1] = math.nan
    loss = Classification().loss(logits, torch.tensor([0, 1]))
    assert loss.isnan().tolist() == [False, True]


def test_a_reduced_loss_is_refused() -> None:
    for reduced in (torch.tensor(1.0), torch.ones(2), torch.ones(3, 1)):
        with pytest.raises(DataError, match=r"it is already reduced\. Compute it with reduction="):
            per_example(reduced, 3)
