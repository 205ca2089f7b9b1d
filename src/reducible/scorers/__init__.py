"""Models that score beside the one being trained, and learn along with it."""

from reducible.scorers.co_trained import CoTrained
from reducible.scorers.early_exit import early_exit
from reducible.scorers.overheard import Overheard

__all__ = ["CoTrained", "Overheard", "early_exit"]
