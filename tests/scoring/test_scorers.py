"""Scorers that learn along: the first blocks of the model itself, and what the model predicts."""

from __future__ import annotations

import copy
import gc
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

import reducible as rd
from reducible.lab.data import TensorSet
from reducible.lab.models import MODELS, lenet
from reducible.scoring.captured import CapturedPredictions

C, K, N_B, N = 10, 6, 12, 48
TASK = rd.Classification()
SGD: Any = lambda p: torch.optim.SGD(p, lr=0.5)  # noqa: E731


def _images(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 1, 16, 16, generator=g) * 2 + 1
    return x, torch.randint(C, (n,), generator=g)


DATA = TensorSet(*_images(N), num_classes=C)
STORE = rd.IrreducibleLossStore.from_tensor(torch.rand(N, generator=torch.Generator()))


def _model(name: str) -> nn.Sequential:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        made = lenet(image=16) if name == "lenet" else MODELS[name]()
    assert isinstance(made, nn.Sequential)
    for module in made.modules():
        if isinstance(module, _BatchNorm):  # running statistics unlike any batch's
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.fill_(0.3)
            module.running_var.fill_(2.0)
    return made.train()


def _clone(model: nn.Module) -> Any:
    return copy.deepcopy(model)


def _noisy() -> nn.Sequential:
    """Batch normalisation and dropout before the exit and behind it."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(256, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(),
            nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, C),
        ).train()  # fmt: skip


def _everything(model: nn.Module) -> dict[str, Any]:
    """All of a model that scoring and a scorer's steps must leave alone."""
    return {
        "tensors": {k: v.clone() for k, v in model.state_dict().items()},
        "grads": [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "tracking": [getattr(m, "track_running_stats", None) for m in model.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
    }


def _assert_untouched(model: nn.Module, before: dict[str, Any]) -> None:
    after = _everything(model)
    torch.testing.assert_close(after.pop("tensors"), before.pop("tensors"), rtol=0, atol=0)
    assert after == before


def _loss_of(scorer: rd.CoTrained, batch: Any, **scoring: Any) -> Tensor:
    candidates = rd.Candidates(torch.arange(len(batch[1])), batch)
    needs = frozenset({"loss"})
    return rd.measure(scorer.model, candidates, needs, rd.Scoring(**scoring)).require("loss")


def _loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets, reduction="none").detach()


# -- early exit -----------------------------------------------------------------------------------

EXITS = [("lenet", "2", 16), ("lenet", "5", 32), ("lenet", "8", 128), ("resnet-18-16", "4", 16)]
EXITS += [("resnet-18-16", "5.residual", 32), ("resnet-18-16", "9", 128)]


def _pooled(model: nn.Sequential, at: str, x: Tensor) -> Tensor:
    """Literally: block after block, then the mean over rows and columns."""
    first, _, inner = at.partition(".")
    x = model[: int(first)](x)
    last = model[int(first)]
    x = last.get_submodule(inner)(x) if inner else last(x)
    return x.mean(dim=(2, 3)) if x.dim() == 4 else x


@pytest.mark.parametrize(("name", "at", "width"), EXITS)
def test_an_early_exit_against_a_literal_loop(name: str, at: str, width: int) -> None:
    """Scores, steps on the labels, and scores: as a linear model on the pooled features does."""
    model, batch = _model(name), _images(N_B)
    literal, head = _clone(model), nn.Linear(width, C)
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    optimizer = SGD(head.parameters())
    scorer = rd.early_exit(model, at, num_classes=C, make_optimizer=SGD)
    weights = torch.arange(1.0, K + 1)
    x, y = (part[:K] for part in batch)
    for _ in range(3):
        features = _pooled(_clone(literal), at, batch[0])  # train mode: statistics of the batch
        torch.testing.assert_close(_loss_of(scorer, batch), _loss(head(features), batch[1]))
        scorer.step(TASK, (x, y), weights)
        features = _pooled(_clone(literal), at, x).detach()
        optimizer.zero_grad()
        (F.cross_entropy(head(features), y, reduction="none") * weights).mean().backward()
        optimizer.step()
    assert head.weight.abs().max() > 0.01
    torch.testing.assert_close(scorer.state_dict()["model"], dict(head.state_dict()))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("batchnorm", ["candidates", "running", "reference"])
@pytest.mark.parametrize("name", ["lenet", "resnet-18-16", "noisy"])
def test_a_step_touches_the_head_alone(
    name: str, batchnorm: Any, training: bool, global_streams: Callable[[], Any]
) -> None:
    model = (_noisy() if name == "noisy" else _model(name)).train(training)
    batch = _images(K)
    F.cross_entropy(model.eval()(batch[0]), batch[1]).backward()  # there are gradients
    model.train(training)
    next(model.parameters()).requires_grad_(False)
    scorer = rd.early_exit(model, "4", num_classes=C, make_optimizer=SGD)
    before, streams = _everything(model), global_streams()
    start = scorer.state_dict()["model"]
    for _ in range(3):
        scorer.step(TASK, batch, torch.ones(K), scoring=rd.Scoring(batchnorm=batchnorm))
    assert global_streams() == streams
    _assert_untouched(model, before)
    end = scorer.state_dict()["model"]
    assert not torch.equal(end["weight"], start["weight"])
    assert not torch.equal(end["bias"], start["bias"])


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("batchnorm", ["candidates", "running"])
def test_the_blocks_score_in_the_scoring_mode_and_come_back(
    batchnorm: Any, training: bool, global_streams: Callable[[], Any]
) -> None:
    model, batch = _noisy().train(training), _images(N_B)
    literal = _noisy().eval()
    literal[2].train(batchnorm == "candidates")  # dropout stays off
    scorer = rd.early_exit(model, "4", num_classes=C, make_optimizer=SGD)
    scorer.step(TASK, batch, torch.ones(N_B))
    before, streams = _everything(model), global_streams()
    loss = _loss_of(scorer, batch, batchnorm=batchnorm)
    assert global_streams() == streams
    _assert_untouched(model, before)
    head = scorer.state_dict()["model"]
    logits = F.linear(literal[:5](batch[0]), head["weight"], head["bias"])
    torch.testing.assert_close(loss, _loss(logits, batch[1]))


def test_a_frozen_layer_of_the_blocks_stays_frozen() -> None:
    model, batch = _noisy(), _images(N_B)
    model[2].eval()
    scorer = rd.early_exit(model, "4", num_classes=C, make_optimizer=SGD)
    scorer.step(TASK, batch, torch.ones(N_B))
    before = _everything(model)
    loss = _loss_of(scorer, batch, batchnorm="candidates")
    _assert_untouched(model, before)
    head = scorer.state_dict()["model"]
    logits = F.linear(_noisy().eval()[:5](batch[0]), head["weight"], head["bias"])
    torch.testing.assert_close(loss, _loss(logits, batch[1]))


def test_the_head_learns_on_what_it_is_shown_when_scoring() -> None:
    """Features of its steps come from the same mode and the same small images as its scores."""
    batch = _images(K)
    heads = []
    for scoring in (rd.Scoring(batchnorm="running", resolution=8), rd.Scoring()):
        scorer = rd.early_exit(_model("resnet-18-16"), "4", num_classes=C, make_optimizer=SGD)
        scorer.step(TASK, batch, torch.ones(K), scoring=scoring)
        heads.append(scorer.state_dict()["model"]["weight"])
    literal = _model("resnet-18-16").eval()[:5]
    features = literal(F.interpolate(batch[0], size=[8, 8], mode="area")).mean(dim=(2, 3))
    error = torch.full((K, C), 1 / C) - F.one_hot(batch[1], C)  # of zero logits
    torch.testing.assert_close(heads[0], -0.5 * (error.T @ features).detach() / K)
    assert not torch.allclose(heads[0], heads[1])


def test_a_pass_ends_at_the_exit() -> None:
    model = _model("resnet-18-16")
    seen: list[int] = []
    for i, block in enumerate(model):
        block.register_forward_hook(lambda *_, i=i: seen.append(i))
    scorer = rd.early_exit(model, "4", num_classes=C)
    _loss_of(scorer, _images(N_B))
    assert seen == [0, 1, 2, 3, 4]
    flops = []
    for scores in (scorer, None):
        rule = rd.selector("train_loss")
        batches = rd.SelectingLoader(DATA.loader(N_B), model, rule, keep=K, scorer=scores)
        list(batches)
        flops.append(batches.ledger.counts.flops_score)
    assert 0 < flops[0] < 0.4 * flops[1]


def test_making_one_draws_nothing_and_scores_all_alike(global_streams: Callable[[], Any]) -> None:
    streams = global_streams()
    scorer = rd.early_exit(_model("lenet"), at="2", num_classes=7)
    assert global_streams() == streams
    loss = _loss_of(scorer, (_images(N_B)[0], torch.arange(N_B) % 7))
    torch.testing.assert_close(loss, torch.full((N_B,), 7.0).log())
    assert isinstance(scorer, rd.CoTrained)


def test_its_state_is_that_of_the_head_and_its_optimizer() -> None:
    model = _model("resnet-18-16")
    adam: Any = torch.optim.Adam
    scorer = rd.early_exit(model, "4", num_classes=C, make_optimizer=adam)
    scorer.step(TASK, _images(K), torch.ones(K))
    state = scorer.state_dict()
    assert {k: tuple(v.shape) for k, v in state["model"].items()} == {
        "weight": (C, 16),
        "bias": (C,),
    }
    assert sorted(state["optimizer"]["state"]) == [0, 1]
    assert state.keys() == {"model", "optimizer"}


class Opaque(nn.Module):
    """Layers by name, in an order of its own; outputs of any kind."""

    def __init__(self, output: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.unused = nn.Linear(3, 3)
        self.relu = nn.ReLU()
        self.embed = nn.Linear(4, 5)
        self.block = _Calls(output)
        self.head = nn.Linear(5, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.embed(x)))


class _Calls(nn.Module):
    def __init__(self, output: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor) -> Any:
        return self.output(x)


def test_positions_are_averaged_and_tuples_opened() -> None:
    tokens = torch.randn(K, 3, 4, generator=torch.Generator().manual_seed(0))  # [B, T, 4]
    model = Opaque(lambda x: (x, "attention"))
    scorer = rd.early_exit(model, "block", num_classes=C, make_optimizer=SGD)
    targets = torch.arange(K) % C
    scorer.step(TASK, (tokens, targets), torch.ones(K))
    head = scorer.state_dict()["model"]
    logits = F.linear(model.embed(tokens).mean(1), head["weight"], head["bias"])
    assert head["weight"].abs().max() > 0
    torch.testing.assert_close(_loss_of(scorer, (tokens, targets)), _loss(logits, targets))


@pytest.mark.parametrize("wrapper", ["compile", "distributed"])
def test_what_is_put_around_a_model_is_left_out(wrapper: str) -> None:
    """Compiled blocks would not notice where they are to stop."""
    torch._dynamo.reset()
    plain, batch = _noisy(), _images(N_B)
    wrapped: Any = plain
    if wrapper != "compile":
        store = distributed.HashStore()  # pyright: ignore[reportPrivateImportUsage]
        distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        wrapped = nn.parallel.DistributedDataParallel(wrapped)
    try:
        if wrapper != "distributed":
            wrapped = torch.compile(wrapped, backend="eager")
            with torch.inference_mode():
                wrapped(batch[0])
        losses = []
        for model in (plain, wrapped):
            scorer = rd.early_exit(model, "4", num_classes=C, make_optimizer=SGD)
            scorer.step(TASK, batch, torch.ones(N_B))
            losses.append(_loss_of(scorer, batch))
    finally:
        if wrapper != "compile":
            distributed.destroy_process_group()
        torch._dynamo.reset()
    assert torch.equal(*losses)


@pytest.mark.parametrize(
    ("at", "options", "message"),
    [
        ("blok", {}, "at='blok' is no module of the model: name one of unused, relu, embed, block"),
        ("", {}, "at='' is no module of the model"),
        ("block", {"width": 0}, "width must be a whole number"),
        ("block", {"grid": 0}, "grid must be a whole number"),
        ("block", {"num_classes": 0}, "num_classes must be a whole number"),
    ],
)
def test_exits_that_cannot_be_made(at: str, options: Any, message: str) -> None:
    with pytest.raises(rd.ConfigurationError, match=message):
        rd.early_exit(Opaque(lambda x: x), at, **{"num_classes": C} | options)


@pytest.mark.parametrize(("at", "side"), [("2", 6), ("5", 1)])
def test_a_grid_keeps_the_means_of_places_apart(at: str, side: int) -> None:
    """In a grid of 2, the mean of each quarter of [B, D, 6, 6]; a single place, four times."""
    model, batch = _model("lenet"), _images(N_B)
    images = model[: int(at) + 1](batch[0]).detach()  # [B, D, side, side]
    assert images.shape[2:] == (side, side)
    half = (side + 1) // 2
    quarters = [images[:, :, i * (side - half) :, j * (side - half) :][:, :, :half, :half]
                for i in (0, 1) for j in (0, 1)]  # fmt: skip
    features = torch.stack([q.mean((2, 3)) for q in quarters], dim=2).flatten(1)  # [B, 4·D]
    scorer = rd.early_exit(model, at, num_classes=C, make_optimizer=SGD, grid=2)
    scorer.step(TASK, batch, torch.ones(N_B))
    error = torch.full((N_B, C), 1 / C) - F.one_hot(batch[1], C)  # of zero logits
    head = scorer.state_dict()["model"]
    torch.testing.assert_close(head["weight"], -0.5 * error.T @ features / N_B)
    logits = F.linear(features, head["weight"], head["bias"])
    torch.testing.assert_close(_loss_of(scorer, batch), _loss(logits, batch[1]))


def test_a_grid_is_of_images() -> None:
    scorer = rd.early_exit(Opaque(lambda x: x), "block", num_classes=C, grid=2)
    for inputs in (torch.randn(K, 4), torch.randn(K, 3, 4)):
        with pytest.raises(rd.ConfigurationError, match="without rows and columns for grid=2"):
            _loss_of(scorer, (inputs, torch.arange(K)))
    scorer = rd.early_exit(_model("lenet"), "2", num_classes=C, width=7, grid=2)
    with pytest.raises(rd.ConfigurationError, match=r"'2' is 16 wide, .* for 7: .*width=16"):
        _loss_of(scorer, _images(K))


def test_a_width_that_nothing_tells() -> None:
    model = nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(4, C))
    with pytest.raises(rd.ConfigurationError, match=r"no layer up to '1' says .* pass width="):
        rd.early_exit(model, "1", num_classes=C)
    scorer = rd.early_exit(model, "1", num_classes=C, width=4)
    assert _loss_of(scorer, (torch.randn(3, 4), torch.arange(3))).shape == (3,)


