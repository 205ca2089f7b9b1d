"""``reducible`` and ``python -m reducible``."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line; says what is missing if the laboratory's packages are not there."""
    try:
        from reducible.lab.cli import app
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("reducible."):
            raise
        print(
            f"error: the command needs {error.name}: pip install 'reducible[lab]'", file=sys.stderr
        )
        sys.exit(2)
    app()


if __name__ == "__main__":
    main()
