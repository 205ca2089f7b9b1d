"""A store in its file: a layout that files of before have too, and writing in pieces."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

import reducible as rd
from reducible.stores import layout, write_in_pieces

Store = rd.IrreducibleLossStore


def _rand(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def test_a_file_is_safetensors_with_ids_before_values(tmp_path: Path) -> None:
    """Read by safetensors itself; its checksum worked out beside, as every earlier file has it."""
    values, ids = torch.tensor([0.5, 0.25, 0.125]), torch.tensor([3, 5, 2**53 + 1])
    path = tmp_path / "il"
    Store.from_tensor(values, ids=ids, fingerprint="n=3", header={"µ": 1}).save(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        assert torch.equal(file.get_tensor("values"), values)
        assert torch.equal(file.get_tensor("ids"), ids)
    digest = hashlib.blake2b(digest_size=16)
    digest.update(b'format=reducible.irreducible_loss.1;fingerprint=n=3;header={"\\u00b5": 1};')
    digest.update(b"ids:torch.int64:(3,);" + struct.pack("<3q", *ids.tolist()))
    digest.update(b"values:torch.float32:(3,);" + struct.pack("<3f", *values.tolist()))
    assert metadata == {
        "format": "reducible.irreducible_loss.1",
        "fingerprint": "n=3",
        "header": '{"\\u00b5": 1}',
        "checksum": digest.hexdigest(),
    }
    whole = path.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    assert length % 8 == 0
    assert json.loads(whole[8 : 8 + length])["ids"]["data_offsets"] == [0, 24]
    assert len(whole) == 8 + length + 3 * (8 + 4)
    # The same tensors and metadata as safetensors writes them are a store too.
    save_file({"values": values, "ids": ids}, tmp_path / "theirs", metadata=metadata)
    assert Store.load(tmp_path / "theirs").lookup(ids).tolist() == values.tolist()


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6), groups=st.sampled_from([0, 1, 3]))
def test_pieces_are_written_as_the_whole_is(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], groups: int
) -> None:
    rows = sum(sizes) + 1
    values = _rand(rows, groups) if groups else _rand(rows)
    values[0] = math.nan
    folder = tmp_path_factory.mktemp("stores")
    labels: dict[str, Any] = {"fingerprint": "n=4;ids=x", "header": {"model": "mlp", "seconds": 2}}
    Store.from_tensor(values, **labels).save(folder / "whole")
    pieces = (piece.double() for piece in values.split([1, *sizes]))  # float32 as in from_tensor
    write_in_pieces(folder / "pieces", pieces, rows, groups=groups, **labels)
    assert (folder / "pieces").read_bytes() == (folder / "whole").read_bytes()
    loaded = Store.load(folder / "pieces")
    assert (loaded.groups, len(loaded)) == (groups, rows)
    torch.testing.assert_close(loaded.values, values, rtol=0, atol=0, equal_nan=True)


def test_large_tensors_are_written_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.from_tensor(_rand(10, 3), ids=torch.arange(5, 15))
    store.save(tmp_path / "at once")
    monkeypatch.setattr(layout, "CHUNK", 4)
    store.save(tmp_path / "by fours")
    assert (tmp_path / "by fours").read_bytes() == (tmp_path / "at once").read_bytes()
    assert torch.equal(Store.load(tmp_path / "at once").values, store.values)


@pytest.mark.parametrize(
    ("pieces", "rows", "groups", "message"),
    [
        ([(3,), (2,)], 6, 0, "the pieces hold 5 rows of irreducible losses, not rows=6"),
        ([(3,), (2,)], 4, 0, "the pieces hold 5 rows"),
        ([], 4, 0, "the pieces hold 0 rows"),
        ([(3,), (2, 1)], 5, 0, r"floating, \[M\]; got torch.float32 of shape \(2, 1\)"),
        ([(3,)], 3, 2, r"floating, \[M, G\] with G = 2; got torch.float32 of shape \(3,\)"),
        ([(3, 2), (1, 3)], 4, 2, r"of shape \(1, 3\)"),
        ([()], 1, 0, r"of shape \(\)"),
    ],
)
def test_pieces_that_do_not_fit(
    pieces: list[tuple[int, ...]], rows: int, groups: int, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "il"
    path.write_bytes(b"precious")
    with pytest.raises(rd.StoreError, match=message):
        write_in_pieces(path, (_rand(*shape) for shape in pieces), rows, groups=groups)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("il", b"precious")]


def test_pieces_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(rd.StoreError, match=r"floating, \[M\]; got torch.int64"):
        write_in_pieces(tmp_path / "il", [torch.arange(3)], 3)
    with pytest.raises(rd.StoreError, match="hold infinite values"):
        write_in_pieces(tmp_path / "il", [_rand(3), _rand(3) / 0], 6)
    with pytest.raises(rd.ConfigurationError, match="rows must be a whole number"):
        write_in_pieces(tmp_path / "il", [], 0)
    with pytest.raises(rd.ConfigurationError, match="groups must be a whole number"):
        write_in_pieces(tmp_path / "il", [_rand(3)], 3, groups=-1)
    assert list(tmp_path.iterdir()) == []
