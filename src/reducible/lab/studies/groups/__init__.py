"""Irreducible losses per class: ten models beside one shared network."""
