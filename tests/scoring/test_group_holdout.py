"""The group holdout loss: by hand, averaged over batches, resumed."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

import reducible as rd
from group_holdout_toys import G, rows_of
from reducible.scoring.group_holdout import GroupHoldoutLoss

TASK = rd.Classification()


class Scaled(nn.Module):
    """Logits s·x, so that losses follow from the inputs alone."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


def _batch(labels: list[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    x = torch.randn(len(labels), G, generator=torch.Generator().manual_seed(seed))
    return x, torch.tensor(labels)


def _losses(batch: tuple[Tensor, Tensor], scale: float = 1.0) -> Tensor:
    x, y = batch
    return F.cross_entropy(scale * x.double(), y, reduction="none")


def _mean(losses: Tensor, labels: Tensor, group: int) -> float:
    return float(losses[labels == group].mean())


# -- the whole holdout once an epoch --------------------------------------------------------------


def test_means_per_group_over_the_whole_holdout() -> None:
    batches = [_batch([0, 1, 2, 0]), _batch([1, 1, 0], seed=1)]  # unequal sizes
    h = GroupHoldoutLoss(batches, G).value(Scaled(), TASK, epoch=0, step=0)
    losses = torch.cat([_losses(b) for b in batches])
    labels = torch.cat([y for _, y in batches])
    expected = [_mean(losses, labels, g) for g in range(G)]
    assert h.tolist() == pytest.approx(expected, abs=1e-6)
    assert h.dtype == torch.float64


def test_numbers_worked_by_hand() -> None:
    # z = (2, 0, 0): L = 0.239545 for label 0, 2.239545 for the others
    x = torch.tensor([[2.0, 0.0, 0.0]] * 3)
    holdout = GroupHoldoutLoss([(x, torch.tensor([0, 1, 1]))], 2)
    h = holdout.value(Scaled(), TASK, epoch=0, step=0)
    assert h.tolist() == pytest.approx([0.239545, 2.239545], abs=1e-6)


def test_refreshed_once_an_epoch_with_the_model_as_it_is_then() -> None:
    batch, model = _batch([0, 1, 2]), Scaled()
    passes = 0

    class Counted:
        def __iter__(self) -> Iterator[Any]:
            nonlocal passes
            passes += 1
            yield batch

    holdout = GroupHoldoutLoss(Counted(), G)
    first = holdout.value(model, TASK, epoch=0, step=0)
    with torch.no_grad():
        model.scale.fill_(2.0)
    for step in (1, 2, 3):
        assert torch.equal(holdout.value(model, TASK, epoch=0, step=step), first)
    assert passes == 1
    later = holdout.value(model, TASK, epoch=1, step=4)
    assert passes == 2
    assert later.tolist() == pytest.approx(_losses(batch, 2.0).tolist(), abs=1e-6)


def test_a_group_that_is_missing_in_the_next_epoch_keeps_its_value() -> None:
    epochs = iter([[_batch([0, 1, 2])], [_batch([0, 1], seed=1)]])

    class Changing:
        def __iter__(self) -> Iterator[Any]:
            return iter(next(epochs))

    holdout = GroupHoldoutLoss(Changing(), G)
    first = holdout.value(Scaled(), TASK, epoch=0, step=0)
    second = holdout.value(Scaled(), TASK, epoch=1, step=1)
    assert second[2] == first[2]
    assert second[:2].tolist() == pytest.approx(_losses(_batch([0, 1], seed=1)).tolist(), abs=1e-6)


def test_a_group_never_seen_has_the_overall_mean() -> None:
    batch = _batch([0, 0, 2])
    h = GroupHoldoutLoss([batch], G).value(Scaled(), TASK, epoch=0, step=0)
    losses = _losses(batch)
    assert h[1].item() == pytest.approx(float(losses.mean()), abs=1e-6)
    assert h[0].item() == pytest.approx(float(losses[:2].mean()), abs=1e-6)


# -- a batch every m steps ------------------------------------------------------------------------


LABELS = [[0, 1, 1], [0, 2], [1, 1], [0, 1, 2, 2]]  # group 2 comes late, group 0 skips one


@pytest.mark.parametrize("decay", [0.9, 0.99])
@pytest.mark.parametrize("every", [1, 3])
def test_a_de_biased_average_over_batches(decay: float, every: int) -> None:
    """Literal: m_c ← a·m_c + (1 − a)·mean, over the batches that hold c; H_c = m_c/(1 − a^n_c)."""
    batches = [_batch(labels, seed) for seed, labels in enumerate(LABELS)]
    holdout = GroupHoldoutLoss(batches, G, refresh=every, decay=decay)
    model = Scaled()
    average, seen = [0.0] * G, [0] * G
    for step in range(20):
        with torch.no_grad():
            model.scale.fill_(1.0 + 0.1 * step)
        if step % every == 0:
            batch = batches[step // every % len(batches)]  # round and round
            losses = _losses(batch, 1.0 + 0.1 * step)
            for g in set(batch[1].tolist()):
                average[g] = decay * average[g] + (1 - decay) * _mean(losses, batch[1], g)
                seen[g] += 1
        h = holdout.value(model, TASK, epoch=step // 5, step=step)
        for g in range(G):
            if seen[g]:
                expected = average[g] / (1 - decay ** seen[g])
                assert h[g].item() == pytest.approx(expected, abs=1e-6), (step, g)
        if step == 0:
            assert seen[2] == 0
            mean = sum(average[:2]) / (2 * (1 - decay))
            assert h[2].item() == pytest.approx(mean, abs=1e-6)


def test_the_first_batch_counts_in_full_and_an_average_of_nothing_is_the_last() -> None:
    batches = [_batch([0, 1, 2], seed) for seed in range(3)]
    holdout = GroupHoldoutLoss(batches, G, refresh=1, decay=0.0)
    for step, batch in enumerate(batches):
        h = holdout.value(Scaled(), TASK, epoch=0, step=step)
        assert h.tolist() == pytest.approx(_losses(batch).tolist(), abs=1e-6)


# -- what is left alone ---------------------------------------------------------------------------


@pytest.mark.parametrize("refresh", ["epoch", 2])
@pytest.mark.parametrize("training", [True, False])
def test_model_and_streams_are_left_as_they_were(
    refresh: Any, training: bool, global_streams: Callable[[], Any]
) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.9), nn.Linear(6, G))
    model.train(training)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    # a plain loader draws a seed from the global stream for every pass
    loader = DataLoader(rd.WithIds(_pairs()), batch_size=7)
    holdout = GroupHoldoutLoss(loader, G, refresh=refresh)
    streams = global_streams()
    values = [holdout.value(model, TASK, epoch=e, step=3 * e) for e in range(12)]
    assert global_streams() == streams
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert all(m.training == training for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert not values[0].is_inference()
    if refresh == "epoch":  # eval mode: the same whatever dropout would have drawn
        assert all(torch.equal(v, values[0]) for v in values)
        model.eval()
        x, y = rows_of().inputs, rows_of().targets
        losses = F.cross_entropy(model(x), y, reduction="none").detach()
        expected = [_mean(losses, y, g) for g in range(G)]
        assert values[0].tolist() == pytest.approx(expected, abs=1e-5)


def _pairs() -> list[tuple[Tensor, Tensor]]:
    data = rows_of()
    return list(zip(data.inputs, data.targets, strict=True))


def test_groups_go_by_id() -> None:
    data = rows_of()
    group_of = torch.randint(2, (30,), generator=torch.Generator().manual_seed(1))
    seen: list[Tensor] = []

    def groups_of(ids: Tensor | None, targets: Tensor) -> Tensor:
        assert ids is not None
        seen.append(ids)
        return group_of[ids]

    model = nn.Linear(4, G)
    loader = data.loader(8, drop_last=False, generator=torch.Generator().manual_seed(2))
    h = GroupHoldoutLoss(loader, 2, groups_of=groups_of).value(model, TASK, epoch=0, step=0)
    losses = F.cross_entropy(model(data.inputs), data.targets, reduction="none").detach()
    assert h.tolist() == pytest.approx([_mean(losses, group_of, g) for g in (0, 1)], abs=1e-6)
    assert sorted(torch.cat(seen).tolist()) == list(range(30))


# -- stopping and resuming ------------------------------------------------------------------------


@pytest.mark.parametrize("refresh", ["epoch", 1, 2])
@pytest.mark.parametrize("stop", [1, 5, 7])
@pytest.mark.parametrize("shuffled", [False, True])
def test_resumed_equals_never_stopped(refresh: Any, stop: int, shuffled: bool) -> None:
    def make() -> GroupHoldoutLoss:
        own = torch.Generator().manual_seed(6)
        loader = rows_of().loader(9, shuffle=shuffled, drop_last=False, generator=own)
        return GroupHoldoutLoss(loader, G, refresh=refresh)

    def values(holdout: GroupHoldoutLoss, steps: range) -> list[list[float]]:
        out = []
        for step in steps:
            model = _scaled_linear(step)
            out.append(holdout.value(model, TASK, epoch=step // 4, step=step).tolist())
        return out

    whole = make()
    expected = values(whole, range(stop))
    state = io.BytesIO()
    torch.save(whole.state_dict(), state)
    held = whole.state_dict()
    expected += values(whole, range(stop, 14))
    state.seek(0)
    torch.testing.assert_close(held, torch.load(state, weights_only=True))  # did not move along
    again = make()
    state.seek(0)
    again.load_state_dict(torch.load(state, weights_only=True))
    assert values(again, range(stop, 14)) == expected[stop:]


def _scaled_linear(step: int) -> nn.Module:
    model = nn.Linear(4, G)
    with torch.no_grad():
        model.weight.copy_(torch.eye(G, 4) * (1 + step))
        model.bias.zero_()
    return model


# -- what cannot work -----------------------------------------------------------------------------


@pytest.mark.parametrize("refresh", ["epoch", 3])
def test_a_loader_that_yields_nothing(refresh: Any) -> None:
    with pytest.raises(rd.SelectionError, match="the group holdout is empty: no batch came"):
        GroupHoldoutLoss([], G, refresh=refresh).value(Scaled(), TASK, epoch=0, step=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"refresh": 0}, r"refresh must be a whole number in \[1"),
        ({"refresh": -1}, "refresh must be a whole number"),
        ({"refresh": True}, "refresh must be a whole number"),
        ({"refresh": 1.5}, "refresh is 'epoch' or a number of steps, got 1.5"),
        ({"refresh": "step"}, "refresh is 'epoch' or a number of steps, got 'step'"),
        ({"decay": 1.0}, r"decay must be a number in \[0.0, 1.0\)"),
        ({"decay": -0.1}, r"decay must be a number in \[0.0, 1.0\)"),
    ],
)
def test_settings_that_cannot_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(rd.ConfigurationError, match=message):
        GroupHoldoutLoss([], G, **options)


def test_a_group_that_the_store_does_not_have() -> None:
    with pytest.raises(rd.DataError, match=r"the holdout has group 2, the store .* 2 groups"):
        GroupHoldoutLoss([_batch([0, 2])], 2).value(Scaled(), TASK, epoch=0, step=0)


@pytest.mark.parametrize("refresh", ["epoch", 1])
def test_a_loss_that_is_not_finite_is_refused_before_it_is_kept(refresh: Any) -> None:
    targets = torch.tensor([0, 1, 2])
    x = torch.eye(3, G)
    x[1, 0] = float("nan")
    holdout = GroupHoldoutLoss([(x, targets)], G, refresh=refresh)
    before = holdout.state_dict()
    with pytest.raises(rd.SelectionError, match=r"not finite in groups \[1\]"):
        holdout.value(nn.Flatten(), TASK, epoch=0, step=0)
    assert torch.equal(holdout.state_dict()["sum"], before["sum"])
