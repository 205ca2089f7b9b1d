"""Workers' random streams: told after every batch, set where a stopped run's were."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from reducible.loading.streams import packed, unpack
from reducible.loading.workers import Beginning, Telling, Workers


@pytest.fixture(autouse=True)
def _put_back() -> Iterator[None]:
    before = packed()
    yield
    unpack(before)


def _reseed(worker: int) -> None:
    torch.manual_seed(worker)
    np.random.seed(worker)  # noqa: NPY002


def _collate(items: Any) -> Any:
    return torch.rand(len(items))


def _streams(seed: int) -> str:
    _reseed(seed)
    return packed()


def _text(number: int) -> str:
    return f"streams {number}"


def test_a_worker_is_initialised_and_then_set() -> None:
    begin = Beginning(_reseed)
    begin.streams = [None, _streams(7)]
    begin = pickle.loads(pickle.dumps(begin))  # as for workers that are spawned
    begin(1)
    assert packed() == _streams(7)
    begin(0)  # nothing is known of this one
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(0)))
    Beginning(None)(5)


def test_a_batch_comes_with_the_streams_after_it() -> None:
    tell = pickle.loads(pickle.dumps(Telling(_collate)))
    _reseed(3)
    batch, (worker, streams) = tell([1, 2])
    assert worker == 0  # in this process
    assert streams == packed()
    again = torch.Generator().manual_seed(3)
    assert torch.equal(batch, torch.rand(2, generator=again))


def test_a_batch_in_vain_leaves_no_trace_in_its_worker() -> None:
    tell, streams = Telling(_collate), _streams(9)
    tell.restore = [streams]
    _reseed(3)
    tell([1])
    assert packed() == streams
    tell([1])  # once
    assert packed() != streams


def _workers(count: int = 3) -> Workers:
    return Workers(SimpleNamespace(num_workers=count, collate_fn=None, worker_init_fn=None))


def _listen(workers: Workers, batches: range) -> list[int]:
    """Batch i is of worker i mod 3, whose streams are called i after it."""
    return list(workers.listened((i, (i % 3, _text(i))) for i in batches))


def test_the_turn_and_the_streams_of_each() -> None:
    workers = _workers()
    assert _listen(workers, range(2)) == [0, 1]
    assert workers.state_dict(back=False) == {"streams": [_text(0), _text(1), None], "turn": 2}
    assert workers.state_dict(back=True) == {"streams": [_text(0), None, None], "turn": 1}
    _listen(workers, range(2, 4))
    assert workers.state_dict(back=False)["streams"] == [_text(3), _text(1), _text(2)]
    assert workers.state_dict(back=True) == {"streams": [_text(i) for i in range(3)], "turn": 0}


def test_a_pass_goes_on_with_the_worker_whose_turn_it_is() -> None:
    first, again = _workers(), _workers()
    _listen(first, range(5))
    state = first.state_dict(back=False)
    assert again.resume(state, inside=True) == 2
    assert again.init.streams == [_text(3), _text(4), _text(2)]
    assert again.tell.restore == [_text(3), _text(4)]
    assert again.state_dict(back=False) == state
    again.started()
    assert again.init.streams == again.tell.restore == []
    _listen(again, range(5, 6))
    assert again.state_dict(back=False) == {"streams": [_text(i) for i in (3, 4, 5)], "turn": 0}
    assert again.state_dict(back=True) == state
    assert again.resume(state, inside=False) == 0  # a pass begins with worker 0
    assert again.tell.restore == []


@pytest.mark.parametrize("awake", [False, True])
def test_workers_that_persist_keep_their_streams(awake: bool) -> None:
    workers = _workers()
    _listen(workers, range(5))
    workers.begin(awake=awake)
    kept = [_text(3), _text(4), _text(2)] if awake else [None] * 3
    assert workers.state_dict(back=False) == {"streams": kept, "turn": 0}
