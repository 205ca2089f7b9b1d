"""What is checked of stores on disk: contents under a valid checksum, damage, cuts."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

import reducible as rd
from reducible.stores import IrreducibleLossStore as Store
from reducible.stores import layout

IDS, VALUES = torch.tensor([3, 5, 8, 13]), torch.tensor([0.5, 0.0, torch.nan, 2.0])
HEADER = {"seconds": 1.5, "flops": 10, "noise_floor": [0.1, 0.2]}


def _written(
    path: Path,
    columns: dict[str, Tensor] | None = None,
    header: Any = HEADER,
    of: str = "",
    form: str = layout.FORMAT,
    **other: Tensor,
) -> Path:
    """A file with a valid checksum, whatever is in it."""
    columns = ({"values": VALUES, "ids": IDS} if columns is None else columns) | other
    pieces = {name: layout.Column.of(tensor) for name, tensor in columns.items()}
    with mock.patch.object(layout, "FORMAT", form):
        layout.write(path, pieces, fingerprint=of, header=header)
    return path


def test_what_save_writes_is_read(tmp_path: Path) -> None:
    store = Store.load(_written(tmp_path / "il"))
    assert store.ids.tolist() == IDS.tolist()
    assert store.header == HEADER
    assert store.lookup(torch.tensor([13, 3])).tolist() == [2.0, 0.5]
    with pytest.raises(rd.StoreError, match="never scored: 8"):
        store.lookup(torch.tensor([8]))


INFINITE = torch.tensor([0.0, torch.inf, 0.0, 0.0])
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "infinite": ({"values": INFINITE}, "hold infinite values"),
    "infinite beside NaN": ({"values": INFINITE.clone().fill_(-torch.inf)}, "infinite values"),
    "whole numbers": ({"values": torch.zeros(4).long()}, "its values are torch.int64"),
    "float64": ({"values": VALUES.double()}, r"values are torch.float64 of shape \(4,\)"),
    "three dimensions": ({"values": VALUES.view(4, 1, 1)}, r"not float32 \[N\] or \[N, G\]"),
    "no dimension": ({"columns": {"values": VALUES[0]}}, "not float32"),
    "no rows": ({"columns": {"values": VALUES[:0]}}, r"of shape \(0,\)"),
    "no groups": ({"columns": {"values": torch.zeros(4, 0)}}, r"of shape \(4, 0\)"),
    "ids twice": ({"ids": torch.tensor([3, 5, 5, 13])}, "ids do not ascend"),
    "ids in disorder": ({"ids": torch.tensor([3, 8, 5, 13])}, "ids do not ascend"),
    "negative ids": ({"ids": torch.tensor([-3, 5, 8, 13])}, "do not ascend from 0"),
    "too few ids": ({"ids": IDS[:3]}, r"of shape \(3,\) for 4 rows"),
    "ids that are none": ({"ids": IDS.double()}, "its ids are torch.float64"),
    "no values": ({"columns": {"ids": IDS}}, r"it holds \['ids'\]"),
    "more": ({"other": IDS}, "it holds .*'other'"),
    "a list": ({"header": [1]}, "its header is a list"),
    "seconds of text": ({"header": {"seconds": "1"}}, "seconds in a header must be a number"),
    "negative seconds": ({"header": {"seconds": -1.0}}, "seconds in a header"),
    "negative flops": ({"header": {"flops": -1}}, "flops in a header"),
    "flops that are none": ({"header": {"flops": True}}, "flops in a header"),
    "floors of text": ({"header": {"noise_floor": ["a"]}}, "noise_floor in a header"),
    "a floor": ({"header": {"noise_floor": 0.5}}, "noise_floor in a header"),
    "a newer format": ({"form": "reducible.irreducible_loss.9"}, "by another version of reducible"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_contents_under_a_valid_checksum_are_refused(what: str, tmp_path: Path) -> None:
    changes, message = BAD[what]
    path = _written(tmp_path / "il", **changes)
    with pytest.raises(rd.StoreError, match=f"il is not a readable store .*{message}.*Fit it"):
        Store.load(path)


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("header", "{", "its header is no JSON"),
        ("header", None, "fingerprint or header is missing"),
        ("fingerprint", None, "fingerprint or header is missing"),
    ],
)
def test_bad_metadata_under_a_valid_checksum_are_refused(
    key: str, text: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = layout._metadata

    def bad(*args: Any) -> dict[str, str]:
        made = good(*args) | ({} if text is None else {key: text})
        return {k: v for k, v in made.items() if text is not None or k != key}

    with monkeypatch.context() as patched:
        patched.setattr(layout, "_metadata", bad)
        path = _written(tmp_path / "il")
    with pytest.raises(rd.StoreError, match=message):
        Store.load(path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"seconds": -1}, "seconds in a header"),
        ({"x": {1, 2}}, "holds what JSON takes, and this one not"),
        ({1: 2}, "a mapping by text"),
    ],
)
def test_a_store_in_memory_takes_no_other_header(header: Any, message: str) -> None:
    with pytest.raises(rd.StoreError, match=message):
        Store.from_tensor(VALUES, header=header)
    with pytest.raises(rd.StoreError, match="a fingerprint is text, got int"):
        Store.from_tensor(VALUES, fingerprint=3)  # pyright: ignore[reportArgumentType]


# -- damage ----------------------------------------------------------------------------------------


def damages(path: Path, times: int, chance: random.Random) -> list[str]:
    """Flips a bit of the file, or cuts its end, so many times; what was accepted all the same."""
    whole, accepted = path.read_bytes(), []
    for _ in range(times):
        broken = bytearray(whole)
        at = chance.randrange(8 * len(whole))
        if chance.random() < 0.5:
            broken[at // 8] ^= 1 << at % 8
        else:
            del broken[at // 8 :]
        path.write_bytes(broken)
        try:
            Store.load(path)
            accepted.append(f"{len(broken)} of {len(whole)} bytes, bit {at}")
        except rd.ReducibleError:
            pass
    path.write_bytes(whole)
    Store.load(path)
    return accepted


@pytest.mark.parametrize("name", ["il-dense", "il-sparse", "il-groups"])
def test_damaged_files_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    many = torch.rand(200, generator=torch.Generator().manual_seed(0))
    made: dict[str, Callable[[], Any]] = {
        "il-dense": lambda: Store.from_tensor(many, header=HEADER),
        "il-sparse": lambda: Store.from_tensor(many, ids=torch.arange(200) * 7),
        "il-groups": lambda: Store.from_tensor(many.view(50, 4), fingerprint="x"),
    }
    made[name]().save(path)
    assert damages(path, 60, random.Random(name)) == []


# -- a file that is changed while it is mapped -----------------------------------------------------


def test_a_file_that_is_cut_while_mapped_ends_no_process(tmp_path: Path) -> None:
    path = tmp_path / "il"
    Store.from_tensor(torch.rand(200_000), ids=torch.arange(200_000) * 2).save(path)
    code = (
        "import os, sys, torch, reducible as rd\n"
        "path = sys.argv[1]\n"
        "store = rd.IrreducibleLossStore.load(path)\n"
        "os.truncate(path, 4096)\n"
        "for look in (lambda: store.lookup(torch.tensor([399_998])), lambda: store.save(path),\n"
        "             lambda: store.digest):\n"
        "    try:\n"
        "        look()\n"
        "    except rd.StoreError as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert all("bytes when it was loaded, 4096 now" in line for line in lines)


def test_a_file_written_to_in_place_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "il"
    Store.from_tensor(torch.zeros(4)).save(path)
    store = Store.load(path)
    assert store.lookup(torch.tensor([1])).tolist() == [0.0]
    with open(path, "r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\1\2\3\4")
    os.utime(path, ns=(0, 0))  # clocks may be too coarse to tell two writes apart
    with pytest.raises(rd.StoreError, match=r"was changed while it is in use.*Restore it"):
        store.lookup(torch.tensor([1]))


def test_a_file_that_is_deleted_or_replaced_stays_mapped(tmp_path: Path) -> None:
    path = tmp_path / "il"
    Store.from_tensor(torch.zeros(4)).save(path)
    store = Store.load(path)
    Store.from_tensor(torch.ones(9)).save(path)
    assert store.lookup(torch.tensor([1])).tolist() == [0.0]
    path.unlink()
    assert store.lookup(torch.tensor([1])).tolist() == [0.0]


# -- which store it is -----------------------------------------------------------------------------


def test_digest_and_checksum_are_those_of_the_file(tmp_path: Path) -> None:
    store = Store.from_tensor(VALUES, ids=IDS, fingerprint="f", header=HEADER)
    store.save(tmp_path / "il")
    loaded = Store.load(tmp_path / "il")
    assert loaded.digest == store.digest
    assert loaded.checksum == store.checksum
    head = (tmp_path / "il").read_bytes()
    size = int.from_bytes(head[:8], "little")
    assert json.loads(head[8 : 8 + size])["__metadata__"]["checksum"] == store.checksum


@pytest.mark.parametrize(
    ("changes", "contents"),
    [
        ({"header": {"seconds": 2.0}}, False),
        ({"values": VALUES + 1}, True),
        ({"ids": IDS + 1}, True),
        ({"fingerprint": "g"}, True),
    ],
)
def test_what_a_digest_is_of(changes: dict[str, Any], contents: bool) -> None:
    given = {"values": VALUES, "ids": IDS, "fingerprint": "f", "header": HEADER}
    one, other = (Store.from_tensor(**made) for made in (given, given | changes))
    assert (one.digest != other.digest) == contents
    assert one.checksum != other.checksum


def test_digest_of_many_rows_reads_a_sample() -> None:
    values = torch.zeros(1_000_000)
    ends = values.clone()
    ends[-1] = 1.0
    assert Store.from_tensor(values).digest != Store.from_tensor(ends).digest
