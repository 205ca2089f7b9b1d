"""Records of metrics and JSON: what survives a cut, a full disk and a resume; what targets say."""

import json
import math
import os

import pytest

from record_toys import full_disk, warning_of_a_cut
from reducible.files.seals import BLANK
from reducible.lab.records import MetricsWriter, read_json, read_metrics, summarise, write_json
from reducible.types import ReducibleError


# Metrics
def test_metrics_come_back_and_are_in_the_file_at_once(tmp_path):
    with MetricsWriter(tmp_path / "m.jsonl") as metrics:
        metrics.write({"step": 10, "loss": None, "selected": {"by_class": [1, 2]}})
        assert read_metrics(tmp_path / "m.jsonl")[0]["selected"] == {"by_class": [1, 2]}
        metrics.write({"step": 20, "accuracy": 0.1})
    assert [line["step"] for line in read_metrics(tmp_path / "m.jsonl")] == [10, 20]


def test_metrics_cut_at_any_byte_lose_the_last_line_at_most(tmp_path):
    lines = [{"step": 1, "name": "Zürich"}, {"step": 2, "curve": [1.0, 2.5]}]
    with MetricsWriter(tmp_path / "m.jsonl") as metrics:
        for line in lines:
            metrics.write(line)
    whole = (tmp_path / "m.jsonl").read_bytes()
    first = whole.index(b"\n")
    for size in range(len(whole) + 1):
        (tmp_path / "cut.jsonl").write_bytes(whole[:size])
        complete = (size >= first) + (size >= len(whole) - 1)
        ends = (0, first, first + 1, len(whole) - 1, len(whole))
        with warning_of_a_cut(size not in ends):
            assert read_metrics(tmp_path / "cut.jsonl") == lines[:complete]


def test_a_damaged_line_that_is_not_the_last_is_an_error(tmp_path):
    with MetricsWriter(tmp_path / "m.jsonl") as metrics:
        for step in (1, 2, 3):
            metrics.write({"step": step})
    text = (tmp_path / "m.jsonl").read_text()
    (tmp_path / "m.jsonl").write_text(text.replace('"step": 2', '"step": 3'))
    with pytest.raises(ReducibleError, match=r"m.jsonl is damaged: line 2 is not"):
        read_metrics(tmp_path / "m.jsonl")


@pytest.mark.parametrize("cut", [0, 1, 9])
def test_resumed_metrics_equal_never_having_stopped(tmp_path, cut):
    with MetricsWriter(tmp_path / "m.jsonl") as metrics:
        for step in (0, 10, 20, 30):
            metrics.write({"step": step})
    whole = (tmp_path / "m.jsonl").read_bytes()
    (tmp_path / "m.jsonl").write_bytes(whole[: len(whole) - cut])
    with MetricsWriter.resume(tmp_path / "m.jsonl", 10) as metrics:
        for step in (20, 30):
            metrics.write({"step": step})
    assert (tmp_path / "m.jsonl").read_bytes() == whole


def test_metrics_errors(tmp_path):
    with MetricsWriter(tmp_path / "m.jsonl") as metrics:
        with pytest.raises(
            ReducibleError, match=r"\['seconds'\]\[1\] is nan, and JSON has no such"
        ):
            metrics.write({"step": 1, "seconds": [1.0, math.nan]})
        with pytest.raises(ReducibleError, match="needs a whole 'step', got None beside loss"):
            metrics.write({"loss": 1.0})
        with pytest.raises(ReducibleError, match="cannot have an entry 'check'"):
            metrics.write({"step": 1, "check": 2})
        with pytest.raises(ReducibleError, match="this cannot be sealed: a record to seal holds"):
            metrics.write({"step": 1, "name": BLANK})
    assert (tmp_path / "m.jsonl").read_bytes() == b""
    with pytest.raises(ReducibleError, match=r"MetricsWriter.resume\(path, step\)"):
        MetricsWriter(tmp_path / "m.jsonl")


# JSON
def test_json_is_replaced_whole(tmp_path):
    write_json(tmp_path / "s.json", {"a": [1, None, "ü"]})
    write_json(tmp_path / "s.json", {"a": 2})
    assert read_json(tmp_path / "s.json") == {"a": 2}
    assert [f.name for f in tmp_path.iterdir()] == ["s.json"]
    (tmp_path / "s.json").write_text('{"a":')
    with pytest.raises(ReducibleError, match=r"s.json is not JSON \("):
        read_json(tmp_path / "s.json")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call):
    write_json(tmp_path / "s.json", {"a": 1})
    with monkeypatch.context() as patch:
        patch.setattr(os, call, full_disk)
        with pytest.raises(OSError, match="No space left"):
            write_json(tmp_path / "s.json", {"a": 2})
    assert json.loads((tmp_path / "s.json").read_text()) == {"a": 1}
    assert [f.name for f in tmp_path.iterdir()] == ["s.json"]


def test_json_without_numbers_it_has_no_words_for(tmp_path):
    with pytest.raises(ReducibleError, match=r"the value\['curve'\]\[0\]\[2\] is inf"):
        write_json(tmp_path / "s.json", {"curve": [[0, 1.0, math.inf]]})
    assert list(tmp_path.iterdir()) == []


def test_sealed_json_is_as_it_was_written_or_refused(tmp_path):
    path = tmp_path / "s.json"
    write_json(path, {"a": [1, None, "ü"]}, sealed=True)
    assert read_json(path, sealed=True) == {"a": [1, None, "ü"]}
    whole = path.read_bytes()
    assert json.loads(whole)["check"].startswith("check-")
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(ReducibleError, match=r"is not JSON|its checksum (differs|is missing)"):
            read_json(path, sealed=True)
    write_json(path, {"a": 1})
    with pytest.raises(ReducibleError, match="its checksum is missing"):
        read_json(path, sealed=True)
    path.write_text("[1]")
    with pytest.raises(ReducibleError, match="its checksum is missing"):
        read_json(path, sealed=True)


# What a curve says
def _curve(*accuracies):
    return [[10 * i, i / 2, accuracy] for i, accuracy in enumerate(accuracies)]


def test_a_target_needs_three_evaluations():
    assert summarise(_curve(0.1, 0.9, 0.5, 0.7, 0.9), 0.7) == (30, 1.5)  # (.9 + .5 + .7) / 3
    assert summarise(_curve(0.9, 0.9), 0.5) == (None, None)
    assert summarise([], 0.5) == (None, None)
    assert summarise(_curve(0.1, 0.2, 0.3), 0.9) == (None, None)


def test_three_evaluations_at_the_target_are_at_the_target():
    for percent in range(1, 101):  # sum([0.7] * 3) / 3 is below 0.7
        assert summarise(_curve(*[percent / 100] * 3), percent / 100) == (20, 1.0)
