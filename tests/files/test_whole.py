"""Files are written whole or not at all, whenever the disk is full."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch

import reducible as rd
from reducible.files.whole import replacing
from reducible.lab.records import read_json, write_json

FULL = OSError(errno.ENOSPC, "No space left on device")


def _fail(*_: Any, **__: Any) -> None:
    raise FULL


def _write_half(path: Path, error: BaseException) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(b"half of")
        raise error


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("there", [True, False], ids=["old file", "no file"])
def test_a_body_that_fails_leaves_nothing_half_written(there: bool, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    if there:
        path.write_bytes(b"precious")
    before = _contents(tmp_path)
    with pytest.raises(OSError, match="No space left"):
        _write_half(path, FULL)
    assert _contents(tmp_path) == before


@pytest.mark.parametrize("there", [True, False], ids=["old file", "no file"])
@pytest.mark.parametrize("at", ["fsync", "replace"])
def test_a_disk_that_is_full_at_the_end(
    at: str, there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.json"
    if there:
        path.write_bytes(b"precious")
    before = _contents(tmp_path)
    monkeypatch.setattr(os, at, _fail)
    with pytest.raises(OSError, match="No space left"), replacing(path) as temporary:
        temporary.write_bytes(b"all of it")
    assert _contents(tmp_path) == before


def test_an_interrupt_leaves_nothing_either(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _write_half(tmp_path / "x", KeyboardInterrupt())
    assert _contents(tmp_path) == {}


def test_the_new_file_takes_the_place_of_the_old_one_only_when_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.json"
    path.write_bytes(b"old")
    order: list[str] = []
    flush, rename = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        found = os.fstat(descriptor)
        folder = stat.S_ISDIR(found.st_mode)
        order.append("flush of the folder" if folder else f"flush of {found.st_size} bytes")
        flush(descriptor)

    def replace(source: Any, target: Any) -> None:
        order.append("rename")
        assert path.read_bytes() == b"old"
        rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    with replacing(path) as temporary:
        assert temporary.parent == path.parent  # a rename across disks is no rename
        temporary.write_bytes(b"newer")
    folder = ["flush of the folder"] if hasattr(os, "O_DIRECTORY") else []
    assert order == ["flush of 5 bytes", "rename", *folder]
    assert _contents(tmp_path) == {"result.json": b"newer"}


def test_a_body_that_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "x"):
        pass
    assert _contents(tmp_path) == {}


@pytest.mark.parametrize("at", ["write", "fsync", "replace"])
def test_json_on_a_full_disk(at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary.json"
    write_json(path, {"old": 1})
    before = _contents(tmp_path)
    if at == "write":
        _fill_the_disk(monkeypatch)
    else:
        monkeypatch.setattr(os, at, _fail)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, {"new": [2] * 1000})
    monkeypatch.undo()
    assert _contents(tmp_path) == before
    assert read_json(path) == {"old": 1}


def _fill_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files opened by records take a few bytes, and then no more."""
    from reducible.lab import records

    def opened(path: Any, mode: str = "r", **options: Any) -> Any:
        file = open(path, mode, **options)  # noqa: SIM115
        if "w" not in mode:
            return file

        class Full:
            def __enter__(self) -> Full:
                return self

            def __exit__(self, *_: object) -> None:
                file.close()

            def write(self, data: bytes) -> None:
                file.write(data[:10])
                file.flush()
                raise FULL

        return Full()

    monkeypatch.setattr(records, "open", opened, raising=False)


@pytest.mark.parametrize("at", ["fsync", "replace"])
def test_a_store_on_a_full_disk(at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "il.safetensors"
    rd.IrreducibleLossStore.from_tensor(torch.arange(5.0)).save(path)
    before = _contents(tmp_path)
    monkeypatch.setattr(os, at, _fail)
    with pytest.raises(OSError, match="No space left"):
        rd.IrreducibleLossStore.from_tensor(torch.zeros(9)).save(path)
    monkeypatch.undo()
    assert _contents(tmp_path) == before
    assert rd.IrreducibleLossStore.load(path).values.tolist() == [0, 1, 2, 3, 4]
