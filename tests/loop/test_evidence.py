"""What the loop measures with over time: a live irreducible-loss model, groups, counts."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reducible as rd
from measuring_toys import DATA, STEPS, STORE, K, N, Watching, loader_of, small_net, update


def _losses(model: nn.Module, ids: Tensor) -> Tensor:
    """In eval mode, leaving the mode as it was."""
    training = model.training
    model.eval()
    with torch.no_grad():
        loss = F.cross_entropy(model(DATA.inputs[ids]), DATA.targets[ids], reduction="none")
    model.train(training)
    return loss


def _train(batches: Any, model: nn.Module, optimizer: Any, epochs: int = 1) -> list[list[int]]:
    ids = []
    for _ in range(epochs):
        for chosen in batches:
            update(model, optimizer, chosen)
            ids.append(chosen.ids.tolist())
    return ids


# -- an irreducible-loss model that keeps learning ------------------------------------------------


OPTIMIZERS: list[Callable[[Any], torch.optim.Optimizer]] = [
    lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9, weight_decay=0.01),
    lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.8, 0.9)),
    lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
]


@pytest.mark.parametrize("make", OPTIMIZERS, ids=["sgd", "adamw", "adam", "fused"])
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "batchnorm"])
def test_the_irreducible_loss_model_against_a_literal_loop(make: Any, norm: bool) -> None:
    """One step on every batch handed out, at lr_ratio × the rate that the optimizer has then."""
    model, live = small_net(0), small_net(1, norm=norm)
    literal = copy.deepcopy(live)
    optimizer, other = make(model.parameters()), make(literal.parameters())
    rule = Watching(rd.selector("rho_updating", lr_ratio=0.1))
    batches = rd.SelectingLoader(
        loader_of(), model, rule, keep=K, irreducible_model=live, optimizer=optimizer
    )
    steps = 0
    for _ in range(2):
        for chosen in batches:
            # evidence: its losses in eval mode before the step, with eval-mode statistics
            evidence = rule.evidence[-1]
            irreducible = _losses(literal, evidence.ids)
            torch.testing.assert_close(evidence.irreducible_loss, irreducible)
            rho = _losses(model, evidence.ids) - irreducible
            best = evidence.ids[rho.argsort(descending=True)[:K]]
            assert chosen.ids.tolist() == best.tolist()

            rate = optimizer.param_groups[0]["lr"]
            other.param_groups[0]["lr"] = 0.1 * rate
            literal.train()
            update(literal, other, chosen)
            torch.testing.assert_close(live.state_dict(), literal.state_dict())
            assert not any(m.training for m in live.modules())

            update(model, optimizer, chosen)
            optimizer.param_groups[0]["lr"] = rate * 0.7  # a schedule of the caller's
            steps += 1
    assert steps == 2 * STEPS


def test_importance_weights_count_in_the_step() -> None:
    class Weighted(Watching):
        def select(self, *args: Any, **kwargs: Any) -> rd.Selection:
            chosen = super().select(*args, **kwargs)
            return rd.Selection(chosen.index, torch.arange(1.0, K + 1))

    model, live = small_net(0), small_net(1)
    literal = copy.deepcopy(live)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    rule = Weighted(rd.selector("rho_updating", lr_ratio=0.5))
    batches = rd.SelectingLoader(
        loader_of(), model, rule, keep=K, irreducible_model=live, optimizer=optimizer
    )
    chosen = next(iter(batches))
    update(literal, torch.optim.SGD(literal.parameters(), lr=0.5), chosen)
    assert chosen.weights.tolist() == [1, 2, 3, 4, 5]
    torch.testing.assert_close(live.state_dict(), literal.state_dict())


def test_a_ratio_of_zero_is_an_irreducible_loss_that_never_moves() -> None:
    model, live = small_net(0), small_net(1)
    before = copy.deepcopy(live.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    batches = rd.SelectingLoader(
        loader_of(), model, rd.selector("rho_updating", lr_ratio=0.0), keep=K,
        irreducible_model=live, optimizer=optimizer,
    )  # fmt: skip
    updating = _train(batches, model, optimizer, 2)
    torch.testing.assert_close(live.state_dict(), before, rtol=0, atol=0)
    model = small_net(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    store = rd.IrreducibleLossStore.from_tensor(_losses(live, torch.arange(N)))
    fixed = rd.SelectingLoader(loader_of(), model, rd.selector("rho"), keep=K, store=store)
    assert _train(fixed, model, optimizer, 2) == updating


def test_its_dropout_draws_nothing_from_the_global_streams(
    global_streams: Callable[[], Any],
) -> None:
    model, live = small_net(0), small_net(1, dropout=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    batches = rd.SelectingLoader(
        loader_of(), model, rd.selector("rho_updating"), keep=K,
        irreducible_model=live, optimizer=optimizer,
    )  # fmt: skip
    streams = global_streams()
    assert len(list(batches)) == STEPS
    assert global_streams() == streams


@pytest.mark.parametrize("stop", [3, STEPS])
def test_a_live_model_resumes_as_if_never_stopped(stop: int) -> None:
    def setup() -> tuple[Any, ...]:
        model, live = small_net(0), small_net(1, norm=True)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
        rule = rd.selector("rho_updating", lr_ratio=1.0)
        batches = rd.SelectingLoader(
            loader_of(), model, rule, keep=K, irreducible_model=live, optimizer=optimizer
        )
        return model, live, optimizer, batches

    model, live, optimizer, batches = setup()
    expected, saved = [], io.BytesIO()
    kept: dict[str, Any] = {}
    for _ in range(2):
        for chosen in batches:
            update(model, optimizer, chosen)
            expected.append(chosen.ids.tolist())
            if batches.step == stop:
                kept = batches.state_dict()
                parts = (kept, model.state_dict(), optimizer.state_dict())
                torch.save(parts, saved)
    saved.seek(0)
    loader_state, model_state, optimizer_state = torch.load(saved, weights_only=True)
    # a state is of its moment: going on does not move it
    torch.testing.assert_close(
        kept["measuring"]["irreducible"]["model"],
        loader_state["measuring"]["irreducible"]["model"],
        rtol=0, atol=0,
    )  # fmt: skip
    again, other, optimizer, batches = setup()
    batches.load_state_dict(loader_state)
    again.load_state_dict(model_state)
    optimizer.load_state_dict(optimizer_state)
    chosen_ids = []
    while batches.step < 2 * STEPS:
        for chosen in batches:
            update(again, optimizer, chosen)
            chosen_ids.append(chosen.ids.tolist())
    assert chosen_ids == expected[stop:]
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(other.state_dict(), live.state_dict(), rtol=0, atol=0)


def test_a_live_model_costs_scoring_time() -> None:
    class Clock:
        now = 0.0

        def __call__(self) -> float:
            return self.now

    clock = Clock()

    class Slow(nn.Module):
        def __init__(self, seconds: float) -> None:
            super().__init__()
            self.net, self.seconds = small_net(0), seconds

        def forward(self, x: Tensor) -> Tensor:
            clock.now += self.seconds
            return self.net(x)

    model, live = Slow(1), Slow(10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    ledger = rd.Ledger(clock=clock)
    batches = rd.SelectingLoader(
        loader_of(), model, rd.selector("rho_updating"), keep=K, irreducible_model=live,
        optimizer=optimizer, ledger=ledger,
    )  # fmt: skip
    assert len(list(batches)) == STEPS
    # the candidates by both models, then the live model's step
    assert ledger.seconds["score"] == ledger.total == (1 + 10 + 10) * STEPS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "pass it as irreducible_model=, and the model's optimizer as optimizer="),
        ({"store": STORE}, "pass it as irreducible_model="),
        (
            {"irreducible_model": small_net(1)},
            "learns at a ratio of the model's rate: pass the model's",
        ),
    ],
)
def test_a_live_model_needs_model_and_optimizer(options: Any, message: str) -> None:
    for rule in (rd.selector("rho_updating"), rd.Scheduled(rd.selector("rho_updating"))):
        with pytest.raises(rd.ConfigurationError, match=message):
            rd.SelectingLoader(loader_of(), small_net(0), rule, keep=K, **options)


def test_an_optimizer_that_cannot_be_made_twice() -> None:
    class Odd(torch.optim.SGD):
        def __init__(self, params: Any, must: int, **options: Any) -> None:
            super().__init__(params, **options)

    model = small_net(0)
    with pytest.raises(rd.ConfigurationError, match="cannot make another Odd for the irreducible"):
        rd.SelectingLoader(
            loader_of(), model, rd.selector("rho_updating"), keep=K, irreducible_model=small_net(1),
            optimizer=Odd(model.parameters(), 3, lr=0.1),
        )  # fmt: skip


# -- groups ---------------------------------------------------------------------------------------


class Groups(rd.Selector):
    needs = frozenset({"groups"})

    def __init__(self) -> None:
        self.seen: list[tuple[Tensor, Tensor]] = []

    def select(self, evidence: rd.Evidence, k: int, *, generator: torch.Generator) -> rd.Selection:
        self.seen.append((evidence.ids, evidence.require("groups")))
        return rd.Selection(torch.arange(k), torch.ones(k))


@pytest.mark.parametrize("given", [True, False])
def test_groups_are_those_given_by_id_or_the_classes(given: bool) -> None:
    rule = Groups()
    groups = torch.randint(7, (N,), generator=torch.Generator().manual_seed(2)) if given else None
    batches = rd.SelectingLoader(loader_of(), small_net(0), rule, keep=K, groups=groups)
    assert len(list(batches)) == STEPS
    expected = DATA.targets if groups is None else groups
    for ids, seen in rule.seen:
        assert seen.tolist() == expected[ids].tolist()
    assert batches.ledger.counts.forwards_scored == 0  # labels and groups cost no forward pass


# -- counts ---------------------------------------------------------------------------------------


def test_flops_are_counted_once_by_hand() -> None:
    """Linear(4, 3): 24 FLOPs a row forward. Two models score in rho_updating, one twice in bald."""
    linear = nn.Linear(4, 3)

    def counts(rule: rd.Selector, model: nn.Module = linear, **options: Any) -> Any:
        batches = rd.SelectingLoader(loader_of(), model, rule, keep=K, **options)
        assert len(list(batches)) == STEPS
        return batches.ledger.counts

    rho = counts(rd.selector("rho"), store=STORE)
    assert (rho.flops_score, rho.forwards_scored, rho.examples_scored) == (24 * N, STEPS, N)

    optimizer = torch.optim.SGD(linear.parameters(), lr=0.1)
    both = counts(
        rd.selector("rho_updating"), irreducible_model=nn.Linear(4, 3), optimizer=optimizer
    )
    assert both.flops_score == 2 * 24 * N
    assert both.examples_scored == N

    dropout = nn.Sequential(nn.Dropout(), nn.Linear(4, 3))
    passes = counts(rd.selector("entropy", samples=4), model=dropout)
    assert passes.flops_score == 4 * 24 * N
    assert (passes.forwards_scored, passes.examples_scored) == (4 * STEPS, 4 * N)

    chain = counts(rd.selector("rho_bald", prefilter=8, samples=3), model=dropout, store=STORE)
    assert chain.examples_scored == N + 3 * 8 * STEPS
    assert chain.flops_score == 24 * (N + 3 * 8 * STEPS)

    lookup = counts(rd.selector("irreducible_loss"), store=STORE)
    assert (lookup.flops_score, lookup.forwards_scored, lookup.examples_scored) == (0, 0, 0)

    shadowed = counts(
        rd.selector("rho"), store=STORE,
        shadows={n: rd.selector(n) for n in ("train_loss", "grad_norm")},
    )  # fmt: skip
    assert shadowed.flops_score == 24 * N
