"""The demo: selection on real images with wrong labels among them, in seconds and in steps."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from reducible.lab.recipe import Recipe

# A clean holdout teaches more confidence than labels of which one in ten is wrong allow: the
# checkpoint of lowest loss on the train set is then an early, poor one. A little smoothing mends
# it. Chosen on seeds 101 to 105; results are reported on others.
_SMOOTHING = 0.02

PAPER: Mapping[str, Recipe] = MappingProxyType(
    {
        "uniform": Recipe(name="demo/uniform", selector="uniform"),
        "RHO-LOSS, clean holdout": Recipe(
            name="demo/rho", selector="rho", irreducible_smoothing=_SMOOTHING
        ),
        "RHO-LOSS, holdout with the same noise": Recipe(
            name="demo/rho-noisy-holdout",
            selector="rho",
            holdout_noise=0.1,
            irreducible_smoothing=_SMOOTHING,
        ),
    }
)
"""What it is called → recipe of the paper's comparison, in steps at a constant rate."""

# As in the equal-time study, with the rates that it tuned: one label in ten is wrong, in the
# holdout too, which a small network learns in about the time of a hundred updates.
_IN_TURNS = Recipe(
    name="demo/every-row",
    selector="uniform",
    holdout_noise=0.1,
    n_candidates=32,  # all of which are trained on: an ordinary shuffling loader
    steps=4000,
    schedule="cosine",
    irreducible_model="mlp-64",
    irreducible_epochs=2,
    irreducible_batch=128,
    irreducible_rate=2e-3,
    irreducible_smoothing=_SMOOTHING,
)
RACE: Mapping[str, Recipe] = MappingProxyType(
    {
        "every row in turn": _IN_TURNS,
        "RHO-LOSS": replace(
            _IN_TURNS, name="demo/rho-decayed", selector="rho", n_candidates=320, learning_rate=2e-3
        ),
        "plan": replace(
            _IN_TURNS,
            name="demo/plan",
            plan="filter+weights",
            loss="noise-floor",
        ),
    }
)
"""Name in the demo → recipe; the first is what the others are compared with."""

DEMO = (*PAPER.values(), *RACE.values())
