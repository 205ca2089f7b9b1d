"""Chooses tokens: which of a batch's tokens a language model is trained to predict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from reducible.ledger import Ledger
from reducible.loop.seeds import stream_seed
from reducible.selectors import Selector, selector
from reducible.stores import TokenLossStore
from reducible.tasks import is_predicted, token_losses
from reducible.types import ConfigurationError, DataError, Evidence, require_between

_GIVEN = frozenset({"loss", "irreducible_loss", "step"})


@final
class TokenSelection:
    """Trains a causal language model on the tokens of a batch that a rule chooses.

    With ``"rho"``: on those whose loss exceeds that of a reference model most (Rho-1: Lin et al.
    2024, Eq. 3). Every sequence passes through the model in any case, so that choosing costs no
    forward pass: tokens are chosen by the losses of the training pass itself.

    Args:
        rule: a rule that chooses by loss, or its name.
        keep: share of a batch's tokens to train on, in (0, 1], rounded, at least one.
        store: irreducible losses of tokens, for rules that read them.
        seed: of every choice.
        ledger: charged for picking.

    Raises:
        ConfigurationError: a rule that reads more than losses, draws tokens twice or decides by
            epoch; a rule that needs a store without one.

    >>> tokens = TokenSelection("train_loss", keep=0.5)
    >>> logits = torch.zeros(1, 5, 8)
    >>> labels = torch.tensor([[1, 2, 3, 4, -100]])
    >>> tokens.count(labels)
    2
    >>> tokens.loss(logits, labels, torch.tensor([0]))
    tensor(2.0794)
    """

    def __init__(
        self,
        rule: Selector | str,
        *,
        keep: float,
        store: TokenLossStore | None = None,
        seed: int = 0,
        ledger: Ledger | None = None,
    ) -> None:
        rule = selector(rule) if isinstance(rule, str) else rule
        require_between("keep", keep, 0.0, 1.0, open_low=True)
        if rule.horizon != "batch" or rule.repeats or not rule.needs <= _GIVEN:
            raise ConfigurationError(
                f"tokens are chosen batch by batch, each once, by their losses; this rule needs "
                f"{sorted(rule.needs)} and decides by {rule.horizon}. Take rho, train_loss, "
                "irreducible_loss, rho_soft or uniform."
            )
        if "irreducible_loss" in rule.needs and store is None:
            raise ConfigurationError(
                "the rule reads irreducible losses of tokens: pass store=, which "
                "reducible.score_token_irreducible_loss(model, dataset, …) makes."
            )
        self._rule, self._keep, self._store, self._seed = rule, float(keep), store, seed
        self.ledger = ledger or Ledger()
        self._step = 0
        self._tokens = [0, 0]  # chosen and predicted, since figures were taken
        self._losses: Tensor | None = None  # [2] sums over the same

    def count(self, labels: Tensor) -> int:
        """How many tokens of a batch with these labels ([B, T] int64) are trained on."""
        return self._kept(int(is_predicted(labels).sum()))

    def _kept(self, tokens: int) -> int:
        return min(tokens, max(1, int(self._keep * tokens + 0.5)))

    def chosen(self, losses: Tensor, labels: Tensor, ids: Tensor) -> Tensor:
        """[B, T] bool: the tokens to train on.

        Args:
            losses: [B, T] of ``reducible.tasks.token_losses``; no gradient is needed.
            labels: [B, T] int64, −100 at tokens that are not predicted.
            ids: [B] int64 of the sequences.

        Raises:
            DataError: there is no token to predict.
            SelectionError: a loss is not finite.
            StoreError: a sequence without irreducible losses, or of another length.
        """
        with self.ledger.phase("pick"):
            predicted = is_predicted(labels)  # [B, T]
            given = None
            if self._store is not None and "irreducible_loss" in self._rule.needs:
                given = self._store.lookup(ids, predicted)[predicted]
            loss = losses.detach()[predicted].float()  # [M]
            if loss.numel() == 0:
                raise DataError("no token of the batch is to be predicted: all labels are -100.")
            of = ids.to(loss.device).unsqueeze(1).expand_as(labels)[predicted]
            evidence = Evidence(
                ids=of,
                loss=loss,
                irreducible_loss=given,
                context={"step": torch.tensor(self._step)},
            )
            generator = torch.Generator().manual_seed(stream_seed(self._seed, self._step))
            picked = self._rule.select(evidence, self._kept(loss.numel()), generator=generator)
            self._rule.observe(evidence, picked)
            taken = torch.zeros_like(loss, dtype=torch.bool)
            taken[picked.index] = True
            sums = torch.stack([loss[taken].sum(), loss.sum()])
            self._losses = sums if self._losses is None else self._losses + sums
            self._tokens[0] += self._kept(loss.numel())
            self._tokens[1] += loss.numel()
            found = torch.zeros_like(predicted)
            found[predicted] = taken
        self._step += 1
        return found

    def loss(self, logits: Tensor, labels: Tensor, ids: Tensor) -> Tensor:
        """The mean loss of the chosen tokens, to be differentiated: [].

        Args:
            logits: [B, T, V] of the training pass.
            labels: [B, T] int64, −100 at tokens that are not predicted.
            ids: [B] int64 of the sequences.
        """
        losses = token_losses(logits, labels)
        chosen = self.chosen(losses, labels, ids)
        return (losses * chosen).sum() / chosen.sum()

    def take(self) -> dict[str, float]:
        """Figures since the last time, for a logger; none if nothing was chosen.

        ``selection/token_share``: of the tokens that were chosen; ``selection/token_loss`` and
        ``selection/token_loss_all``: mean loss of those, and of all.
        """
        if self._losses is None:
            return {}
        chosen, every = self._tokens
        sums = self._losses.tolist()
        self._tokens, self._losses = [0, 0], None
        return {
            "selection/token_share": chosen / every,
            "selection/token_loss": sums[0] / chosen,
            "selection/token_loss_all": sums[1] / every,
        }

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on as if never stopped."""
        return {"step": self._step, "selector": self._rule.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        self._step = state["step"]
        self._rule.load_state_dict(state["selector"])
