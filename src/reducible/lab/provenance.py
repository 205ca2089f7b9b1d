"""The versions and the commit that a result was made with."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import numpy as np
import torch


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    from reducible import __version__

    return {
        "reducible": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def current_commit() -> str:
    """Short name of the commit that is run, ``-dirty`` if files differ from it."""
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return f"version-{versions()['reducible']}"
    return said.stdout.strip()
