"""Passes gone on with after a stop where workers draw, or an error that says why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, Subset
from torchdata.stateful_dataloader import StatefulDataLoader

import reducible as rd
from reader_toys import (
    FULL,
    N_B,
    SAMPLERS,
    Examples,
    K,
    N,
    Opaque,
    assert_resumes,
    batches_of,
    restore,
    run_until,
    seed_all,
)

# torchdata 0.11 calls what torch 2.13 takes no more notice of.
pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")


# -- workers that draw ----------------------------------------------------------------------------


def _augmented(make: Any = DataLoader, rule: str = "rho", **options: Any) -> Callable[[], Any]:
    updates = options.pop("updates", 1)
    scoring = rd.Scoring(updates_per_scoring=updates)
    options = {"num_workers": 2, "shuffle": True} | options

    def build() -> Any:
        data = options.get("data") or rd.WithIds(Examples(augment=True))
        rest = {k: v for k, v in options.items() if k != "data"}
        loader = make(data, batch_size=N_B, **rest)
        return batches_of(rule, loader, scoring=scoring)

    return build


WORKED = [
    ("rho", FULL + 3, {}),
    ("rho", FULL + 1, {}),  # not all workers have loaded a batch of the pass
    ("uniform", FULL + 3, {}),
    ("uniform", FULL + 1, {"generator": True}),
    ("rho", FULL + 3, {"persistent_workers": True}),
    ("rho", 2, {"persistent_workers": True, "generator": True}),
    ("uniform", FULL + 3, {"persistent_workers": True}),
    ("rho", 2 * FULL + 3, {"updates": 2}),
    ("rho", 2 * FULL + 1, {"updates": 2}),
]


@pytest.mark.parametrize(("rule", "stop", "options"), WORKED)
def test_augmentations_of_workers_go_on(rule: str, stop: int, options: dict[str, Any]) -> None:
    options = dict(options)
    own = options.pop("generator", False)

    def build() -> Any:
        more = {"generator": torch.Generator().manual_seed(4)} if own else {}
        return _augmented(rule=rule, **options, **more)()

    assert_resumes(build, stop)


@pytest.mark.parametrize("rule", ["rho", "uniform"])
def test_persistent_workers_go_on_between_passes(rule: str) -> None:
    assert_resumes(_augmented(rule=rule, persistent_workers=True), FULL, between=True)


def test_a_run_resumed_twice_goes_on() -> None:
    build, until = _augmented(), FULL + 6
    seed_all(3)
    expected, saved = run_until(build(), until, stop=FULL + 3)
    middle = build()
    restore(middle, saved)
    _, saved = run_until(middle, FULL + 4, stop=FULL + 4)
    last = build()
    restore(last, saved)
    assert run_until(last, until)[0] == expected[FULL + 4 :]


@pytest.mark.parametrize(
    ("stop", "between", "options"),
    [
        (FULL + 3, False, {}),
        (FULL + 1, False, {}),
        (FULL, True, {}),
        (2 * FULL + 3, False, {"updates": 2}),
        (2 * FULL + 1, False, {"updates": 2}),
        (FULL + 3, False, {"persistent_workers": True}),
        (FULL, True, {"persistent_workers": True}),
        (FULL + 2, False, {"snapshot_every_n_steps": 3}),
        (FULL + 3, False, {"num_workers": 0}),
        (FULL + 3, False, {"shuffle": False, "sampler": "python"}),
    ],
)
def test_a_loader_that_keeps_a_state_goes_on(
    stop: int, between: bool, options: dict[str, Any]
) -> None:
    def build() -> Any:
        more = {"sampler": SAMPLERS[options["sampler"]]()} if "sampler" in options else {}
        return _augmented(StatefulDataLoader, **(options | more))()

    assert_resumes(build, stop, between=between)


class Halves(IterableDataset[Any]):
    """Every worker yields rows of its own, shifted at random."""

    def __iter__(self) -> Iterator[rd.Candidates]:
        info = torch.utils.data.get_worker_info()
        first, step = (0, 1) if info is None else (info.id, info.num_workers)
        for i in range(first, N, step):
            yield rd.Candidates(torch.tensor(i), (torch.rand(4), i % 2))  # pyright: ignore


def test_workers_whose_batches_are_loaded_again_go_on() -> None:
    def build() -> Any:
        return batches_of("rho", DataLoader(Halves(), batch_size=N_B, num_workers=2))

    assert_resumes(build, 3)


# -- what cannot be the same ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ({}, {"num_workers": 1}, "stopped with num_workers=2.*Resume with as many"),
        ({"num_workers": 0}, {}, "stopped with num_workers=0"),
        ({"make": Opaque, "persistent_workers": True}, None, "persist.*StatefulDataLoader"),
        (
            {"make": StatefulDataLoader, "data": Subset(rd.WithIds(Examples(True)), range(N))},
            None,
            r"its data set does not.*WithIds\(Subset",
        ),
    ],
)
def test_augmentations_that_will_differ_are_told_once(
    before: dict[str, Any], after: dict[str, Any] | None, message: str
) -> None:
    seed_all(8)
    _, saved = run_until(_augmented(**before)(), FULL + 2, stop=FULL + 2)
    again = _augmented(**(before if after is None else after))()
    restore(again, saved)
    with pytest.warns(UserWarning, match=message):
        chosen = next(iter(again))
    restore(again, saved)
    assert next(iter(again)).ids.numel() == chosen.ids.numel() == K  # without a word
