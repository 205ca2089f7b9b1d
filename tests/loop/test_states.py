"""States of a loop: taken over whole by the loop they are of, and by no other."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from torch import nn

import reducible as rd
from reducible.files import checkpoints
from reducible.lab.data import TensorSet
from reducible.loop import states

N, N_BIG, N_B = 96, 16, 4


def _data(seed: int = 0, n: int = N) -> TensorSet:
    g = torch.Generator().manual_seed(seed)
    return TensorSet(torch.randn(n, 5, generator=g), torch.arange(n) % 3, num_classes=3)


def _loop(rule: str = "rho", *, data: TensorSet | None = None, **changes: Any) -> Any:
    data = data or _data()
    torch.manual_seed(3)
    model = nn.Linear(5, 3)
    values = torch.arange(len(data), dtype=torch.float32) / 50
    options: dict[str, Any] = {
        "keep": N_B,
        "seed": 1,
        "store": rd.IrreducibleLossStore.from_tensor(values),
        "shadows": {"watch": rd.selector("train_loss")},
    }
    loader = data.loader(
        changes.pop("n_candidates", N_BIG), generator=torch.Generator().manual_seed(5)
    )
    return rd.SelectingLoader(loader, model, rd.selector(rule), **(options | changes))


def _stopped(**changes: Any) -> dict[str, Any]:
    batches = _loop(**changes)
    for _, _chosen in zip(range(3), batches, strict=False):
        pass
    return batches.state_dict()


def _rest(batches: Any) -> list[list[int]]:
    return [chosen.ids.tolist() for chosen in batches]


def test_a_state_is_taken_over_from_a_checkpoint() -> None:
    batches = _loop()
    walk = iter(batches)
    for _ in range(3):
        next(walk)
    state = checkpoints.unpacked(checkpoints.packed(batches.state_dict()))
    again = _loop()
    again.load_state_dict(state)
    assert _rest(again) == [chosen.ids.tolist() for chosen in walk]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"keep": 8}, r"keep: 4 in the state, 8 here"),
        ({"seed": 2}, r"seed: 1 in the state, 2 here"),
        ({"data": _data(n=128)}, r"data: 'n=96;ids=.*in the state, 'n=128"),
        ({"rule": "train_loss"}, r"selector: 'Scored\(irreducible_loss, loss\)' in the state"),
        ({"shadows": {}}, r"shadows: \{'watch': .*\} in the state, \{\} here"),
        ({"n_candidates": 32}, r"batch size: 16 in the state, 32 here"),
        ({"scoring": rd.Scoring(batchnorm="running")}, "scoring: .*candidates.* in the state"),
        (
            {"store": rd.IrreducibleLossStore.from_tensor(torch.ones(N))},
            "store: '[0-9a-f]{16}' in the state, '",
        ),
    ],
)
def test_a_state_of_another_loop_is_refused_with_the_difference(
    changes: dict[str, Any], named: str
) -> None:
    state, other, untouched = _stopped(), _loop(**changes), _loop(**changes)
    with pytest.raises(rd.ConfigurationError, match=named):
        other.load_state_dict(state)
    assert other.step == 0
    assert _rest(other) == _rest(untouched)


def test_a_state_says_what_else_its_loop_had() -> None:
    small = nn.Linear(5, 3)
    co_trained = rd.CoTrained(small, torch.optim.SGD(small.parameters(), lr=0.1))
    live = nn.Linear(5, 3)
    optimizer = torch.optim.SGD(live.parameters(), lr=0.1)
    plain = _loop().state_dict()["of"]
    names = ("scorer", "irreducible_model", "group_holdout", "gate")
    assert [plain[name] for name in names] == [False] * 4
    with_scorer = _loop(scorer=co_trained)
    assert with_scorer.state_dict()["of"]["scorer"] is True
    with pytest.raises(rd.ConfigurationError, match="scorer: False in the state, True here"):
        with_scorer.load_state_dict(_loop().state_dict())
    updating = _loop("rho_updating", irreducible_model=live, optimizer=optimizer, store=None)
    assert updating.state_dict()["of"]["irreducible_model"] is True
    held = _data(7).loader(N_BIG)
    gated = _loop(gate="auto", held_out=held, shadows=None)
    assert gated.state_dict()["of"]["gate"] is True


def test_settings_that_are_not_given() -> None:
    defaults = {n: p.default for n, p in inspect.signature(rd.SelectingLoader).parameters.items()}
    assert (defaults["seed"], defaults["refresh"], defaults["refresh_decay"]) == (0, "epoch", 0.9)


def test_keys_that_are_missing_or_no_mapping_are_told() -> None:
    batches = _loop()
    state = batches.state_dict()
    less = {name: value for name, value in state.items() if name != "ledger"}
    with pytest.raises(rd.ConfigurationError, match=r"the state has \['gating', .* where \['gati"):
        batches.load_state_dict(less)
    with pytest.raises(
        rd.ConfigurationError, match=r"the state of the passes has list where \['ep"
    ):
        batches.load_state_dict(state | {"passes": [1]})


def _damaged(state: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """``state`` without each of its entries, at two depths, and with numbers below 0."""
    found: list[tuple[str, dict[str, Any]]] = []
    for key, value in state.items():
        found.append((key, {k: v for k, v in state.items() if k != key}))
        if not isinstance(value, dict) or key in ("of", "shadows"):
            continue
        for inner in value:
            without = copy.deepcopy(state)
            del without[key][inner]
            found.append((f"{key}.{inner}", without))
    for key, inner in (("step", None), ("passes", "position"), ("passes", "n_candidates")):
        below = copy.deepcopy(state)
        if inner is None:
            below[key] = -5
        else:
            below[key][inner] = -5
        found.append((f"{key}.{inner} below 0", below))
    return found


@pytest.mark.parametrize("rule", ["rho", "reducr", "rs2", "infobatch", "grad_norm_is", "uniform"])
def test_a_damaged_state_is_refused_and_nothing_of_it_taken(rule: str) -> None:
    changes: dict[str, Any] = {"rule": rule}
    if rule == "reducr":
        changes["store"] = rd.IrreducibleLossStore.from_tensor(torch.ones(N, 3))
        changes["group_holdout"] = _data(9).loader(32, shuffle=False)
    if rule == "infobatch":
        changes |= {"keep": 1.0, "total_steps": 60}
    if rule in ("rs2", "infobatch"):
        changes["shadows"] = {}
    state = _stopped(**changes)
    expected = _rest(_loop(**changes))
    for what, damaged in _damaged(state):
        batches = _loop(**changes)
        assert _refuses(batches, damaged), what
        assert batches.step == 0
        assert _rest(batches) == expected, what


def _refuses(batches: Any, state: dict[str, Any]) -> bool:
    try:
        batches.load_state_dict(state)
    except rd.ReducibleError:
        return True
    return False


def test_a_state_without_a_version_or_that_is_none() -> None:
    with pytest.raises(rd.ConfigurationError, match="of version None, this reducible reads"):
        _loop().load_state_dict({"step": 3})
    with pytest.raises(rd.ConfigurationError, match="a state is a mapping, got list"):
        _loop().load_state_dict([])
    with pytest.raises(rd.ConfigurationError, match="step in the state must be a whole number"):
        _loop().load_state_dict(_stopped() | {"step": -5})


def test_the_version_is_written_down() -> None:
    """Raise it together with the meaning of a state, and nowhere else."""
    assert _loop().state_dict()["version"] == 1


def test_what_only_the_state_knows_of_is_a_difference_too() -> None:
    state = _stopped()
    state["of"] = state["of"] | {"extra": True}
    with pytest.raises(rd.ConfigurationError, match="extra: True in the state, None here"):
        _loop().load_state_dict(state)


@pytest.mark.parametrize(("most", "told"), [(N, "n=96;ids="), (N - 1, "n=96")])
def test_of_large_data_the_length_alone_is_told(
    most: int, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "_AT_MOST", most)
    found = _loop().state_dict()["of"]["data"]
    assert found.startswith(told)
    assert ("ids" in found) == (most == N)


def test_of_data_without_ids_the_length_is_told() -> None:
    rows = [{"ids": torch.arange(8), "x": torch.zeros(8, 5), "y": torch.zeros(8).long()}]

    class Rows(list[Any]):
        dataset = range(8)

    loop = rd.SelectingLoader(
        Rows(rows), nn.Linear(5, 3), rd.selector("uniform"), keep=4, ids="ids"
    )
    assert loop.state_dict()["of"]["data"] == "n=8"
