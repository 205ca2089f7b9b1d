"""Checkpoints: what goes in comes out, nothing damaged does, and the last few are kept."""

import random
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reducible.files import checkpoints
from reducible.files.seals import BLANK
from reducible.types import ConfigurationError, ReducibleError


def _same(a, b):
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a.cpu().nan_to_num(7), b.nan_to_num(7))
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    elif isinstance(a, dict):
        assert [*map(repr, a)] == [*map(repr, b)]
        for key in a:
            _same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            _same(x, y)
    else:
        assert repr(a) == repr(b)  # NaN, −0.0


STATE = {
    "weights": {0: torch.randn(3, 2), 1: torch.tensor(2.5, dtype=torch.bfloat16)},
    "streams": (3, (1, 2**100), None, True),
    "curve": [[1, 0.1, float("nan")], [2, -0.0, float("-inf")], []],
    "empty": {"tensor": torch.empty(0, 4), "dict": {}, "tuple": ()},
    "array": np.arange(6, dtype=np.uint8).reshape(2, 3),
    "bytes": b"\0\xff",
    "text": 'check-0 "check": Zürich\n',
    ("a", 1): -5,
}


def test_a_state_comes_back_exactly(tmp_path):
    _same(STATE, checkpoints.load(checkpoints.save(tmp_path, STATE, step=3)))


_LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.lists(st.floats(width=32), max_size=3).map(torch.tensor)
)
_KEYS = st.text() | st.integers() | st.booleans() | st.none()


@given(
    st.recursive(
        _LEAVES,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.lists(inner, max_size=3).map(tuple)
            | st.dictionaries(_KEYS, inner, max_size=3)
        ),
        max_leaves=10,
    )
)
def test_any_structure_comes_back(state):
    _same({"state": state}, checkpoints.unpacked(checkpoints.packed({"state": state})))


def test_mappings_come_back_as_dicts_and_scalars_of_numpy_as_numbers():
    state = {"model": OrderedDict(w=torch.ones(2)), "n": np.int64(3), "x": np.float64(0.1)}
    found = checkpoints.unpacked(checkpoints.packed(state))
    assert type(found["model"]) is dict
    assert found["n"] == 3
    assert found["x"] == 0.1


def test_tied_views_and_transposed_tensors_are_saved_as_they_look():
    shared = torch.arange(6.0)
    state = {"a": shared, "b": shared[2:], "c": shared.view(2, 3).t()}
    _same(state, checkpoints.unpacked(checkpoints.packed(state)))


def test_a_state_of_an_optimizer_comes_back():
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    _same(optimizer.state_dict(), checkpoints.unpacked(checkpoints.packed(optimizer.state_dict())))


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (object(), "builtins.object"),
        ({1, 2}, "builtins.set"),
        (torch.eye(2).to_sparse(), "torch.Tensor"),
        (np.array(["a"]), "numpy.ndarray"),
        (1j, "builtins.complex"),
    ],
)
def test_what_is_not_held_is_named_and_nothing_written(tmp_path, value, name):
    with pytest.raises(ReducibleError, match=rf"state\['a'\]\[1\] is of type {name}"):
        checkpoints.save(tmp_path, {"a": [0, value]}, step=1)
    assert list(tmp_path.iterdir()) == []


def test_a_text_like_a_checksum_is_refused():
    with pytest.raises(ReducibleError, match="cannot be sealed"):
        checkpoints.packed({"name": BLANK})


def test_no_flip_or_cut_is_loaded(tmp_path):
    path = checkpoints.save(tmp_path, STATE, step=3)
    whole, chance = path.read_bytes(), random.Random(0)
    for _ in range(300):
        damaged = bytearray(whole)
        bit = chance.randrange(8 * len(whole))
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(ReducibleError, match=r"checkpoint-3\.safetensors is not as"):
            checkpoints.load(path)
        path.write_bytes(whole[: chance.randrange(len(whole))])
        with pytest.raises(ReducibleError, match="not as it was written"):
            checkpoints.load(path)


def test_the_last_are_kept_by_their_step(tmp_path):
    (tmp_path / "checkpoint-x.safetensors").touch()
    for step in (8, 9, 10, 100):
        checkpoints.save(tmp_path, {"step": step}, step=step, keep=3)
    assert [checkpoints.load(p)["step"] for p in checkpoints.saved(tmp_path)] == [100, 10, 9]
    checkpoints.remove(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-x.safetensors"]
    with pytest.raises(ConfigurationError, match="keep"):
        checkpoints.save(tmp_path, {}, step=1, keep=0)


def test_a_full_disk_leaves_the_checkpoints_before(tmp_path, monkeypatch):
    checkpoints.save(tmp_path, {"step": 1}, step=1, keep=1)
    monkeypatch.setattr("os.replace", _full_disk)
    with pytest.raises(OSError, match="full"):
        checkpoints.save(tmp_path, {"step": 2}, step=2, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-1.safetensors"]


def _full_disk(*_):
    raise OSError("full")
