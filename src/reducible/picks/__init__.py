"""Picks: scores → Selection: how many, with or without chance, and with what weight."""

from reducible.picks.top_k import top_k

__all__ = ["top_k"]
