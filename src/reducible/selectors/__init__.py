"""Selectors: the protocol, rules with memory or coupling, and the table of all rules."""

from reducible.selectors.always import Always
from reducible.selectors.base import Choice, Look, Selector
from reducible.selectors.chain import Chain
from reducible.selectors.scheduled import Scheduled
from reducible.selectors.scored import Scored
from reducible.selectors.table import SELECTORS, selector
from reducible.selectors.uniform import Uniform

__all__ = [
    "SELECTORS",
    "Always",
    "Chain",
    "Choice",
    "Look",
    "Scheduled",
    "Scored",
    "Selector",
    "Uniform",
    "selector",
]
