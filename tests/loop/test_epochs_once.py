"""A rule that decides once a run, by a proxy; what an epoch's end and a state say of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import reducible as rd

N, N_B, K = 60, 20, 5
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(1))
Y = (X.sum(1) > 0).long()


class Named(Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"other": X[index] * 0, "photo": X[index], "kind": Y[index]}


TASK = rd.Classification(inputs="photo", targets="kind")


def _proxy(seed: int = 1) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).eval()


def _loop(rule: str = "svp", *, rows: int = N, keep: int = K, seed: int = 1) -> Any:
    data: Any = rd.WithIds(torch.utils.data.Subset(Named(), range(rows)))
    loader = DataLoader(data, batch_size=N_B)
    options: dict[str, Any] = {"proxy": _proxy(seed)} if rule == "svp" else {}
    return rd.SelectingLoader(
        loader, nn.Linear(4, 2), rd.selector(rule), keep=keep, task=TASK, **options
    )


def _watched(loop: Any, name: str) -> list[Any]:
    """Collects what the rule's method ``name`` is given from now on."""
    given: list[Any] = []
    inner = getattr(loop._planner._selector, name)

    def watched(*arguments: Any, **options: Any) -> Any:
        given.append(arguments[0])
        return inner(*arguments, **options)

    setattr(loop._planner._selector, name, watched)
    return given


def test_the_proxy_scores_all_rows_in_eval_mode_as_the_task_reads_them() -> None:
    loop = _loop()
    given = _watched(loop, "select")
    next(iter(loop))
    (evidence,) = given
    with torch.no_grad():
        torch.testing.assert_close(evidence.logits, _proxy()(X))


def test_a_rule_that_decides_once_is_asked_and_told_once() -> None:
    loop = _loop()
    asked, told = _watched(loop, "select"), _watched(loop, "observe")
    for _ in range(3):
        list(loop)
    assert (len(asked), len(told)) == (1, 1)


def test_a_choice_made_once_is_gone_on_with() -> None:
    loop, again = _loop(), _loop(seed=2)  # whose proxy would choose others
    list(loop)
    again.load_state_dict(loop.state_dict())
    asked = _watched(again, "select")
    assert [c.ids.tolist() for c in again] == [c.ids.tolist() for c in loop]
    assert asked == []


def test_before_the_first_epoch_nothing_is_planned() -> None:
    state = _loop().state_dict()["passes"]["planner"]
    assert (state["index"].tolist(), state["weights"].tolist()) == ([], [])


@pytest.mark.parametrize(("planned", "updates"), [(True, 0), (False, 3)])
def test_an_epoch_without_an_update_is_not_observed(planned: bool, updates: int) -> None:
    loop = _loop("rs2")
    told = _watched(loop, "observe")
    planner = loop._planner
    if planned:
        planner.plan(epoch=0, step=0, total_steps=None, generator=torch.Generator())
    planner.end_epoch(updates)
    assert told == []


def test_a_share_of_few_rows_is_a_row_at_least() -> None:
    assert len(_loop("rs2", rows=10, keep=1)) == 1
