"""What training says to a scorer that learns from the model: heard without a pass, or asked for."""

from __future__ import annotations

import copy
import gc
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reducible as rd
from reducible.scoring.captured import CapturedPredictions
from scorer_toys import DATA, N_B, SGD, STORE, C, K, images_of, student_of


class Rows(nn.Module):
    """Keeps the rows of its passes, and whether they were with gradients."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(256, C))
        self.passes: list[tuple[int, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            self.passes.append((len(x), torch.is_grad_enabled()))
        return self.net(x)


def _hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) for m in model.modules())


def _listening(model: nn.Module, **options: Any) -> tuple[nn.Module, Any]:
    """A student and a loader whose every batch it is to learn."""
    student, scorer = student_of()
    options = {"keep": K, "store": STORE, "scorer": scorer} | options
    loader = DATA.loader(N_B, generator=torch.Generator())
    return student, rd.SelectingLoader(loader, model, rd.selector("rho"), **options)


def _learnt(x: Tensor, predictions: Tensor) -> Tensor:
    """The weights of a new student after a step on ``predictions``."""
    literal, _ = student_of()
    F.cross_entropy(literal(x), predictions.detach().softmax(1)).backward()
    SGD(literal.parameters()).step()
    return literal.state_dict()["1.weight"]


def test_what_training_says_costs_no_pass() -> None:
    model = Rows()
    _, batches = _listening(model)
    for chosen in batches:
        assert _hooks(model) == 1
        model(chosen.batch[0]).sum().backward()
        assert _hooks(model) == 0  # listens no longer
    assert model.passes == [(K, True)] * batches.step


@pytest.mark.parametrize("moment", ["evaluation", "other rows", "in parts", "never"])
def test_where_nothing_was_heard_the_model_is_asked(moment: str) -> None:
    model = Rows()
    student, batches = _listening(model)
    walk = iter(batches)
    x, _ = next(walk).batch
    if moment == "evaluation":
        with torch.no_grad():
            model(x)
    elif moment == "other rows":
        model(images_of(K + 1)[0])
    elif moment == "in parts":
        model(x[: K // 2])
        model(x[K // 2 :])
    model.passes.clear()
    start = student.state_dict()["1.weight"].clone()
    next(walk)
    assert model.passes == [(K, False)]
    end = student.state_dict()["1.weight"]
    assert not torch.equal(start, end)
    torch.testing.assert_close(end, _learnt(x, model(x)))


def test_the_first_training_pass_is_the_one_that_counts() -> None:
    model = Rows()
    student, batches = _listening(model)
    walk = iter(batches)
    x, _ = next(walk).batch
    with torch.no_grad():
        model(x + 5)
    first = model(x + 1)
    model(x + 2)
    next(walk)
    torch.testing.assert_close(student.state_dict()["1.weight"], _learnt(x, first))


def test_predictions_in_low_precision_are_taken_in_full() -> None:
    model = Rows()
    student, batches = _listening(model)
    walk = iter(batches)
    x, _ = next(walk).batch
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(x)
    assert logits.dtype == torch.bfloat16
    next(walk)
    expected = _learnt(x, logits.float())
    torch.testing.assert_close(student.state_dict()["1.weight"], expected)


class Output:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


def test_outputs_of_other_kinds_are_heard_or_left() -> None:
    class Wrapped(Rows):
        kind = "output"

        def forward(self, x: Tensor) -> Any:
            logits = super().forward(x)
            kinds: dict[str, Any] = {"output": Output(logits), "none": None, "flat": logits[:, 0]}
            return kinds[self.kind]

    model = Wrapped()
    student, batches = _listening(model)
    walk = iter(batches)
    x, _ = next(walk).batch
    for model.kind in ("none", "flat"):
        model(x)  # the model may be called for something else
    model.kind = "output"
    logits = model(x).logits
    next(walk)
    torch.testing.assert_close(student.state_dict()["1.weight"], _learnt(x, logits))


class Causal(nn.Module):
    """Classifies every token, and takes the last one's logits, as causal language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.score = nn.Embedding(9, 4), nn.Linear(4, 3)
        self.body = nn.ModuleDict({"first": nn.Linear(4, 4)})

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Output:
        hidden = self.body["first"](self.words(input_ids))  # [B, T, D]
        logits = self.score(hidden)
        return Output(logits[torch.arange(len(logits)), attention_mask.sum(1) - 1])


