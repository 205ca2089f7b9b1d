"""``python -m reducible``."""

from reducible.cli import app

app()
