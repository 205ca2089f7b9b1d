"""The only package that runs a model to score.

- ``settings``: Scoring; ``evidence``: the evidence of a candidate batch
- ``forward``: a forward pass that leaves no trace
- ``co_trained``, ``early_exit``: models that score beside the one being trained
- ``captured``: predictions that are captured in the training pass
- ``group_holdout``: averages of the group holdout loss
"""

from reducible.scoring.captured import CapturedPredictions
from reducible.scoring.co_trained import CoTrained
from reducible.scoring.early_exit import early_exit
from reducible.scoring.evidence import ONE_PASS, RUNS_THE_MODEL, Measurement, Request, measure
from reducible.scoring.forward import without_graph
from reducible.scoring.group_holdout import GroupHoldoutLoss
from reducible.scoring.settings import Scoring, least_rows

__all__ = [
    "ONE_PASS",
    "RUNS_THE_MODEL",
    "CapturedPredictions",
    "CoTrained",
    "GroupHoldoutLoss",
    "Measurement",
    "Request",
    "Scoring",
    "early_exit",
    "least_rows",
    "measure",
    "without_graph",
]
