"""Online batch selection for PyTorch: train on the points that matter.

Score a large candidate batch, train on the few examples that are learnable, worth learning and
not yet learnt. ``SelectingLoader`` wraps a loader; ``selector(name)`` gives a rule;
``fit_irreducible_loss`` makes what the reducible-loss rules compare against.
"""

from reducible import scores
from reducible.irreducible import (
    cross_fit_irreducible_loss,
    fit_group_irreducible_loss,
    fit_irreducible_loss,
    fit_proxy,
)
from reducible.ledger import Ledger
from reducible.loop import Chosen, SelectingLoader, weighted_mean
from reducible.measure import Scoring, measure
from reducible.selectors import SELECTORS, Chain, Scheduled, Scored, Selector, selector
from reducible.stores import IrreducibleLossStore, WithIds
from reducible.tasks import Classification, Task
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
    "Candidates",
    "Chain",
    "Chosen",
    "Classification",
    "ConfigurationError",
    "DataError",
    "Evidence",
    "IrreducibleLossStore",
    "Ledger",
    "MissingEvidence",
    "ReducibleError",
    "Scheduled",
    "Scored",
    "Scoring",
    "SelectingLoader",
    "Selection",
    "SelectionError",
    "Selector",
    "StoreError",
    "Task",
    "WithIds",
    "cross_fit_irreducible_loss",
    "fit_group_irreducible_loss",
    "fit_irreducible_loss",
    "fit_proxy",
    "measure",
    "scores",
    "selector",
    "weighted_mean",
]
