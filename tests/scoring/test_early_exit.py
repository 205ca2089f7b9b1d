"""A scorer that learns along: the first blocks of the model itself, and a head of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

import reducible as rd
from scorer_toys import (
    DATA,
    N_B,
    SGD,
    TASK,
    C,
    K,
    assert_untouched,
    clone,
    everything_of,
    images_of,
    loss_of,
    model_of,
    noisy,
)


def _loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets, reduction="none").detach()


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
    model, batch = model_of(name), images_of(N_B)
    literal, head = clone(model), nn.Linear(width, C)
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    optimizer = SGD(head.parameters())
    scorer = rd.early_exit(model, at, num_classes=C, make_optimizer=SGD)
    weights = torch.arange(1.0, K + 1)
    x, y = (part[:K] for part in batch)
    for _ in range(3):
        features = _pooled(clone(literal), at, batch[0])  # train mode: statistics of the batch
        torch.testing.assert_close(loss_of(scorer, batch), _loss(head(features), batch[1]))
        scorer.step(TASK, (x, y), weights)
        features = _pooled(clone(literal), at, x).detach()
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
    model = (noisy() if name == "noisy" else model_of(name)).train(training)
    batch = images_of(K)
    F.cross_entropy(model.eval()(batch[0]), batch[1]).backward()  # there are gradients
    model.train(training)
    next(model.parameters()).requires_grad_(False)
    scorer = rd.early_exit(model, "4", num_classes=C, make_optimizer=SGD)
    before, streams = everything_of(model), global_streams()
    start = scorer.state_dict()["model"]
    for _ in range(3):
        scorer.step(TASK, batch, torch.ones(K), scoring=rd.Scoring(batchnorm=batchnorm))
    assert global_streams() == streams
    assert_untouched(model, before)
    end = scorer.state_dict()["model"]
    assert not torch.equal(end["weight"], start["weight"])
    assert not torch.equal(end["bias"], start["bias"])


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("batchnorm", ["candidates", "running"])
def test_the_blocks_score_in_the_scoring_mode_and_come_back(
    batchnorm: Any, training: bool, global_streams: Callable[[], Any]
) -> None:
    model, batch = noisy().train(training), images_of(N_B)
    literal = noisy().eval()
    literal[2].train(batchnorm == "candidates")  # dropout stays off
    scorer = rd.early_exit(model, "4", num_classes=C, make_optimizer=SGD)
    scorer.step(TASK, batch, torch.ones(N_B))
    before, streams = everything_of(model), global_streams()
    loss = loss_of(scorer, batch, batchnorm=batchnorm)
    assert global_streams() == streams
    assert_untouched(model, before)
    head = scorer.state_dict()["model"]
    logits = F.linear(literal[:5](batch[0]), head["weight"], head["bias"])
    torch.testing.assert_close(loss, _loss(logits, batch[1]))


def test_a_frozen_layer_of_the_blocks_stays_frozen() -> None:
    model, batch = noisy(), images_of(N_B)
    model[2].eval()
    scorer = rd.early_exit(model, "4", num_classes=C, make_optimizer=SGD)
    scorer.step(TASK, batch, torch.ones(N_B))
    before = everything_of(model)
    loss = loss_of(scorer, batch, batchnorm="candidates")
    assert_untouched(model, before)
    head = scorer.state_dict()["model"]
    logits = F.linear(noisy().eval()[:5](batch[0]), head["weight"], head["bias"])
    torch.testing.assert_close(loss, _loss(logits, batch[1]))


def test_the_head_learns_on_what_it_is_shown_when_scoring() -> None:
    """Features of its steps come from the same mode and the same small images as its scores."""
    batch = images_of(K)
    heads = []
    for scoring in (rd.Scoring(batchnorm="running", resolution=8), rd.Scoring()):
        scorer = rd.early_exit(model_of("resnet-18-16"), "4", num_classes=C, make_optimizer=SGD)
        scorer.step(TASK, batch, torch.ones(K), scoring=scoring)
        heads.append(scorer.state_dict()["model"]["weight"])
    literal = model_of("resnet-18-16").eval()[:5]
    features = literal(F.interpolate(batch[0], size=[8, 8], mode="area")).mean(dim=(2, 3))
    error = torch.full((K, C), 1 / C) - F.one_hot(batch[1], C)  # of zero logits
    torch.testing.assert_close(heads[0], -0.5 * (error.T @ features).detach() / K)
    assert not torch.allclose(heads[0], heads[1])


def test_a_pass_ends_at_the_exit() -> None:
    model = model_of("resnet-18-16")
    seen: list[int] = []
    for i, block in enumerate(model):
        block.register_forward_hook(lambda *_, i=i: seen.append(i))
    scorer = rd.early_exit(model, "4", num_classes=C)
    loss_of(scorer, images_of(N_B))
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
    scorer = rd.early_exit(model_of("lenet"), at="2", num_classes=7)
    assert global_streams() == streams
    loss = loss_of(scorer, (images_of(N_B)[0], torch.arange(N_B) % 7))
    torch.testing.assert_close(loss, torch.full((N_B,), 7.0).log())
    assert isinstance(scorer, rd.CoTrained)


def test_its_state_is_that_of_the_head_and_its_optimizer() -> None:
    model = model_of("resnet-18-16")
    adam: Any = torch.optim.Adam
    scorer = rd.early_exit(model, "4", num_classes=C, make_optimizer=adam)
    scorer.step(TASK, images_of(K), torch.ones(K))
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
    torch.testing.assert_close(loss_of(scorer, (tokens, targets)), _loss(logits, targets))


@pytest.mark.parametrize("wrapper", ["compile", "distributed"])
def test_what_is_put_around_a_model_is_left_out(wrapper: str) -> None:
    """Compiled blocks would not notice where they are to stop."""
    torch._dynamo.reset()
    plain, batch = noisy(), images_of(N_B)
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
            losses.append(loss_of(scorer, batch))
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
    model, batch = model_of("lenet"), images_of(N_B)
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
    torch.testing.assert_close(loss_of(scorer, batch), _loss(logits, batch[1]))


def test_a_grid_is_of_images() -> None:
    scorer = rd.early_exit(Opaque(lambda x: x), "block", num_classes=C, grid=2)
    for inputs in (torch.randn(K, 4), torch.randn(K, 3, 4)):
        with pytest.raises(rd.ConfigurationError, match="without rows and columns for grid=2"):
            loss_of(scorer, (inputs, torch.arange(K)))
    scorer = rd.early_exit(model_of("lenet"), "2", num_classes=C, width=7, grid=2)
    with pytest.raises(rd.ConfigurationError, match=r"'2' is 16 wide, .* for 7: .*width=16"):
        loss_of(scorer, images_of(K))


def test_a_width_that_nothing_tells() -> None:
    model = nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(4, C))
    with pytest.raises(rd.ConfigurationError, match=r"no layer up to '1' says .* pass width="):
        rd.early_exit(model, "1", num_classes=C)
    scorer = rd.early_exit(model, "1", num_classes=C, width=4)
    assert loss_of(scorer, (torch.randn(3, 4), torch.arange(3))).shape == (3,)


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
    before = everything_of(model)
    with pytest.raises(rd.ConfigurationError, match=message):
        loss_of(scorer, (torch.randn(K, 4), torch.arange(K)))
    assert_untouched(model, before)


def test_an_error_of_the_model_is_its_own() -> None:
    def fails(_: Tensor) -> Tensor:
        raise ValueError("no such token")

    model = Opaque(fails)
    scorer = rd.early_exit(model, "block", num_classes=C)
    before = everything_of(model)
    with pytest.raises(ValueError, match="no such token"):
        scorer.step(TASK, (torch.randn(K, 4), torch.arange(K)), torch.ones(K))
    assert_untouched(model, before)