@pytest.mark.parametrize(
    ("at", "output", "message"),
    [
        ("block", lambda x: x[:, :2], r"'block' is 2 wide, the head was made for 5: .*width=2"),
        ("block", lambda x: x[:, 0], r"the output of 'block' is \(6,\); \[B, D\], \[B, D, H, W\]"),
        ("block", lambda x: {"x": x}, "the output of 'block' is dict"),
        ("unused", lambda x: x, "forward pass never came to 'unused': name a module that it calls"),
    ],
)
def test_exits_that_turn_out_wrong(at: str, output: Any, message: str) -> None:
    model = Opaque(output)
    scorer = rd.early_exit(model, at, num_classes=C)
    before = _everything(model)
    with pytest.raises(rd.ConfigurationError, match=message):
        _loss_of(scorer, (torch.randn(K, 4), torch.arange(K)))
    _assert_untouched(model, before)


def test_an_error_of_the_model_is_its_own() -> None:
    def fails(_: Tensor) -> Tensor:
        raise ValueError("no such token")

    model = Opaque(fails)
    scorer = rd.early_exit(model, "block", num_classes=C)
    before = _everything(model)
    with pytest.raises(ValueError, match="no such token"):
        scorer.step(TASK, (torch.randn(K, 4), torch.arange(K)), torch.ones(K))
    _assert_untouched(model, before)


