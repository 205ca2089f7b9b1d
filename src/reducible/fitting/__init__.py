"""Fits models on a holdout, and takes irreducible losses from them.

- ``fit``: one fit, the best checkpoint kept, and what it says of every example
- ``irreducible``: irreducible losses from a holdout, by cross-fitting, or by group; proxies
- ``copies``: rows whose inputs are equal
"""

from reducible.fitting.irreducible import (
    cross_fit_irreducible_loss,
    fit_group_irreducible_loss,
    fit_irreducible_loss,
    fit_proxy,
)

__all__ = [
    "cross_fit_irreducible_loss",
    "fit_group_irreducible_loss",
    "fit_irreducible_loss",
    "fit_proxy",
]
