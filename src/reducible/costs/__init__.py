"""Measures what selection costs, and says what it must save.

- ``payoff``: the break-even point on a model of one's own; timing in turns
- ``fidelity``: how faithful cheap scoring is; ``agreement``: of two rankings
- ``updates``: a plain update
"""

from reducible.costs.payoff import BreakEven, break_even, times_in_turn

__all__ = ["BreakEven", "break_even", "times_in_turn"]
