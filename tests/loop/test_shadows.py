"""Shadows: what they would choose, what they cost, and that training does not notice them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reducible as rd
from measuring_toys import DATA, STEPS, STORE, K, Watching, loader_of, small_net, update

SHADOWS = ["train_loss", "uniform", "rho", "selective_backprop", "rho_ema", "rho_divbs", "bald"]


def _run(rule: rd.Selector, shadows: Any = None, **options: Any) -> tuple[Any, ...]:
    """Two epochs: chosen, the trained model and its loader."""
    model = small_net(0, dropout=0.3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    options = {"keep": K, "store": STORE, "seed": 5} | options
    batches = rd.SelectingLoader(loader_of(), model, rule, shadows=shadows, **options)
    chosen = []
    with torch.random.fork_rng([]):
        torch.manual_seed(7)
        for _ in range(2):
            for c in batches:
                update(model, optimizer, c)
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
            for batch in loader_of():
                candidates.append(batch)
                yield batch

    model = small_net(0, dropout=0.3)
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
        update(model, optimizer, chosen)


def test_a_shadow_of_a_store_is_not_given_the_live_losses() -> None:
    model, live = small_net(0), small_net(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    watching = Watching(rd.selector("rho"))
    options: dict[str, Any] = {
        "keep": K, "irreducible_model": live, "optimizer": optimizer, "shadows": {"rho": watching},
    }  # fmt: skip
    rule = rd.selector("rho_updating")
    with pytest.raises(rd.ConfigurationError, match="needs 'irreducible_loss', got no store"):
        rd.SelectingLoader(loader_of(), model, rule, **options)
    batches = rd.SelectingLoader(loader_of(), model, rule, store=STORE, **options)
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
        self.net, self.clock = small_net(0, dropout=0.5), clock

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
        loader_of(), Slow(clock), rd.selector(main), keep=K, store=STORE, ledger=ledger,
        shadows={"s": rd.selector(shadow)},
    )  # fmt: skip
    assert len(list(batches)) == STEPS
    assert ledger.seconds["score"] == score * STEPS
    assert ledger.seconds["evaluate"] == evaluate * STEPS
    assert ledger.charged == score * STEPS


def test_the_state_of_shadows_is_saved() -> None:
    def make() -> Any:
        model = small_net(0)
        return rd.SelectingLoader(
            loader_of(), model, rd.selector("rho"), keep=K, store=STORE,
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
            loader_of(), small_net(0), rd.selector(main), keep=K, store=STORE,
            shadows={"s": rd.selector(shadow)},
        )  # fmt: skip


def test_a_shadow_that_is_no_selector() -> None:
    wrong: Any = {"s": "rho"}
    with pytest.raises(rd.ConfigurationError, match="selector is a str; pass"):
        rd.SelectingLoader(loader_of(), small_net(0), rd.selector("uniform"), keep=K, shadows=wrong)
