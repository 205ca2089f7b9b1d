"""``python -m reducible``."""

from reducible.lab.cli import app

app()
