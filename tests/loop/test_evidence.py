"""What the loop measures with over time: a live irreducible-loss model, shadows, groups, counts."""

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
from reducible.lab.data import TensorSet

N, N_B, K, C = 120, 20, 5, 3
STEPS = N // N_B


def _data() -> TensorSet:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(N, 4, generator=g)
    return TensorSet(x, (x.sum(1) > 0).long() + (x[:, 0] > 1).long())


DATA = _data()
STORE = rd.IrreducibleLossStore.from_tensor(torch.rand(N, generator=torch.Generator()))


def _net(seed: int, *, dropout: float = 0.0, norm: bool = False) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = [nn.Linear(4, 8)]
        layers += [nn.BatchNorm1d(8)] if norm else []
        return nn.Sequential(*layers, nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, C))


def _loader() -> Any:
    return DATA.loader(N_B, generator=torch.Generator().manual_seed(3))


class Watching(rd.Selector):
    """Passes on another rule's choices; keeps the evidence they were made from."""

    def __init__(self, inner: rd.Selector) -> None:
        self.inner, self.needs = inner, inner.needs
        self.samples, self.lr_ratio = inner.samples, inner.lr_ratio
        self.evidence: list[rd.Evidence] = []

    def select(self, evidence: rd.Evidence, k: int, *, generator: torch.Generator) -> rd.Selection:
        self.evidence.append(evidence)
        return self.inner.select(evidence, k, generator=generator)


def _losses(model: nn.Module, ids: Tensor) -> Tensor:
    """In eval mode, leaving the mode as it was."""
    training = model.training
    model.eval()
    with torch.no_grad():
        loss = F.cross_entropy(model(DATA.inputs[ids]), DATA.targets[ids], reduction="none")
    model.train(training)
    return loss


def _update(model: nn.Module, optimizer: torch.optim.Optimizer, chosen: Any) -> None:
    x, y = chosen.batch
    loss = F.cross_entropy(model(x), y, reduction="none")
    optimizer.zero_grad()
    rd.weighted_mean(loss, chosen.weights).backward()
    optimizer.step()


