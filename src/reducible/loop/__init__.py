"""The loop around a training step: candidates in, chosen rows out.

- ``loader``: SelectingLoader; ``losses``: weighted_mean
- ``build``: checks what SelectingLoader is given, and builds its parts
- ``evidence``: the evidence of each candidate batch, and the state that it needs
- ``learners``: models that learn along
- ``passes``: candidate batches, pass by pass; ``epochs``: those that a rule plans; ``keep``: n_b
- ``chosen``: what is handed out, in parts
- ``gate``, ``trials``: decides whether selection pays; tries it on the model and the clock
- ``metrics``: figures of what is chosen, for loggers
- ``tokens``: which tokens of a batch are trained on
- ``hindsight``: what a rule learns of rows that it drew without looking
- ``inspection``: labels of another store, workers that double rows
- ``states``: what a saved state belongs to; ``seeds``: a seed for every step
"""

from reducible.loop.chosen import Chosen
from reducible.loop.evidence import EvidenceSource, Moment
from reducible.loop.gate import Gate
from reducible.loop.learners import Learners
from reducible.loop.loader import SelectingLoader
from reducible.loop.losses import weighted_mean
from reducible.loop.metrics import SelectionMetrics
from reducible.loop.seeds import stream_seed
from reducible.loop.tokens import TokenSelection

__all__ = [
    "Chosen",
    "EvidenceSource",
    "Gate",
    "Learners",
    "Moment",
    "SelectingLoader",
    "SelectionMetrics",
    "TokenSelection",
    "stream_seed",
    "weighted_mean",
]
