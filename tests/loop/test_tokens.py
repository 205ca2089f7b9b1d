"""Tokens chosen by a rule: by hand, determinism, what is refused, state."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import reducible as rd
from reducible.tasks import is_predicted, token_losses

LABELS = torch.tensor([[3, 1, 4, 1, 5], [2, 7, 1, -100, -100], [6, -100, 2, 8, -100]])
IDS = torch.tensor([20, 5, 11])
G = torch.Generator().manual_seed(0)
LOGITS = torch.randn(3, 5, 9, generator=G)
ROWS = {20: [0.5, 1.0, 3.0, 0.1], 5: [2.0, 0.3], 11: [0.2, 0.9]}


def _store() -> rd.TokenLossStore:
    ids = torch.tensor(list(ROWS))
    return rd.TokenLossStore.from_rows([torch.tensor(v) for v in ROWS.values()], ids=ids)


def _by_hand(keep: float) -> tuple[set[tuple[int, int]], float]:
    """Positions of the tokens with the highest excess loss, and the mean loss there."""
    excess: dict[tuple[int, int], float] = {}
    losses: dict[tuple[int, int], float] = {}
    for row in range(3):
        rank = 0
        for t in range(1, 5):
            if int(LABELS[row, t]) == -100:
                continue
            p = LOGITS[row, t - 1].softmax(0)[LABELS[row, t]]
            losses[row, t] = -math.log(float(p))
            excess[row, t] = losses[row, t] - ROWS[int(IDS[row])][rank]
            rank += 1
    k = int(keep * len(excess) + 0.5)
    best = sorted(excess, key=lambda at: -excess[at])[:k]
    return set(best), sum(losses[at] for at in best) / k


@pytest.mark.parametrize("keep", [0.25, 0.5, 0.9, 1.0])
def test_rho_on_tokens_by_hand(keep: float) -> None:
    tokens = rd.TokenSelection("rho", keep=keep, store=_store())
    chosen = tokens.chosen(token_losses(LOGITS, LABELS), LABELS, IDS)
    best, mean = _by_hand(keep)
    assert {(i, t) for i, t in chosen.nonzero().tolist()} == best
    again = rd.TokenSelection("rho", keep=keep, store=_store())
    assert float(again.loss(LOGITS, LABELS, IDS)) == pytest.approx(mean, abs=1e-5)
    assert tokens.count(LABELS) == len(best)


def test_nothing_but_predicted_tokens_is_chosen_and_the_share_holds() -> None:
    for rule in ("uniform", "train_loss", "irreducible_loss", "rho_soft"):
        tokens = rd.TokenSelection(rule, keep=0.5, store=_store())
        chosen = tokens.chosen(token_losses(LOGITS, LABELS), LABELS, IDS)
        assert int(chosen.sum()) == 4
        assert not bool((chosen & ~is_predicted(LABELS)).any())


def test_the_gradient_is_of_the_chosen_tokens_alone() -> None:
    logits = LOGITS.clone().requires_grad_()
    rd.TokenSelection("rho", keep=0.25, store=_store()).loss(logits, LABELS, IDS).backward()
    assert logits.grad is not None
    best, _ = _by_hand(0.25)
    touched = {(i, t + 1) for i, t in logits.grad.abs().sum(2).nonzero().tolist()}
    assert touched == best


def test_draws_are_by_step_and_a_resumed_run_draws_the_same() -> None:
    def draw(tokens: rd.TokenSelection) -> Tensor:
        return tokens.chosen(token_losses(LOGITS, LABELS), LABELS, IDS)

    whole = rd.TokenSelection("uniform", keep=0.5, seed=4)
    drawn = [draw(whole) for _ in range(6)]
    assert len({tuple(d.flatten().tolist()) for d in drawn}) > 1
    first = rd.TokenSelection("uniform", keep=0.5, seed=4)
    for expected in drawn[:3]:
        assert torch.equal(draw(first), expected)
    second = rd.TokenSelection("uniform", keep=0.5, seed=4)
    second.load_state_dict(first.state_dict())
    for expected in drawn[3:]:
        assert torch.equal(draw(second), expected)


def test_choosing_is_charged_and_leaves_the_global_stream_alone() -> None:
    ledger = rd.Ledger()
    before = torch.get_rng_state()
    tokens = rd.TokenSelection("uniform", keep=0.5, ledger=ledger)
    tokens.chosen(token_losses(LOGITS, LABELS), LABELS, IDS)
    assert ledger.seconds["pick"] > 0
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("rule", ["grad_norm", "infobatch", "entropy", "reducr", "svp"])
def test_rules_that_read_more_than_losses_are_refused(rule: str) -> None:
    with pytest.raises(rd.ConfigurationError, match="tokens are chosen batch by batch, each once"):
        rd.TokenSelection(rule, keep=0.5)


def test_bad_input() -> None:
    with pytest.raises(rd.ConfigurationError, match="score_token_irreducible_loss"):
        rd.TokenSelection("rho", keep=0.5)
    with pytest.raises(rd.ConfigurationError, match="keep"):
        rd.TokenSelection("uniform", keep=0.0)
    tokens = rd.TokenSelection("train_loss", keep=0.5)
    with pytest.raises(rd.DataError, match="no token of the batch is to be predicted"):
        tokens.loss(LOGITS, torch.full_like(LABELS, -100), IDS)
    broken = LOGITS.clone()
    broken[1, 0] = math.nan
    with pytest.raises(rd.SelectionError, match="5"):  # the sequence with the broken token
        tokens.loss(broken, LABELS, IDS)
