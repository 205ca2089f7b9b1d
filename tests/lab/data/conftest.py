"""Fixtures of the tests of data."""

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch


@pytest.fixture
def streams_untouched() -> Iterator[None]:
    """Fails the test if a global random stream moved: torch's, NumPy's or Python's."""
    before = _streams()
    yield
    after = _streams()
    for name, state in before.items():
        assert after[name] == state, f"the global random stream of {name} moved"


def _streams() -> dict[str, object]:
    _, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "torch": torch.get_rng_state().tolist(),
        "NumPy": (np.asarray(keys).tolist(), rest),
        "Python": random.getstate(),
    }


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
