"""Decides once, before training, which examples to train on and how often.

- ``floors``: the probability that a model gives a class without a reason, and how many labels of
  each class may be wrong
- ``noise``: which labels to drop, how many are wrong, and a loss that allows for the rest
- ``filtering``: a plan by the noise floor; ``steering``: a plan by a trusted set
- ``sampler``: draws ids as often as their weights say
- ``plan``: the plan itself
- ``streams``: what a plan does by rank, by a threshold
"""

from reducible.plans.floors import learned_noise
from reducible.plans.noise import noise_floor_loss
from reducible.plans.plan import Plan
from reducible.plans.streams import StreamFilter

__all__ = ["Plan", "StreamFilter", "learned_noise", "noise_floor_loss"]
