"""The tests of an accelerator, on a stand-in for one.

In a process of its own, because the device must have a name before anything is trained.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def test_a_stand_in_for_an_accelerator() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_on_device.py"],
        cwd=HERE,
        env={**os.environ, "REDUCIBLE_TEST_FAR": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    passed = re.search(r"(\d+) passed", ran.stdout)
    assert ran.returncode == 0, ran.stdout
    assert passed is not None
    assert int(passed[1]) >= 38, ran.stdout
    assert "skipped" not in ran.stdout, ran.stdout
