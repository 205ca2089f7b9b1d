"""Variants of choosing by loss, at equal time."""
