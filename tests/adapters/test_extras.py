"""What a missing framework says."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("extra", "packages"),
    [
        ("transformers", ["transformers"]),
        ("lightning", ["lightning.pytorch", "pytorch_lightning"]),
        ("accelerate", ["accelerate"]),
        ("skorch", ["skorch"]),
    ],
)
def test_without_the_framework_the_cure_is_told(extra: str, packages: list[str]) -> None:
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({packages}))\n"
        f"try:\n    import reducible.adapters.{extra}\n"
        "except ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"pip install 'reducible[{extra}]'" in done.stdout
