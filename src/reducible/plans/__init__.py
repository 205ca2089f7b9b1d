"""What irreducible losses say once, before training.

- ``floors``: what a model gives a class without a reason, and how many labels may be wrong
- ``plan``: which ids to train on and how often
"""

from reducible.plans.floors import learned_noise
from reducible.plans.plan import Plan, noise_floor_loss

__all__ = ["Plan", "learned_noise", "noise_floor_loss"]