# -- distilled ------------------------------------------------------------------------------------


def _student(**options: Any) -> tuple[nn.Module, rd.CoTrained]:
    with torch.random.fork_rng([]):
        torch.manual_seed(5)
        student = nn.Sequential(nn.Flatten(), nn.Linear(256, C))
    return student, rd.CoTrained(student, SGD(student.parameters()), distil=True, **options)


@pytest.mark.parametrize("batchnorm", ["candidates", "running"])
def test_a_distilled_step_by_hand(batchnorm: Any, global_streams: Callable[[], Any]) -> None:
    """Cross-entropy against the model's softmax in its scoring mode; the model stays as it is."""
    model, batch, weights = _noisy(), _images(K), torch.arange(1.0, K + 1)
    student, scorer = _student()
    literal = _clone(student)
    teacher = _noisy().eval()
    for module in teacher:
        module.train(batchnorm == "candidates" and isinstance(module, nn.BatchNorm1d))
    p = teacher(batch[0]).softmax(1).detach()  # [K, C]
    loss = F.cross_entropy(literal(batch[0]), p, reduction="none")  # [K]
    (loss * weights).mean().backward()
    before, streams = _everything(model), global_streams()
    # labels that no network has: they are not read
    scorer.step(
        TASK, (batch[0], batch[1] + 1000), weights, trained=model,
        scoring=rd.Scoring(batchnorm=batchnorm, resolution=4),
    )  # fmt: skip
    assert global_streams() == streams
    _assert_untouched(model, before)
    for mine, its in zip(student.parameters(), literal.parameters(), strict=True):
        assert its.grad is not None
        torch.testing.assert_close(mine, its - 0.5 * its.grad)