@pytest.mark.parametrize("name", [None, "score"])
def test_what_the_layers_said_gives_the_features_without_a_pass(name: str | None) -> None:
    model, task = Causal(), rd.SequenceClassification(features=name)
    batch = {
        "input_ids": torch.tensor([[3, 4, 5], [6, 7, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
    }
    heard = CapturedPredictions(model, task, 2, layers=True)
    with torch.no_grad():
        model(**{k: v.flip(0) for k, v in batch.items()})  # an evaluation is not listened to
    logits = model(**batch).logits
    assert heard.replay is not None
    assert _hooks(model) == 0
    again = task.forward(heard.replay, batch, features=True)
    literal = task.forward(model, batch, features=True)
    assert literal.features is not None
    torch.testing.assert_close(again.logits, logits.detach())
    torch.testing.assert_close(again.features, literal.features.detach())
    assert not again.logits.requires_grad
    plain = CapturedPredictions(model, task, 2)
    model(**batch)
    assert plain.replay is not None
    with pytest.raises(rd.DataError, match=r"no module|features cannot be found"):
        task.forward(plain.replay, batch, features=True)


def test_a_task_with_a_reading_of_its_own_asks_the_model() -> None:
    """What one pass of the model returned is not what such a task makes of the model."""

    class Mirrored(rd.Task):
        def targets(self, batch: Any) -> Tensor:
            return batch[1]

        def forward(self, model: nn.Module, batch: Any, *, features: bool = False) -> Any:
            other = model(batch[0].flip(3))
            plain = rd.Classification().forward(model, batch)
            return plain._replace(logits=plain.logits + other)

        def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
            return F.cross_entropy(logits, targets, reduction="none")

    model, task = Rows(), Mirrored()
    student, batches = _listening(model, task=task)
    walk = iter(batches)
    batch = next(walk).batch
    model(batch[0])
    next(walk)
    literal, _ = student_of()
    goal = task.forward(model, batch).logits.detach().softmax(1)
    F.cross_entropy(task.forward(literal, batch).logits, goal).backward()
    SGD(literal.parameters()).step()
    expected = literal.state_dict()["1.weight"]
    torch.testing.assert_close(student.state_dict()["1.weight"], expected)


def test_after_a_pass_that_was_broken_off_the_lesson_comes_first() -> None:
    """The candidates that follow are scored by a student that has learnt it."""
    model = Rows()
    student, batches = _listening(model)
    walk = iter(batches)
    x, _ = next(walk).batch
    logits = model(x)
    passes: list[Tensor] = []
    student.register_forward_pre_hook(
        lambda module, _: passes.append(module.state_dict()["1.weight"].clone())
    )
    next(iter(batches))
    at_the_step, at_scoring = passes
    torch.testing.assert_close(at_scoring, _learnt(x, logits))
    assert not torch.equal(at_the_step, at_scoring)


def test_copies_and_files_of_a_model_that_is_listened_to() -> None:
    model = Rows()
    student, batches = _listening(model)
    walk = iter(batches)
    x, _ = next(walk).batch
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other(x + 3)  # is not the model
    logits = model(x)
    next(walk)
    torch.testing.assert_close(student.state_dict()["1.weight"], _learnt(x, logits))


def test_a_loader_that_is_let_go_of_stops_listening() -> None:
    model = Rows()
    _, batches = _listening(model)
    walk = iter(batches)
    next(walk)
    assert _hooks(model) == 1
    del walk, batches
    gc.collect()
    assert _hooks(model) == 0


@pytest.mark.parametrize("given", ["the model", "the compiled model"])
def test_compiled_training_is_heard_where_it_is_what_the_loop_knows(given: str) -> None:
    torch._dynamo.reset()
    model = Rows()
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
    student, batches = _listening(model if given == "the model" else compiled)
    walk = iter(batches)
    x, _ = next(walk).batch
    logits = compiled(x)
    for _ in range(2):
        next(walk)
        if batches.step == 2:
            torch.testing.assert_close(student.state_dict()["1.weight"], _learnt(x, logits))
        assert model.passes == ([(K, False)] if given == "the model" else [])
        model.passes.clear()
        compiled(x)
    torch._dynamo.reset()


def test_saving_before_the_training_pass_asks_the_model() -> None:
    """A state is complete whenever it is taken; the run goes on as the saved one does."""
    model = Rows()
    student, batches = _listening(model)
    walk = iter(batches)
    x, _ = next(walk).batch
    state = batches.state_dict()
    assert model.passes == [(K, False)]
    after = student.state_dict()["1.weight"].clone()
    assert torch.equal(state["measuring"]["scorer"]["model"]["1.weight"], after)
    model(x)
    next(walk)
    assert torch.equal(student.state_dict()["1.weight"], after)  # learnt once
    batches.load_state_dict(state)
    assert _hooks(model) == 0
