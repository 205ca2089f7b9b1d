"""Saved plans: what comes back, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import reducible as rd
from plan_toys import plan_of, store_of
from reducible.files import checkpoints


@pytest.mark.parametrize("multiple", [0.0, 2.0])  # without and with ids that are dropped
def test_save_and_load(multiple: float, tmp_path: Path) -> None:
    plan = plan_of(multiple=multiple)
    plan.save(tmp_path / "plan")
    again = rd.Plan.load(tmp_path / "plan")
    for name in ("ids", "weight", "dropped"):
        kept = getattr(again, name)
        assert kept.dtype == getattr(plan, name).dtype
        assert torch.equal(kept, getattr(plan, name))
    assert again.report == plan.report
    assert [p.name for p in tmp_path.iterdir()] == ["plan"]


def test_files_that_are_no_plans(tmp_path: Path) -> None:
    path = tmp_path / "plan"
    plan_of().save(path)
    whole = path.read_bytes()
    for damaged in (whole[:-9], whole[:20], b""):
        path.write_bytes(damaged)
        with pytest.raises(rd.StoreError, match=r"is not as it was written: .* Make the plan"):
            rd.Plan.load(path)
    store_of().save(path)
    with pytest.raises(rd.StoreError, match="is not as it was written"):
        rd.Plan.load(path)
    save_file({"ids": torch.arange(2)}, path)
    with pytest.raises(rd.StoreError, match="is not as it was written"):
        rd.Plan.load(path)


def test_no_changed_bit_of_a_plan_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "plan"
    plan_of().save(path)
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), 5):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(rd.StoreError, match="not as it was written"):
            rd.Plan.load(path)
    checkpoints.write(path, {"step": 3})
    with pytest.raises(rd.StoreError, match="is no saved plan"):
        rd.Plan.load(path)


def _parts(**changes: Any) -> dict[str, Any]:
    plan = plan_of()
    parts = {"ids": plan.ids, "weight": plan.weight, "dropped": plan.dropped}
    return {"format": "reducible.plan.2", **parts, "report": dict(plan.report)} | changes


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"report": {"noise_floor": [0.1], "wrong_share": 0.5, "wrong_share_kept": 0.1}},
        {"weight": torch.full((4,), 1 + 7e-7).double()},
    ],
)
def test_these_are_the_parts_of_a_plan(changes: dict[str, Any], tmp_path: Path) -> None:
    checkpoints.write(tmp_path / "plan", _parts(**changes))
    assert rd.Plan.load(tmp_path / "plan").ids.tolist() == [0, 1, 3, 4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": torch.tensor([0, 1, 4, 3])}, "ids do not ascend"),
        ({"ids": torch.tensor([0, 1, 1, 4])}, "ids do not ascend"),
        ({"ids": torch.tensor([-1, 1, 3, 4])}, "ids do not ascend"),
        ({"ids": torch.tensor([0, 1, 3, 4], dtype=torch.int32)}, "ids is no vector of torch.int64"),
        ({"ids": torch.tensor([[0, 1, 3, 4]])}, "ids is no vector"),
        ({"ids": torch.tensor([1, 3, 4])}, "not every id has a weight"),
        ({"ids": torch.empty(0).long(), "weight": torch.empty(0).double()}, "do not ascend"),
        ({"weight": torch.ones(4)}, "weight is no vector of torch.float64"),
        ({"weight": [1.0] * 4}, "weight is no vector"),
        ({"weight": torch.tensor([0.0, 2, 1, 1]).double()}, "not every id has a weight above 0"),
        ({"weight": torch.tensor([math.nan, 2, 1, 1]).double()}, "not every id has a weight"),
        ({"weight": torch.tensor([math.inf, 2, 1, 1]).double()}, "not every id has a weight"),
        ({"weight": torch.full((4,), 1.25).double()}, "the mean weight is 1.25, not 1"),
        ({"weight": torch.full((4,), 0.75).double()}, "the mean weight is 0.75, not 1"),
        ({"weight": torch.full((4,), 1 + 2e-6).double()}, "the mean weight is 1.0000"),
        ({"dropped": torch.tensor([3])}, "an id is both kept and dropped"),
        ({"dropped": torch.tensor([2.0])}, "dropped is no vector of torch.int64"),
        ({"report": {"noise_floor": [0.1]}}, "its report lacks what was decided"),
        ({"report": {"noise_floor": [0.1], "wrong_share": 0.5}}, "its report lacks what was"),
        ({"report": [1]}, "its report lacks what was decided"),
    ],
)
def test_a_sound_file_with_other_contents_is_no_plan(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    checkpoints.write(tmp_path / "plan", _parts(**changes))
    with pytest.raises(rd.StoreError, match=f"holds no plan: .*{message}.* Make the plan again"):
        rd.Plan.load(tmp_path / "plan")
    without = _parts()
    del without[next(iter(changes))]
    checkpoints.write(tmp_path / "less", without)
    with pytest.raises(rd.StoreError, match=f"holds no plan: no {next(iter(changes))}"):
        rd.Plan.load(tmp_path / "less")