def test_the_reference_mode_moves_nothing_in_a_step() -> None:
    model = _noisy()
    before = _everything(model)
    student, scorer = _student()
    start = _clone(student).state_dict()
    reference = rd.Scoring(batchnorm="reference")
    scorer.step(TASK, _images(K), torch.ones(K), trained=model, scoring=reference)
    _assert_untouched(model, before)
    assert not torch.equal(student.state_dict()["1.weight"], start["1.weight"])


def test_a_distilled_scorer_in_the_loop_learns_what_the_model_says_in_training() -> None:
    """With dropout on and other inputs than its own, as training has them; before the update."""
    model = _noisy()
    student, scorer = _student()
    literal = _clone(student)
    other, optimizer = SGD(literal.parameters()), torch.optim.SGD(model.parameters(), lr=0.1)
    batches = rd.SelectingLoader(
        DATA.loader(N_B, generator=torch.Generator()), model, rd.selector("rho"), keep=K,
        store=STORE, scorer=scorer,
    )  # fmt: skip
    for chosen in batches:
        torch.testing.assert_close(student.state_dict(), literal.state_dict())
        x, y = chosen.batch
        logits = model(x.flip(3))
        other.zero_grad()
        F.cross_entropy(literal(x), logits.detach().softmax(1)).backward()
        other.step()
        optimizer.zero_grad()
        F.cross_entropy(logits, y).backward()
        logits.data.zero_()  # what was heard is not moved by what comes after
        optimizer.step()
    torch.testing.assert_close(student.state_dict(), literal.state_dict())
    assert batches.step == N // N_B


