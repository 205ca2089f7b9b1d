"""How a plan is steered, chosen on folds of a trusted set: what is tried, taken and charged."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import reducible as rd
from reducible.fitting import toward
from reducible.stores import ids_of
from reducible.types import ReducibleError

POOL, TRUSTED = 600, 40


def _data(relevant: float, flips: float, seed: int = 0) -> rd.WithIds:
    """Two classes along one axis; a pool of which the rest lies far off and says the opposite."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(2, (POOL + TRUSTED,), generator=g)
    x = torch.randn(POOL + TRUSTED, 6, generator=g)
    x[:, 0] += 2.0 * (2 * y - 1)
    beside = torch.arange(POOL + TRUSTED) < (1 - relevant) * POOL
    x[beside, 1] += 4
    x[beside, 0] *= -1
    pool = torch.arange(POOL + TRUSTED) < POOL
    wrong = (torch.rand(POOL + TRUSTED, generator=g) < flips) & pool
    return rd.WithIds(TensorDataset(x, torch.where(wrong, 1 - y, y)))


def _make() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))


def _plan(data: Any, **settings: Any) -> rd.Plan:
    options: dict[str, Any] = {
        "folds": 2, "updates": 40, "epochs": 10, "progress": False,
        "make_optimizer": lambda p: torch.optim.AdamW(p, lr=5e-3),
        "simple": [{"keep": 1.0, "share": 0.0}, {"keep": 1.0, "share": 0.25}],
        "steered": [{"keep": 0.2, "share": 0.25}],
    }  # fmt: skip
    return rd.plan_toward(_make, data, range(POOL, POOL + TRUSTED), **(options | settings))


def test_a_pool_that_is_beside_the_point_is_filtered() -> None:
    plan = _plan(_data(relevant=0.3, flips=0.0))
    choice = plan.report["choice"]
    assert choice["steered"]
    assert choice["settings"] == {"keep": 0.2, "share": 0.25}
    assert choice["over_simple"] > choice["standard_error"]
    kept = plan.ids[plan.ids < POOL]
    assert len(kept) == 0.2 * POOL
    assert float((kept >= 0.7 * POOL).float().mean()) > 0.9
    assert plan.ids[plan.ids >= POOL].tolist() == list(range(POOL, POOL + TRUSTED))


def test_a_pool_like_the_target_is_left_whole() -> None:
    plan = _plan(_data(relevant=1.0, flips=0.0))
    choice = plan.report["choice"]
    assert not choice["steered"]
    assert choice["settings"]["keep"] == 1.0
    assert int((plan.ids < POOL).sum()) == POOL


def test_caution_decides_between_equals() -> None:
    def tried(keep: float, right: list[float]) -> toward._Tried:
        return toward._Tried({"keep": keep}, 9, torch.tensor(right), False, sum(right) / len(right))

    both = [tried(1.0, [0.0, 0.0, 1.0, 1.0]), tried(0.2, [1.0, 0.0, 1.0, 1.0])]
    assert toward._choice(both, 1, caution=0.9)["settings"] == {"keep": 0.2}
    assert toward._choice(both, 1, caution=1.1)["settings"] == {"keep": 1.0}
    found = toward._choice(both, 1, caution=1.0)
    assert found["over_simple"] == found["standard_error"] == 0.25
    worse = [both[1], both[0]._replace(settings={"keep": 0.3})]
    assert toward._choice(worse, 1, caution=0.0)["settings"] == {"keep": 0.2}


def test_the_worse_half_ends_early_and_every_pilot_is_told_of() -> None:
    arms = [{"keep": k, "share": 0.25} for k in (0.2, 0.3, 1.0, 0.9, 0.8)]
    plan = _plan(_data(relevant=0.3, flips=0.1), steered=arms)
    tried = plan.report["choice"]["tried"]
    assert [t["keep"] for t in tried] == [1.0, 1.0, *(arm["keep"] for arm in arms)]
    assert not tried[0]["ended"]
    assert all(t["updates"] == 40 for t in tried if not t["ended"])
    ended = [t["updates"] for t in tried if t["ended"]]
    assert ended
    assert set(ended) <= {10, 20}
    json.dumps(plan.report)


