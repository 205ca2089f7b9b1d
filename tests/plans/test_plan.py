"""Plans by hand: what is dropped and how often the rest is seen; the report."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import reducible as rd
from plan_toys import FLOOR, LABELS, P, generator_of, plan_of, store_of
from reducible.lab.recipe import Recipe
from reducible.lab.studies.equal_time.recipes import setting
from reducible.plans.filtering import residual_weights
from reducible.plans.noise import noise_floor_filter, wrong_probability
from reducible.stores import fingerprint

# -- by hand --------------------------------------------------------------------------------------


def test_filter_by_hand() -> None:
    """Twice the floor is 0.2 for class 0 and 0.02 for class 1: a rare class keeps its 0.03."""
    keep = noise_floor_filter(P, LABELS, FLOOR, multiple=2.0)
    assert keep.tolist() == [True, True, False, True, True, False]
    assert bool(noise_floor_filter(P, LABELS, FLOOR, multiple=0.0).all())
    edge = torch.tensor([0.2], dtype=torch.float64)  # exactly at the floor: kept
    assert noise_floor_filter(edge, torch.tensor([0]), FLOOR, multiple=2.0).tolist() == [True]


def test_weights_by_hand() -> None:
    p = torch.tensor([0.98, 0.06, 0.5], dtype=torch.float64)
    raw = [math.sqrt(0.04), math.sqrt(0.96), math.sqrt(0.52)]
    mean = sum(raw) / 3
    weight = residual_weights(p, exponent=0.5)
    assert weight.tolist() == pytest.approx([w / mean for w in raw])
    assert residual_weights(p, exponent=0.0).tolist() == [1.0, 1.0, 1.0]
    sure = residual_weights(torch.ones(2, dtype=torch.float64), exponent=2.0)
    assert sure.tolist() == [1.0, 1.0]  # the offset keeps what is certain in


def test_a_plan_by_hand() -> None:
    plan = plan_of()
    assert plan.ids.tolist() == [0, 1, 3, 4]
    assert plan.dropped.tolist() == [5, 2]  # the highest irreducible loss first
    raw = torch.tensor([0.12, 0.77, 0.52, 0.99]).double().sqrt()
    torch.testing.assert_close(plan.weight, raw / raw.mean(), rtol=1e-6, atol=0)
    assert plan.weight.dtype == torch.float64
    assert plan.weight.mean().item() == pytest.approx(1.0)
    raw = torch.tensor([0.6, 1.25, 1.0, 1.47]).double()
    weight = plan_of(exponent=1.0, offset=0.5).weight
    torch.testing.assert_close(weight, raw / raw.mean(), rtol=1e-6, atol=0)


def test_order_of_ids_does_not_matter() -> None:
    mixed = torch.tensor([4, 0, 5, 2, 1, 3])
    store = store_of(fingerprint=fingerprint(torch.arange(6), LABELS))
    same = {"noise_floor": FLOOR, "multiple": 2.0}
    plan = rd.Plan.from_irreducible_loss(store, mixed, LABELS[mixed], **same)
    ordered = plan_of(exponent=0.25)
    assert torch.equal(plan.ids, ordered.ids)
    assert torch.equal(plan.weight, ordered.weight)


def test_the_floor_is_in_the_header_of_fitted_stores() -> None:
    store = store_of(header={"noise_floor": FLOOR.tolist(), "method": "holdout", "seconds": 2.5})
    plan = rd.Plan.from_irreducible_loss(store, torch.arange(6), LABELS, multiple=2.0)
    assert torch.equal(plan.ids, plan_of().ids)
    assert plan.report["store"] == {"method": "holdout", "model": None, "seconds": 2.5}
    other = rd.Plan.from_irreducible_loss(store, torch.arange(6), LABELS, noise_floor=FLOOR * 0)
    assert len(other.ids) == 6  # what is given counts


def test_defaults_are_those_of_the_plan_that_the_study_recommends() -> None:
    report = rd.Plan.from_irreducible_loss(
        store_of(), torch.arange(6), LABELS, noise_floor=FLOOR
    ).report
    recipes = (setting("mlp", "clean", "noisy", "plan-full"), Recipe(name="a", selector="uniform"))
    for recipe in recipes:
        assert report["multiple"] == recipe.plan_multiple
        assert report["exponent"] == recipe.plan_exponent


def test_the_report_says_what_was_decided() -> None:
    report = plan_of(exponent=1.0).report
    assert json.loads(json.dumps(dict(report))) == report
    assert (report["multiple"], report["exponent"], report["offset"]) == (2.0, 1.0, 0.02)
    assert (report["examples"], report["kept"]) == (6, 4)
    assert report["noise_floor"] == FLOOR.tolist()
    assert report["highest_irreducible_loss"] == [5, 2]
    assert [(r["class"], r["examples"], r["kept"]) for r in report["by_class"]] == [
        (0, 3, 2),
        (1, 3, 2),
    ]
    assert [r["median_probability"] for r in report["by_class"]] == pytest.approx([0.25, 0.03])


def test_the_loss_with_a_noise_floor_by_hand() -> None:
    """−log(0.7·p + m_y) with floors 0.1 and 0.2: a right label at p = 0.5, a wrong one at 0."""
    loss = torch.tensor([-math.log(0.5), 200.0, 0.0], dtype=torch.float64)
    floor = torch.tensor([0.1, 0.2], dtype=torch.float64)
    mine = rd.noise_floor_loss(loss, torch.tensor([0, 1, 1]), floor)
    expected = [-math.log(0.45), -math.log(0.2), -math.log(0.9)]
    assert mine.tolist() == pytest.approx(expected, rel=1e-12)


def test_its_gradient_is_the_plain_one_times_the_probability_that_the_label_is_right() -> None:
    g = generator_of(3)
    floor = torch.tensor([0.1, 0.05, 0.0], dtype=torch.float64)
    logits = 3.0 * torch.randn(8, 3, generator=g, dtype=torch.float64)
    targets = torch.randint(3, (8,), generator=g)
    gradients: list[Tensor] = []
    for floored in (False, True):
        z = logits.clone().requires_grad_()
        loss = torch.nn.functional.cross_entropy(z, targets, reduction="none")
        (rd.noise_floor_loss(loss, targets, floor) if floored else loss).sum().backward()
        assert z.grad is not None
        gradients.append(z.grad)
    p = logits.softmax(1)[torch.arange(8), targets]
    right = 0.85 * p / (0.85 * p + floor[targets])  # Bayes
    torch.testing.assert_close(gradients[1], right.unsqueeze(1) * gradients[0])


def test_without_noise_it_is_the_plain_loss() -> None:
    loss = torch.tensor([0.1, 7.0, 80.0])
    mine = rd.noise_floor_loss(loss, torch.tensor([0, 1, 0]), torch.zeros(2))
    torch.testing.assert_close(mine, loss)


def test_the_share_of_wrong_labels_and_the_floor_that_is_left_by_hand() -> None:
    """m/p, at most 1: 1/9, 0.4, 2/3 of the first class, 0.02, 1/3, 2/3 of the second."""
    wrong = wrong_probability(P, LABELS, FLOOR)
    assert wrong.tolist() == pytest.approx([1 / 9, 0.4, 2 / 3, 0.02, 1 / 3, 2 / 3])
    sure = wrong_probability(FLOOR / 2, torch.tensor([0, 1]), FLOOR)
    assert sure.tolist() == [1.0, 1.0]
    plan = plan_of(exponent=0.0)  # keeps 0, 1, 3 and 4
    before, after = float(wrong.mean()), (1 / 9 + 0.4 + 0.02 + 1 / 3) / 4
    assert plan.report["wrong_share"] == pytest.approx(before)
    assert plan.report["wrong_share_kept"] == pytest.approx(after)
    left = after / before
    assert plan.noise_floor.tolist() == pytest.approx([0.1 * left, 0.01 * left])
    weighted = plan_of(exponent=1.0)
    kept = wrong[torch.tensor([0, 1, 3, 4])]
    mean = float((weighted.weight * kept).sum() / weighted.weight.sum())
    assert weighted.report["wrong_share_kept"] == pytest.approx(mean)
    both = plan.including(torch.tensor([7, 8]))  # of which as many are wrong as of all
    assert both.report["wrong_share_kept"] == pytest.approx((4 * after + 2 * before) / 6)


def test_data_without_noise_has_no_floor() -> None:
    plan = plan_of(noise_floor=torch.zeros(2))
    assert plan.report["wrong_share"] == 0.0
    assert plan.noise_floor.tolist() == [0.0, 0.0]
    unseen = plan_of(noise_floor=torch.tensor([0.0, 0.0, 0.25]))  # of a class without a label
    assert unseen.noise_floor.tolist() == [0.0, 0.0, 0.25]


def test_floors_that_leave_nothing_are_refused() -> None:
    lost = plan_of(noise_floor=torch.tensor([0.5, 0.5]), multiple=0.0, exponent=0.0)
    with pytest.raises(rd.DataError, match="add up to 1: the irreducible-loss model"):
        _ = lost.noise_floor


def test_a_plan_that_takes_in_the_holdout() -> None:
    plan = plan_of(exponent=1.0)
    both = plan.including(torch.tensor([9, 7]))
    assert both.ids.tolist() == [0, 1, 3, 4, 7, 9]
    torch.testing.assert_close(both.weight, torch.cat([plan.weight, torch.ones(2).double()]))
    assert torch.equal(both.dropped, plan.dropped)
    assert both.report["included"] == 2
    for judged in (3, 5):  # one kept, one dropped
        with pytest.raises(rd.DataError, match=rf"judged ids {judged} already"):
            plan.including(torch.tensor([8, judged]))
    for ids, message in (([7, 7], "ids 7 occur more than once"), ([-7], "negative")):
        with pytest.raises(rd.DataError, match=message):
            plan.including(torch.tensor(ids))


@pytest.mark.parametrize("of", [list, tuple, np.array, lambda v: np.array(v, dtype=np.int32)])
def test_ids_and_labels_as_data_sets_have_them(of: Callable[[list[int]], Any]) -> None:
    options: dict[str, Any] = {"noise_floor": FLOOR, "multiple": 2.0}
    store = store_of(fingerprint=fingerprint(torch.arange(6), LABELS))
    made = rd.Plan.from_irreducible_loss(store, range(6), of(LABELS.tolist()), **options)
    assert made.ids.tolist() == [0, 1, 3, 4]
    column = torch.as_tensor(of(LABELS.tolist())).view(6, 1)
    assert rd.Plan.from_irreducible_loss(store, range(6), column, **options).ids.equal(made.ids)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.nn.functional.one_hot(LABELS), r"one-hot. Take y.argmax\(dim=1\)"),
        (LABELS.float(), r"floats that hold whole numbers. Take y.long\(\)"),
        ([*LABELS.tolist()[:-1], 0.5], "no classes"),
        (["a", "a", "a", "b", "b", "b"], r"strings such as 'a'. Number the classes once"),
        (np.array(["a", "b"] * 3), "got ndarray"),
        ([0, 1], r"6 ids but labels of shape \(2,\)"),
    ],
)
def test_labels_that_are_no_classes(labels: Any, message: str) -> None:
    with pytest.raises(rd.DataError, match=message):
        rd.Plan.from_irreducible_loss(store_of(), range(6), labels, noise_floor=FLOOR)
    with pytest.raises(rd.DataError, match=r"such as 'a'\. Hash them once"):
        rd.Plan.from_irreducible_loss(store_of(), list("abcdef"), LABELS, noise_floor=FLOOR)  # pyright: ignore[reportArgumentType]


def test_a_class_without_examples() -> None:
    labels = torch.tensor([0, 0, 0, 2, 2, 2])
    report = plan_of(labels=labels, noise_floor=torch.tensor([0.1, 0.5, 0.01])).report
    assert report["by_class"][1] == {
        "class": 1, "examples": 0, "kept": 0, "median_probability": None,
    }  # fmt: skip


# -- what cannot work -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"multiple": -1.0}, r"multiple must be a number in \[0.0, inf\)"),
        ({"multiple": math.nan}, "got nan"),
        ({"exponent": -0.5}, "exponent must be"),
        ({"exponent": math.inf}, "got inf"),
        ({"offset": 0.0}, r"offset must be a number in \(0.0, inf\)"),
        ({"noise_floor": None}, "has no noise floor .* pass noise_floor="),
        ({"noise_floor": torch.tensor([0.1])}, r"a noise floor of shape \(1,\), 2 classes"),
        ({"noise_floor": torch.ones(2, 2)}, r"a noise floor of shape \(2, 2\)"),
        ({"multiple": 100.0}, "multiple=100.0 of the noise floor drops all 6 examples"),
    ],
)
def test_settings_that_cannot_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(rd.ConfigurationError, match=message):
        plan_of(**options)


def test_data_that_does_not_fit() -> None:
    plan, ids = rd.Plan.from_irreducible_loss, torch.arange(6)
    with pytest.raises(rd.DataError, match=r"6 ids but labels of shape \(5,\)"):
        plan(store_of(), ids, LABELS[:5], noise_floor=FLOOR)
    with pytest.raises(rd.DataError, match=r"ids 0, 1, 2 occur more than once"):
        plan(store_of(), ids // 2, LABELS, noise_floor=FLOOR)
    grouped = rd.IrreducibleLossStore.from_tensor(torch.zeros(6, 2))
    with pytest.raises(rd.ConfigurationError, match="one loss per example, not groups"):
        plan(grouped, ids, LABELS, noise_floor=FLOOR)
    of_others = store_of(fingerprint=fingerprint(ids, LABELS.flip(0)))
    with pytest.raises(rd.StoreError, match="the same ids with other labels"):
        plan(of_others, ids, LABELS, noise_floor=FLOOR)
    with pytest.raises(rd.StoreError, match="1 ids without irreducible loss: 6"):
        plan(store_of(), ids + 1, LABELS, noise_floor=FLOOR)
    with pytest.raises(rd.DataError, match="irreducible losses below 0, ids 0"):
        plan(store_of(P + torch.tensor([0.2, 0, 0, 0, 0, 0])), ids, LABELS, noise_floor=FLOOR)


def test_a_plan_that_keeps_little_says_so() -> None:
    labels = torch.zeros(10, dtype=torch.int64)
    p = torch.tensor([0.9] * 3 + [0.1] * 7)
    store = rd.IrreducibleLossStore.from_tensor(-p.log())
    floor = torch.tensor([0.1])
    with pytest.warns(UserWarning, match="keeps 3 of 10 examples") as warned:
        plan = rd.Plan.from_irreducible_loss(store, torch.arange(10), labels, noise_floor=floor)
    assert [w.filename for w in warned] == [__file__]
    assert plan.ids.tolist() == [0, 1, 2]
    assert plan.dropped.tolist() == list(range(3, 10))
    enough = rd.IrreducibleLossStore.from_tensor(-torch.tensor([0.9] * 4 + [0.1] * 6).log())
    rd.Plan.from_irreducible_loss(enough, torch.arange(10), labels, noise_floor=floor * 1.01)


def test_the_report_names_the_twenty_that_are_dropped_first() -> None:
    p = torch.linspace(0.01, 0.9, 60, dtype=torch.float64)
    floor = torch.tensor([0.5], dtype=torch.float64)
    labels = torch.zeros(60, dtype=torch.int64)
    plan = plan_of(p=p, labels=labels, noise_floor=floor, multiple=1.0)
    assert plan.dropped.tolist() == list(range(33))
    assert plan.report["highest_irreducible_loss"] == list(range(20))
    assert plan.report["drop_below"] == [0.5]
    assert plan_of(p=p, labels=labels, noise_floor=floor, multiple=0.5).report["drop_below"] == [
        0.25
    ]


def test_a_floor_for_a_class_more_than_there_are() -> None:
    plan = plan_of(noise_floor=torch.tensor([0.1, 0.01, 0.3]))
    assert plan.ids.tolist() == plan_of().ids.tolist()
    assert plan.report["noise_floor"] == pytest.approx([0.1, 0.01, 0.3])
