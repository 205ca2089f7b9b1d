"""Online batch selection for PyTorch: train on the points that matter.

Score a large candidate batch, train on the few examples that are learnable, worth learning and
not yet learnt. ``SelectingLoader`` wraps a loader; ``selector(name)`` gives a rule;
``fit_irreducible_loss`` makes what the reducible-loss rules compare against.
"""

from reducible import scores
from reducible.batches import register_batch_type
from reducible.costs import BreakEven, break_even
from reducible.fitting import (
    LossColumn,
    cross_fit_irreducible_loss,
    fit_group_irreducible_loss,
    fit_irreducible_loss,
    fit_proxy,
    plan_toward,
    score_irreducible_loss,
    score_token_irreducible_loss,
)
from reducible.ledger import Ledger
from reducible.loop import (
    Chosen,
    Gate,
    SelectingLoader,
    SelectionMetrics,
    TokenSelection,
    weighted_mean,
)
from reducible.plans import Plan, StreamFilter, noise_floor_loss
from reducible.scoring import CoTrained, Scoring, early_exit, measure
from reducible.selectors import SELECTORS, Always, Chain, Scheduled, Scored, Selector, selector
from reducible.stores import IrreducibleLossStore, TokenLossStore, WithIds, collate_with_ids
from reducible.tasks import (
    CausalLM,
    Classification,
    DensePrediction,
    MultiLabel,
    PerExampleLoss,
    Regression,
    SequenceClassification,
    Task,
)
from reducible.types import (
    Candidates,
    ConfigurationError,
    DataError,
    Evidence,
    MissingEvidence,
    ReducibleError,
    Selection,
    SelectionError,
    StoreError,
)

__version__ = "0.1.0"

__all__ = [
    "SELECTORS",
    "Always",
    "BreakEven",
    "Candidates",
    "CausalLM",
    "Chain",
    "Chosen",
    "Classification",
    "CoTrained",
    "ConfigurationError",
    "DataError",
    "DensePrediction",
    "Evidence",
    "Gate",
    "IrreducibleLossStore",
    "Ledger",
    "LossColumn",
    "MissingEvidence",
    "MultiLabel",
    "PerExampleLoss",
    "Plan",
    "ReducibleError",
    "Regression",
    "Scheduled",
    "Scored",
    "Scoring",
    "SelectingLoader",
    "Selection",
    "SelectionError",
    "SelectionMetrics",
    "Selector",
    "SequenceClassification",
    "StoreError",
    "StreamFilter",
    "Task",
    "TokenLossStore",
    "TokenSelection",
    "WithIds",
    "break_even",
    "collate_with_ids",
    "cross_fit_irreducible_loss",
    "early_exit",
    "fit_group_irreducible_loss",
    "fit_irreducible_loss",
    "fit_proxy",
    "measure",
    "noise_floor_loss",
    "plan_toward",
    "register_batch_type",
    "score_irreducible_loss",
    "score_token_irreducible_loss",
    "scores",
    "selector",
    "weighted_mean",
]