def test_what_a_distilled_step_costs_is_charged_to_scoring() -> None:
    class Clock:
        now = 0.0

        def __call__(self) -> float:
            return self.now

    clock = Clock()

    class Slow(nn.Module):
        def __init__(self, seconds: float) -> None:
            super().__init__()
            self.net, self.seconds = nn.Sequential(nn.Flatten(), nn.Linear(256, C)), seconds
            self.rows: list[int] = []

        def forward(self, x: Tensor) -> Tensor:
            clock.now += self.seconds
            self.rows.append(len(x))
            return self.net(x)

    model, student, ledger = Slow(100), Slow(1), rd.Ledger(clock=clock)
    scorer = rd.CoTrained(student, SGD(student.parameters()), distil=True)
    batches = rd.SelectingLoader(
        DATA.loader(N_B), model, rd.selector("rho"), keep=K, store=STORE, scorer=scorer,
        ledger=ledger,
    )  # fmt: skip
    steps = len(list(batches))
    assert ledger.seconds["score"] == ledger.total == (100 + 1 + 1) * steps
    assert model.rows == [K] * steps  # the chosen ones, once


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
    student, scorer = _student()
    options = {"keep": K, "store": STORE, "scorer": scorer} | options
    loader = DATA.loader(N_B, generator=torch.Generator())
    return student, rd.SelectingLoader(loader, model, rd.selector("rho"), **options)


