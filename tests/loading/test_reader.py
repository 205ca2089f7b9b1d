"""Passes gone on with after a stop: the same batches as without one, or an error that says why."""

from __future__ import annotations

import gc
import multiprocessing
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Sampler

import reducible as rd
from reader_toys import (
    FULL,
    N_B,
    SAMPLERS,
    Examples,
    N,
    Opaque,
    assert_resumes,
    batches_of,
    loader_of,
    restore,
    run_until,
    seed_all,
)

# -- samplers -------------------------------------------------------------------------------------


class Lazy(Sampler[int]):
    """Draws every index when it is asked for, from Python's stream."""

    def __len__(self) -> int:
        return N

    def __iter__(self) -> Iterator[int]:
        left = list(range(N))
        while left:
            yield left.pop(random.randrange(len(left)))


class Hidden(Sampler[int]):
    """Shuffles by what nobody else can see."""

    def __init__(self) -> None:
        seeds = iter(range(1000))
        self.draw = lambda: next(seeds)

    def __len__(self) -> int:
        return N

    def __iter__(self) -> Iterator[int]:
        return iter(
            torch.randperm(N, generator=torch.Generator().manual_seed(self.draw())).tolist()
        )


# -- running --------------------------------------------------------------------------------------


PLACES = {"inside": (FULL + 2, False), "between": (FULL, True)}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("make", [DataLoader, Opaque])
@pytest.mark.parametrize("rule", ["rho", "uniform"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_order_is_drawn_again(sampler: str, rule: str, make: Any, place: str) -> None:
    stop, between = PLACES[place]
    build = SAMPLERS[sampler]
    assert_resumes(lambda: batches_of(rule, loader_of(build(), make=make)), stop, between=between)


@pytest.mark.parametrize("sampler", ["python", "epoch", "own numpy"])
def test_an_order_is_drawn_again_for_workers(sampler: str) -> None:
    build = SAMPLERS[sampler]
    assert_resumes(lambda: batches_of("rho", loader_of(build(), num_workers=2)), FULL + 2)


@pytest.mark.parametrize("rule", ["rho", "uniform"])
def test_an_order_that_is_drawn_bit_by_bit_goes_on(rule: str) -> None:
    assert_resumes(lambda: batches_of(rule, loader_of(Lazy())), FULL + 2, draws=False)


def test_an_order_is_drawn_again_where_several_updates_share_a_batch() -> None:
    scoring = rd.Scoring(updates_per_scoring=3)
    make = SAMPLERS["python"]
    for stop in (1, 3 * FULL + 4, 3 * FULL + 5, 3 * FULL + 6):
        assert_resumes(lambda: batches_of("rho", loader_of(make()), scoring=scoring), stop)


def test_augmentations_of_this_process_go_on() -> None:
    data = Examples(augment=True)
    for rule in ("rho", "uniform"):
        assert_resumes(lambda: batches_of(rule, loader_of(data=rd.WithIds(data))), FULL + 2)  # noqa: B023


def test_a_pass_that_is_broken_off_lets_its_workers_go() -> None:
    """Without waiting for a search for cycles, which may come when the process forks again."""
    gc.collect()
    gc.disable()
    try:
        for rule in ("rho", "uniform"):
            batches = batches_of(rule, loader_of(range(N), num_workers=1, persistent_workers=True))
            next(iter(batches))
            assert len(multiprocessing.active_children()) == 1
            del batches
            assert multiprocessing.active_children() == []
    finally:
        gc.enable()


# -- what cannot be drawn again -------------------------------------------------------------------


@pytest.mark.parametrize("make", [DataLoader, Opaque])
@pytest.mark.parametrize("build", [Hidden, Lazy])
def test_an_order_that_cannot_be_drawn_again_is_told(build: Any, make: Any) -> None:
    def batches() -> Any:
        return batches_of("rho", loader_of(build(), make=make))

    seed_all(5)
    first = batches()
    _, saved = run_until(first, FULL + 4, stop=FULL + 3)
    again = batches()
    restore(again, saved)
    before = torch.get_rng_state(), random.getstate()
    with pytest.raises(rd.DataError, match=r"cannot be drawn again.* 3 batches .*set_epoch"):
        next(iter(again))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


@pytest.mark.parametrize("make", [DataLoader, Opaque])
def test_an_order_that_has_become_shorter_is_told(make: Any) -> None:
    first = batches_of("rho", loader_of(range(N), make=make))
    _, saved = run_until(first, 4, stop=3)
    again = batches_of("rho", loader_of(range(2 * N_B), make=make))
    restore(again, saved)
    with pytest.raises(rd.DataError, match="2 batches, where there were 3, of before"):
        next(iter(again))


def test_a_loader_with_other_generators_is_told() -> None:
    first = batches_of("rho", loader_of(SAMPLERS["own numpy"]()))
    _, saved = run_until(first, 3, stop=2)
    again = batches_of("rho", loader_of(range(N)))
    restore(again, saved)
    with pytest.raises(rd.DataError, match=r"1 generators and 0 epochs .* 0 and 0\. Resume with"):
        next(iter(again))


def test_batches_that_come_as_they_are_ready_are_refused() -> None:
    with pytest.raises(rd.ConfigurationError, match=r"in_order=False.*Leave in_order=True"):
        batches_of("rho", loader_of(range(N), num_workers=2, in_order=False))
    assert len(run_until(batches_of("rho", loader_of(range(N), in_order=False)), 3)[0]) == 3
