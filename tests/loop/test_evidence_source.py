"""Where evidence comes from: context, groups, memory, costs; and what a state keeps of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reducible as rd
from reducible.ledger import Ledger
from reducible.loop import EvidenceSource, Learners, Moment
from reducible.loop.evidence import Supplemented
from reducible.scoring import CoTrained, GroupHoldoutLoss
from reducible.stores import LossMemory

B = 40
X = torch.randn(B, 3, generator=torch.Generator().manual_seed(0))
Y = torch.arange(B) % 2
HERE = rd.Candidates(torch.arange(B), (X, Y))
NAMED = rd.Candidates(torch.arange(B), {"other": X, "photo": X, "kind": Y})
TASK = rd.Classification(inputs="photo", targets="kind")
NOW = Moment(epoch=2, step=7)


def _net(*, norm: bool = False) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        layers: list[nn.Module] = [nn.Linear(3, 4)]
        layers += [nn.BatchNorm1d(4)] if norm else []
        return nn.Sequential(*layers, nn.ReLU(), nn.Dropout(), nn.Linear(4, 2))


def _source(*, scoring: Any = None, learners: Any = None, task: Any = None, **options: Any) -> Any:
    model, ledger = options.pop("model", None) or _net(), Ledger()
    scoring, task = scoring or rd.Scoring(), task or rd.Classification()
    learners = learners or Learners(model, task, scoring, ledger)
    return EvidenceSource(model, task, scoring, ledger, learners, **options)


def _needs(*names: str) -> frozenset[str]:
    return frozenset(names)


def test_the_seed_of_a_moment_is_0() -> None:
    assert Moment(1, 2).seed == 0


def test_context_holds_what_is_asked_for_and_known() -> None:
    source = _source(total_steps=90)
    found = source.context(_needs("step", "loss"), NOW)
    assert {name: int(value) for name, value in found.items()} == {"step": 7}
    found = source.context(_needs("step", "epoch", "total_steps"), NOW)
    assert {n: int(v) for n, v in found.items()} == {"step": 7, "epoch": 2, "total_steps": 90}
    assert _source().context(_needs("total_steps"), NOW) == {}


def test_the_holdout_is_measured_only_if_it_is_asked_for() -> None:
    holdout = GroupHoldoutLoss([HERE], 2, groups_of=lambda ids, targets: targets)
    source = _source(holdout=holdout)
    assert source.context(_needs("step"), NOW).keys() == {"step"}
    assert source.context(_needs("group_holdout_loss"), NOW)["group_holdout_loss"].shape == (2,)
    assert _source().context(_needs("group_holdout_loss"), NOW) == {}


def test_a_view_without_context_asks_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    source = _source()

    def never(*_: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(source, "context", never)
    view = source.view(rd.selector("train_loss"), HERE, NOW)
    assert view(_needs("loss")).loss.shape == (B,)


def test_a_live_irreducible_loss_model_reads_batches_as_the_task_does() -> None:
    live = nn.Linear(3, 2)
    model, scoring, ledger = _net(), rd.Scoring(), Ledger()
    learner = CoTrained(live, torch.optim.SGD(live.parameters(), lr=0.1))
    learners = Learners(model, TASK, scoring, ledger, irreducible=learner)
    source = EvidenceSource(model, TASK, scoring, ledger, learners)
    rule = rd.selector("rho_updating")
    evidence = source.view(rule, NAMED, NOW)(_needs("irreducible_loss"))
    with torch.no_grad():
        expected = nn.functional.cross_entropy(live(X), Y, reduction="none")
    torch.testing.assert_close(evidence.irreducible_loss, expected)


@pytest.mark.parametrize(
    ("rule", "columns", "fit"),
    [
        ("rho", 1, "reducible.fit_irreducible_loss"),
        ("rho", 2, "reducible.fit_irreducible_loss"),
        ("reducr", 0, "reducible.fit_group_irreducible_loss"),
    ],
)
def test_a_store_of_another_kind_is_told_with_the_fit_that_makes_it(
    rule: str, columns: int, fit: str
) -> None:
    values = torch.zeros(B, columns) if columns else torch.zeros(B)
    source = _source(store=rd.IrreducibleLossStore.from_tensor(values))
    with pytest.raises(rd.ConfigurationError, match=rf"got a store with {columns} groups.*{fit}\("):
        source.check(rd.selector(rule))
    with pytest.raises(rd.ConfigurationError, match=f"got no store. Fit one with {fit}"):
        _source().check(rd.selector(rule))


def test_flops_of_the_cheapest_pass_are_told() -> None:
    source = _source()
    rule = rd.selector("train_loss")
    assert source.forward_flops is None
    source.view(rule, HERE, NOW)(_needs("mc_logits"), samples=3)
    dear = source.forward_flops
    source.view(rule, HERE, NOW)(_needs("loss"))
    cheap = source.forward_flops
    assert cheap is not None
    assert dear == pytest.approx(3 * cheap)
    again = _source()
    again.load_state_dict(source.state_dict())
    assert again.forward_flops == cheap
    assert again.state_dict() == source.state_dict()


def test_a_view_makes_no_pass_with_dropout_unless_it_is_told_to() -> None:
    rule = rd.selector("train_loss")
    view = _source().view(rule, HERE, NOW)
    assert view(_needs("loss", "mc_logits")).mc_logits is None
    assert view(_needs("mc_logits"), samples=2).mc_logits.shape == (2, B, 2)


# -- remembered losses ----------------------------------------------------------------------------


def _remembering(rows: int, scoring: rd.Scoring, **options: Any) -> tuple[Any, LossMemory]:
    """A source that has seen the last B − rows losses at step 7, all of them 5."""
    memory = LossMemory(torch.arange(B))
    memory.remember(torch.arange(rows, B), torch.full((B - rows,), 5.0), 7)
    return _source(scoring=scoring, memory=memory, **options), memory


def _scored(source: Any) -> Tensor:
    loss = source.view(rd.selector("train_loss"), HERE, NOW)(_needs("loss", "targets")).loss
    return (loss != 5.0).nonzero().squeeze(1)


def test_none_is_scored_again_unless_a_share_is() -> None:
    source, _ = _remembering(6, rd.Scoring(max_age=3, batchnorm="running"))
    assert _scored(source).tolist() == list(range(6))
    always, _ = _remembering(6, rd.Scoring(max_age=3, batchnorm="running", rescore=1.0))
    assert _scored(always).numel() == B


@pytest.mark.parametrize(("old", "scored"), [(6, 32), (31, 32), (32, 32), (33, 33)])
def test_statistics_of_a_batch_take_32_rows(old: int, scored: int) -> None:
    source, _ = _remembering(old, rd.Scoring(max_age=3), model=_net(norm=True))
    assert _scored(source).numel() == scored


def test_remembered_evidence_has_labels_too() -> None:
    source, _ = _remembering(0, rd.Scoring(max_age=3, batchnorm="running"))
    evidence = source.view(rd.selector("train_loss"), HERE, NOW)(_needs("loss"))
    assert torch.equal(evidence.targets, Y)


# -- states ---------------------------------------------------------------------------------------


def test_a_state_holds_memory_and_holdout() -> None:
    def made() -> Any:
        holdout = GroupHoldoutLoss([HERE], 2, groups_of=lambda ids, targets: targets)
        scoring = rd.Scoring(max_age=3, batchnorm="running")
        return _source(scoring=scoring, memory=LossMemory(torch.arange(B)), holdout=holdout)

    source, again = made(), made()
    source.remember(torch.arange(3), torch.ones(3), 5)
    value = source.context(_needs("group_holdout_loss"), NOW)["group_holdout_loss"]
    again.load_state_dict(source.state_dict())
    assert again._memory.lookup(torch.arange(3)).tolist() == [1.0] * 3
    with torch.no_grad():
        next(again.model.parameters()).mul_(3)  # another model, but the same pass: not due again
    kept = again.context(_needs("group_holdout_loss"), NOW)["group_holdout_loss"]
    torch.testing.assert_close(kept, value)


# -- what was seen, supplemented ------------------------------------------------------------------


def test_the_rest_is_measured_with_as_many_samples_and_its_context() -> None:
    view = _source().view(rd.selector("train_loss"), HERE, NOW)
    seen = view(_needs("loss"))
    more = Supplemented(seen, view)(_needs("loss", "mc_logits", "step"), samples=3)
    assert more.loss is seen.loss
    assert more.mc_logits is not None
    assert more.mc_logits.shape[0] == 3
    assert int(more.context["step"]) == 7


def test_rows_are_measured_anew_with_as_many_samples() -> None:
    view = _source().view(rd.selector("train_loss"), HERE, NOW)
    rows = torch.tensor([3, 5])
    part = Supplemented(view(_needs("loss")), view)(_needs("mc_logits"), rows, samples=4)
    assert part.mc_logits is not None
    assert part.mc_logits.shape[:2] == (4, 2)
    assert part.ids.tolist() == [3, 5]


def test_without_samples_none_are_made() -> None:
    view = _source().view(rd.selector("train_loss"), HERE, NOW)
    more = Supplemented(view(_needs("loss")), view)(_needs("loss", "mc_logits"))
    assert more.mc_logits is None


def test_a_scorer_that_lags_learns_before_the_next_look() -> None:
    small, model, ledger = nn.Linear(3, 2), _net(), Ledger()
    scorer = CoTrained(small, torch.optim.SGD(small.parameters(), lr=0.1), distil=True)
    learners = Learners(model, rd.Classification(), rd.Scoring(), ledger, scorer=scorer)
    source = EvidenceSource(model, rd.Classification(), rd.Scoring(), ledger, learners)
    learners.learn(HERE.batch, torch.ones(B))
    before = small.weight.detach().clone()
    source.view(rd.selector("train_loss"), HERE, NOW)(_needs("loss"))
    assert not torch.equal(small.weight, before)
