"""Decides once, before training, which examples to train on and how often.

- ``floors``: the probability that a model gives a class without a reason, and how many labels of
  each class may be wrong
- ``noise``: which labels to drop, how many are wrong, and a loss that allows for the rest
- ``sampler``: draws ids as often as their weights say
- ``plan``: the plan itself
"""

from reducible.plans.floors import learned_noise
from reducible.plans.noise import noise_floor_loss
from reducible.plans.plan import Plan

__all__ = ["Plan", "learned_noise", "noise_floor_loss"]