def test_no_pilot_is_judged_on_what_it_or_its_losses_saw(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[set[int], set[int]]] = []
    trained = toward._Pilots._trained

    def spied(self: Any, fold: Any, number: int, settings: Any) -> Any:
        plan = rd.Plan.toward(fold.store, self._pool, trusted=fold.trusted, **settings)
        seen.append((set(plan.ids.tolist()), set(ids_of(fold.judged).tolist())))
        return trained(self, fold, number, settings)

    monkeypatch.setattr(toward._Pilots, "_trained", spied)
    _plan(_data(relevant=0.3, flips=0.1), folds=4)
    assert len(seen) == 3 * 4
    for planned, judged_on in seen:
        assert not planned & judged_on
        assert len(judged_on) == TRUSTED / 4
    assert set.union(*(judged_on for _, judged_on in seen)) == set(range(POOL, POOL + TRUSTED))


def test_all_of_it_is_charged_and_the_same_seed_plans_the_same() -> None:
    state = torch.random.get_rng_state()
    ledgers = [rd.Ledger(), rd.Ledger()]
    plans = [_plan(_data(relevant=0.3, flips=0.1), ledger=ledger, seed=3) for ledger in ledgers]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(plans[0].ids, plans[1].ids)
    assert plans[0].report["choice"]["tried"] == plans[1].report["choice"]["tried"]
    seconds = ledgers[0].seconds["irreducible_loss"]
    assert 0 < plans[0].report["choice"]["seconds"] <= seconds
    assert ledgers[0].counts.flops_irreducible_loss > 0


def test_other_tasks_are_judged_by_their_loss() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(80, 6, generator=g)
    data = rd.WithIds(TensorDataset(x, x[:, :1].sum(1)))
    plan = rd.plan_toward(
        lambda: nn.Linear(6, 1), data, range(60, 80), folds=2, updates=4, epochs=1, progress=False,
        task=rd.Regression(), simple=[{"keep": 1.0}], steered=[{"keep": 0.5}],
    )  # fmt: skip
    assert all(t["score"] < 0 for t in plan.report["choice"]["tried"])


def _with_labels(change: Any) -> rd.WithIds:
    data = _data(relevant=1.0, flips=0.0)
    x, y = data.dataset.tensors
    return rd.WithIds(TensorDataset(x, change(y)))


def _other_classes(y: Tensor) -> Tensor:
    return torch.where(torch.arange(len(y)) < POOL, torch.zeros_like(y), y)


@pytest.mark.parametrize(
    ("trusted", "settings", "message"),
    [
        ([POOL], {}, "1 trusted example: it is judged on folds"),
        ([POOL, 9999], {}, "trusted ids 9999 are not in the data"),
        (range(POOL + TRUSTED), {}, "no pool to choose from"),
        (range(POOL, POOL + 4), {"folds": 5}, "folds"),
        (range(POOL, POOL + 4), {"simple": []}, "something simple"),
        (range(POOL, POOL + 4), {"start_from": {}}, "start_from is of one model"),
        (range(POOL, POOL + 4), {"steered": [{"kept": 1}]}, "kept"),
    ],
)
def test_what_cannot_be(trusted: Any, settings: dict[str, Any], message: str) -> None:
    options: dict[str, Any] = {"folds": 2, "updates": 8, "epochs": 1, "progress": False}
    with pytest.raises((ReducibleError, TypeError), match=message):
        rd.plan_toward(_make, _data(1.0, 0.0), trusted, **(options | settings))


def test_classes_that_the_pool_lacks() -> None:
    with pytest.raises(rd.DataError, match="classes 1 of the trusted set are not in the pool"):
        _plan(_with_labels(_other_classes))


def test_without_optuna_the_cure_is_told() -> None:
    code = "import sys; sys.modules['optuna'] = None; import reducible.fitting.toward as t\n"
    code += "try: t._tried(None, [], 0)\nexcept Exception as e: print(e)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'reducible[steer]'" in done.stdout