def _learnt(x: Tensor, predictions: Tensor) -> Tensor:
    """The weights of a new student after a step on ``predictions``."""
    literal, _ = _student()
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
        model(_images(K + 1)[0])
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
    literal, _ = _student()
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


def test_a_follower_may_be_distilled() -> None:
    model, student = _noisy(), nn.Sequential(nn.Flatten(), nn.Linear(256, C))
    lead = torch.optim.SGD(model.parameters(), lr=0.4)
    with pytest.raises(rd.ConfigurationError, match=r"learns from a model: pass trained=<it>"):
        rd.CoTrained.following(student, lead, lr_ratio=0.5, distil=True).step(
            TASK, _images(K), torch.ones(K)
        )
    literal = _clone(student)
    x, y = _images(K)
    for distil in (True, False):
        copied = _clone(student)
        rd.CoTrained.following(copied, lead, lr_ratio=0.5, distil=distil).step(
            TASK, (x, y), torch.ones(K), trained=model, scoring=rd.Scoring(batchnorm="running")
        )
        goal = _clone(model).eval()(x).softmax(1).detach() if distil else y
        literal.zero_grad()
        F.cross_entropy(literal(x), goal).backward()
        weight = literal[1].weight
        torch.testing.assert_close(copied[1].weight, weight - 0.2 * weight.grad)


def test_models_of_other_classes_cannot_teach() -> None:
    _, scorer = _student()
    other = nn.Sequential(nn.Flatten(), nn.Linear(256, 1))
    message = r"the scorer gives \(6, 10\), the model it is to learn from \(6, 1\)"
    with pytest.raises(rd.ConfigurationError, match=message):
        scorer.step(TASK, _images(K), torch.ones(K), trained=other)


# -- saved and gone on with -----------------------------------------------------------------------


def _early(model: nn.Module) -> rd.CoTrained:
    return rd.early_exit(
        model, "4", num_classes=C, make_optimizer=lambda p: torch.optim.Adam(p, lr=0.05)
    )


def _distilled(_: nn.Module) -> rd.CoTrained:
    return _student()[1]


@pytest.mark.parametrize("updates", [1, 2])
@pytest.mark.parametrize("stop", [3, 8])
@pytest.mark.parametrize("make", [_early, _distilled], ids=["early exit", "distilled"])
@pytest.mark.parametrize("name", ["lenet", "resnet-18-16"])
def test_stopping_and_going_on_is_never_having_stopped(
    name: str, make: Callable[[nn.Module], rd.CoTrained], stop: int, updates: int
) -> None:
    until, saved = 11, io.BytesIO()

    def setup() -> tuple[nn.Module, Any, Any]:
        model = _model(name)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        batches = rd.SelectingLoader(
            DATA.loader(N_B, generator=torch.Generator().manual_seed(3)), model,
            rd.selector("rho"), keep=K, store=STORE, scorer=make(model),
            scoring=rd.Scoring(updates_per_scoring=updates),
        )  # fmt: skip
        return model, optimizer, batches

    def train(model: nn.Module, optimizer: Any, batches: Any) -> list[list[int]]:
        ids = []
        while batches.step < until:
            for chosen in batches:
                x, y = chosen.batch
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
                ids.append(chosen.ids.tolist())
                if batches.step == stop:
                    parts = (batches.state_dict(), model.state_dict(), optimizer.state_dict())
                    saved.seek(0)
                    torch.save(parts, saved)
                if batches.step == until:
                    break
        return ids

    model, optimizer, batches = setup()
    expected = train(model, optimizer, batches)
    saved.seek(0)
    states = torch.load(saved, weights_only=True)
    again, optimizer, resumed = setup()
    for part, state in zip((resumed, again, optimizer), states, strict=True):
        part.load_state_dict(state)
    assert train(again, optimizer, resumed) == expected[stop:]
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    ends = [b.state_dict()["measuring"]["scorer"]["model"] for b in (batches, resumed)]
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=0)
    assert len(expected) == until