def _train(batches: Any, model: nn.Module, optimizer: Any, epochs: int = 1) -> list[list[int]]:
    ids = []
    for _ in range(epochs):
        for chosen in batches:
            _update(model, optimizer, chosen)
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
    model, live = _net(0), _net(1, norm=norm)
    literal = copy.deepcopy(live)
    optimizer, other = make(model.parameters()), make(literal.parameters())
    rule = Watching(rd.selector("rho_updating", lr_ratio=0.1))
    batches = rd.SelectingLoader(
        _loader(), model, rule, keep=K, irreducible_model=live, optimizer=optimizer
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
            _update(literal, other, chosen)
            torch.testing.assert_close(live.state_dict(), literal.state_dict())
            assert not any(m.training for m in live.modules())

            _update(model, optimizer, chosen)
            optimizer.param_groups[0]["lr"] = rate * 0.7  # a schedule of the caller's
            steps += 1
    assert steps == 2 * STEPS


def test_importance_weights_count_in_the_step() -> None:
    class Weighted(Watching):
        def select(self, *args: Any, **kwargs: Any) -> rd.Selection:
            chosen = super().select(*args, **kwargs)
            return rd.Selection(chosen.index, torch.arange(1.0, K + 1))

    model, live = _net(0), _net(1)
    literal = copy.deepcopy(live)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    rule = Weighted(rd.selector("rho_updating", lr_ratio=0.5))
    batches = rd.SelectingLoader(
        _loader(), model, rule, keep=K, irreducible_model=live, optimizer=optimizer
    )
    chosen = next(iter(batches))
    _update(literal, torch.optim.SGD(literal.parameters(), lr=0.5), chosen)
    assert chosen.weights.tolist() == [1, 2, 3, 4, 5]
    torch.testing.assert_close(live.state_dict(), literal.state_dict())


def test_a_ratio_of_zero_is_an_irreducible_loss_that_never_moves() -> None:
    model, live = _net(0), _net(1)
    before = copy.deepcopy(live.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    batches = rd.SelectingLoader(
        _loader(), model, rd.selector("rho_updating", lr_ratio=0.0), keep=K,
        irreducible_model=live, optimizer=optimizer,
    )  # fmt: skip
    updating = _train(batches, model, optimizer, 2)
    torch.testing.assert_close(live.state_dict(), before, rtol=0, atol=0)
    model = _net(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    store = rd.IrreducibleLossStore.from_tensor(_losses(live, torch.arange(N)))
    fixed = rd.SelectingLoader(_loader(), model, rd.selector("rho"), keep=K, store=store)
    assert _train(fixed, model, optimizer, 2) == updating


def test_its_dropout_draws_nothing_from_the_global_streams(
    global_streams: Callable[[], Any],
) -> None:
    model, live = _net(0), _net(1, dropout=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    batches = rd.SelectingLoader(
        _loader(), model, rd.selector("rho_updating"), keep=K,
        irreducible_model=live, optimizer=optimizer,
    )  # fmt: skip
    streams = global_streams()
    assert len(list(batches)) == STEPS
    assert global_streams() == streams


@pytest.mark.parametrize("stop", [3, STEPS])
def test_a_live_model_resumes_as_if_never_stopped(stop: int) -> None:
    def setup() -> tuple[Any, ...]:
        model, live = _net(0), _net(1, norm=True)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
        rule = rd.selector("rho_updating", lr_ratio=1.0)
        batches = rd.SelectingLoader(
            _loader(), model, rule, keep=K, irreducible_model=live, optimizer=optimizer
        )
        return model, live, optimizer, batches

    model, live, optimizer, batches = setup()
    expected, saved = [], io.BytesIO()
    kept: dict[str, Any] = {}
    for _ in range(2):
        for chosen in batches:
            _update(model, optimizer, chosen)
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
            _update(again, optimizer, chosen)
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
            self.net, self.seconds = _net(0), seconds

        def forward(self, x: Tensor) -> Tensor:
            clock.now += self.seconds
            return self.net(x)

    model, live = Slow(1), Slow(10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    ledger = rd.Ledger(clock=clock)
    batches = rd.SelectingLoader(
        _loader(), model, rd.selector("rho_updating"), keep=K, irreducible_model=live,
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
        ({"irreducible_model": _net(1)}, "learns at a ratio of the model's rate: pass the model's"),
    ],
)
def test_a_live_model_needs_model_and_optimizer(options: Any, message: str) -> None:
    for rule in (rd.selector("rho_updating"), rd.Scheduled(rd.selector("rho_updating"))):
        with pytest.raises(rd.ConfigurationError, match=message):
            rd.SelectingLoader(_loader(), _net(0), rule, keep=K, **options)


def test_an_optimizer_that_cannot_be_made_twice() -> None:
    class Odd(torch.optim.SGD):
        def __init__(self, params: Any, must: int, **options: Any) -> None:
            super().__init__(params, **options)

    model = _net(0)
    with pytest.raises(rd.ConfigurationError, match="cannot make another Odd for the irreducible"):
        rd.SelectingLoader(
            _loader(), model, rd.selector("rho_updating"), keep=K, irreducible_model=_net(1),
            optimizer=Odd(model.parameters(), 3, lr=0.1),
        )  # fmt: skip


# -- shadows --------------------------------------------------------------------------------------

SHADOWS = ["train_loss", "uniform", "rho", "selective_backprop", "rho_ema", "rho_divbs", "bald"]


def _run(rule: rd.Selector, shadows: Any = None, **options: Any) -> tuple[Any, ...]:
    """Two epochs: chosen, the trained model and its loader."""
    model = _net(0, dropout=0.3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    options = {"keep": K, "store": STORE, "seed": 5} | options
    batches = rd.SelectingLoader(_loader(), model, rule, shadows=shadows, **options)
    chosen = []
    with torch.random.fork_rng([]):
        torch.manual_seed(7)
        for _ in range(2):
            for c in batches:
                _update(model, optimizer, c)
                chosen.append(c)
    return chosen, model, batches


@pytest.mark.parametrize("name", ["rho", "uniform", "train_loss", "rho_ema", "rho_bald"])
def test_shadows_change_neither_picks_nor_weights(name: str) -> None:
    options = {"keep": 16} if name == "rho_ema" else {}
    alone, model, batches = _run(rd.selector(name), **options)
    shadows = {n: rd.selector(n) for n in SHADOWS}
    watched, other, with_shadows = _run(rd.selector(name), shadows, **options)
    assert [c.ids.tolist() for c in watched] == [c.ids.tolist() for c in alone]
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert all(c.shadows == {} for c in alone)
    # and what training cost is counted as if nobody watched
    counts, mine = with_shadows.ledger.counts, batches.ledger.counts
    for field in ("examples_scored", "forwards_scored", "flops_score", "examples_trained"):
        assert getattr(counts, field) == getattr(mine, field), field


@pytest.mark.parametrize("name", SHADOWS)
@pytest.mark.parametrize("main", ["rho", "uniform", "rho_divbs", "entropy"])
def test_a_shadow_names_what_it_would_have_chosen_alone(name: str, main: str) -> None:
    """On the same candidates, with the model as it is: asked by hand, state carried along."""
    shadow, hand = rd.selector(name), rd.selector(name)
    candidates: list[Any] = []

    class Recorded:
        dataset = DATA

        def __iter__(self) -> Any:
            for batch in _loader():
                candidates.append(batch)
                yield batch

    model = _net(0, dropout=0.3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    rule = rd.selector(main, samples=3) if main == "entropy" else rd.selector(main)
    batches = rd.SelectingLoader(
        Recorded(), model, rule, keep=K, store=STORE, shadows={"s": shadow}, seed=5
    )
    for chosen in batches:
        at_that_moment = rd.SelectingLoader(
            [candidates[-1]], model, hand, keep=K, store=STORE, seed=5
        )
        at_that_moment.load_state_dict(
            at_that_moment.state_dict() | {"step": batches.step - 1, "selector": hand.state_dict()}
        )
        (would,) = at_that_moment
        assert chosen.shadows["s"].tolist() == would.ids.tolist()
        _update(model, optimizer, chosen)


def test_a_shadow_of_a_store_is_not_given_the_live_losses() -> None:
    model, live = _net(0), _net(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    watching = Watching(rd.selector("rho"))
    options: dict[str, Any] = {
        "keep": K, "irreducible_model": live, "optimizer": optimizer, "shadows": {"rho": watching},
    }  # fmt: skip
    rule = rd.selector("rho_updating")
    with pytest.raises(rd.ConfigurationError, match="needs 'irreducible_loss', got no store"):
        rd.SelectingLoader(_loader(), model, rule, **options)
    batches = rd.SelectingLoader(_loader(), model, rule, store=STORE, **options)
    for chosen in batches:
        evidence = watching.evidence[-1]
        assert torch.equal(evidence.require("irreducible_loss"), STORE.lookup(evidence.ids))
        assert chosen.shadows["rho"].numel() == K


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Slow(nn.Module):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.net, self.clock = _net(0, dropout=0.5), clock

    def forward(self, x: Tensor) -> Tensor:
        self.clock.now += 1
        return self.net(x)


@pytest.mark.parametrize(
    ("main", "shadow", "score", "evaluate"),
    [
        ("rho", "train_loss", 1, 0),  # nothing is missing
        ("train_loss", "rho", 1, 0),  # a look-up is
        ("rho", "entropy", 1, 1),  # dropout passes are, ten in one
        ("uniform", "train_loss", 0, 1),
        ("rho", "grad_norm", 1, 1),  # logits are
    ],
)
def test_what_shadows_cost_is_charged_to_evaluation(
    main: str, shadow: str, score: int, evaluate: int
) -> None:
    clock = Clock()
    ledger = rd.Ledger(clock=clock)
    batches = rd.SelectingLoader(
        _loader(), Slow(clock), rd.selector(main), keep=K, store=STORE, ledger=ledger,
        shadows={"s": rd.selector(shadow)},
    )  # fmt: skip
    assert len(list(batches)) == STEPS
    assert ledger.seconds["score"] == score * STEPS
    assert ledger.seconds["evaluate"] == evaluate * STEPS
    assert ledger.charged == score * STEPS


def test_the_state_of_shadows_is_saved() -> None:
    def make() -> Any:
        model = _net(0)
        return rd.SelectingLoader(
            _loader(), model, rd.selector("rho"), keep=K, store=STORE,
            shadows={"sb": rd.selector("selective_backprop"), "ema": rd.selector("rho_ema")},
        )  # fmt: skip

    batches = make()
    expected, state = [], {}
    for chosen in batches:
        expected.append({n: ids.tolist() for n, ids in chosen.shadows.items()})
        if batches.step == 3:
            state = batches.state_dict()
    again = make()
    again.load_state_dict(state)
    assert [{n: i.tolist() for n, i in c.shadows.items()} for c in again] == expected[3:]


@pytest.mark.parametrize(
    ("main", "shadow", "message"),
    [
        ("rho", "rs2", "a shadow selector must decide by candidate batch"),
        ("rs2", "rho", "a selector that decides by epoch has none"),
        ("train_loss", "reducr", "needs 'group_irreducible_loss', got a store with 0 groups"),
        ("train_loss", "rho_updating", "irreducible-loss model learns along"),
    ],
)
def test_shadows_that_cannot_watch(main: str, shadow: str, message: str) -> None:
    with pytest.raises(rd.ConfigurationError, match=message):
        rd.SelectingLoader(
            _loader(), _net(0), rd.selector(main), keep=K, store=STORE,
            shadows={"s": rd.selector(shadow)},
        )  # fmt: skip


def test_a_shadow_that_is_no_selector() -> None:
    wrong: Any = {"s": "rho"}
    with pytest.raises(rd.ConfigurationError, match="selector is a str; pass"):
        rd.SelectingLoader(_loader(), _net(0), rd.selector("uniform"), keep=K, shadows=wrong)


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
    batches = rd.SelectingLoader(_loader(), _net(0), rule, keep=K, groups=groups)
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
        batches = rd.SelectingLoader(_loader(), model, rule, keep=K, **options)
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
