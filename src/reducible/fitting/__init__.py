"""Fits models on a holdout, and takes irreducible losses from them, or from models as they are.

- ``fit``: one fit, the best checkpoint kept, and what it says of every example
- ``objectives``: what a fit minimises, and what it says of examples
- ``irreducible``: irreducible losses from a holdout, or by cross-fitting; proxies
- ``by_model``: irreducible losses by a model as it stands, of examples or of tokens
- ``groups``, ``adapters``: irreducible losses per group
- ``toward``: how a plan is steered by a trusted set, chosen on its folds
- ``copies``: rows whose inputs are equal
"""

from reducible.fitting.by_model import (
    LossColumn,
    score_irreducible_loss,
    score_token_irreducible_loss,
)
from reducible.fitting.groups import fit_group_irreducible_loss
from reducible.fitting.irreducible import (
    cross_fit_irreducible_loss,
    fit_irreducible_loss,
    fit_proxy,
)
from reducible.fitting.toward import plan_toward

__all__ = [
    "LossColumn",
    "cross_fit_irreducible_loss",
    "fit_group_irreducible_loss",
    "fit_irreducible_loss",
    "fit_proxy",
    "plan_toward",
    "score_irreducible_loss",
    "score_token_irreducible_loss",
]
