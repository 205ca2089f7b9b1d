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
from reducible.tasks import Classification, per_example
from reducible.types import ConfigurationError, DataError
from task_toys import X, Y


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
