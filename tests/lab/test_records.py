"""Records of picks: what survives a kill, a full disk and a resume."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from record_toys import full_disk, warning_of_a_cut
from reducible.lab.logs import is_whole, mark_of
from reducible.lab.records import MetricsWriter, PickWriter, read_metrics, read_picks
from reducible.types import ConfigurationError, ReducibleError


def _write_steps(writer, first, last):
    generator = torch.Generator().manual_seed(first)
    for step in range(first, last):
        generator.manual_seed(step)
        k = 1 + step % 4
        writer.write(
            step,
            torch.randint(2**62, (k,), generator=generator),
            torch.randn(k, generator=generator),
        )


def _leftovers(folder):
    return [f.name for f in folder.iterdir() if f.name.endswith(".tmp")]


# Picks
def test_picks_come_back_exactly(tmp_path):
    ids = torch.tensor([2**24 + 1, 2**53 + 1, 2**63 - 1])
    with PickWriter(tmp_path / "p.arrow", flush_every=2) as picks:
        picks.write(0, ids, torch.tensor([1.5, -2.0, 0.1]), torch.tensor([1.0, 0.5, 2.0]))
        picks.write(1, ids[:1])
        picks.write(2, ids[:0])
        picks.write(5, ids[1:], torch.ones(2, dtype=torch.bfloat16, requires_grad=True))
    table = read_picks(tmp_path / "p.arrow")
    assert [str(t) for t in table.schema.types] == [
        "int64",
        "list<item: int64>",
        "list<item: float>",
        "list<item: float>",
    ]
    rows = table.to_pylist()
    assert [row["step"] for row in rows] == [0, 1, 2, 5]
    assert [row["ids"] for row in rows] == [
        ids.tolist(),
        [2**24 + 1],
        [],
        [2**53 + 1, 2**63 - 1],
    ]
    assert rows[0]["scores"] == torch.tensor([1.5, -2.0, 0.1]).tolist()
    assert rows[0]["weights"] == [1.0, 0.5, 2.0]
    assert math.isnan(rows[1]["scores"][0])
    assert rows[1]["weights"] == [1.0]
    assert rows[3]["scores"] == [1.0, 1.0]


def test_memory_given_to_write_may_be_reused(tmp_path):
    ids, scores = torch.tensor([1, 2]), torch.tensor([0.5, 0.25])
    with PickWriter(tmp_path / "p.arrow") as picks:
        picks.write(0, ids, scores)
        ids.zero_()
        scores.zero_()
    assert read_picks(tmp_path / "p.arrow").to_pylist()[0]["ids"] == [1, 2]
    assert read_picks(tmp_path / "p.arrow").to_pylist()[0]["scores"] == [0.5, 0.25]


def test_scores_of_any_floating_type_are_written_as_float32(tmp_path):
    ids = torch.tensor([4, 2])
    with PickWriter(tmp_path / "picks.arrow") as picks:
        picks.write(0, ids, torch.tensor([0.1, 2.0], dtype=torch.float64))
        picks.write(1, ids, torch.tensor([0.5, 2.0], dtype=torch.bfloat16))
        picks.write(2, ids)
    scores = read_picks(tmp_path / "picks.arrow")["scores"]
    assert scores.type.value_type == "float"
    exact = torch.tensor([0.1, 2.0], dtype=torch.float64).float().tolist()
    assert scores.to_pylist()[:2] == [exact, [0.5, 2.0]]


def test_nothing_is_lost_after_a_flush_while_the_writer_lives(tmp_path):
    with PickWriter(tmp_path / "p.arrow", flush_every=10) as picks:
        _write_steps(picks, 0, 13)
        assert read_picks(tmp_path / "p.arrow")["step"].to_pylist() == list(range(10))
        picks.flush()
        assert read_picks(tmp_path / "p.arrow")["step"].to_pylist() == list(range(13))


def test_a_file_cut_at_any_byte_reads_up_to_its_last_complete_batch(tmp_path):
    path, cut = tmp_path / "p.arrow", tmp_path / "cut.arrow"
    ends = []
    with PickWriter(path, flush_every=3) as picks:
        ends.append(path.stat().st_size)
        for first in (0, 3, 6):
            _write_steps(picks, first, first + 3)
            ends.append(path.stat().st_size)
    whole = path.read_bytes()
    assert len(whole) == ends[-1]
    for size in range(len(whole) + 1):
        cut.write_bytes(whole[:size])
        if size < ends[0]:
            with pytest.raises(ReducibleError, match=r"no complete header \(\d+ bytes"):
                read_picks(cut)
        else:
            complete = sum(end <= size for end in ends[1:])
            with warning_of_a_cut(size not in ends):
                assert read_picks(cut)["step"].to_pylist() == list(range(3 * complete))


def test_no_changed_bit_of_picks_or_metrics_is_read_in_silence(tmp_path):
    with PickWriter(tmp_path / "p.arrow", flush_every=3) as picks:
        _write_steps(picks, 0, 6)
    with MetricsWriter(tmp_path / "m.jsonl") as metrics:
        for step in (1, 2):
            metrics.write({"step": step, "name": "Zürich", "curve": [1.0, 2.5]})
    for path, read in ((tmp_path / "p.arrow", read_picks), (tmp_path / "m.jsonl", read_metrics)):
        whole = path.read_bytes()
        for bit in range(0, 8 * len(whole), 3):
            flipped = bytearray(whole)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            with pytest.raises((ReducibleError, UserWarning)):
                read(path)


def test_a_record_that_was_lost_or_comes_twice_is_noticed(tmp_path):
    path = tmp_path / "m.jsonl"
    with MetricsWriter(path) as metrics:
        for step in (1, 2, 3):
            metrics.write({"step": step})
    first, second, third = path.read_bytes().splitlines(keepends=True)
    for lines in ((first, third), (second, third), (first, second, second, third)):
        path.write_bytes(b"".join(lines))
        with pytest.raises(ReducibleError, match="damaged: line"):
            read_metrics(path)


def test_a_log_with_damage_behind_a_checkpoint_is_gone_on_with_from_it(tmp_path):
    path = tmp_path / "p.arrow"
    with PickWriter(path, flush_every=2) as picks:
        _write_steps(picks, 0, 4)
        sound = path.stat().st_size
        _write_steps(picks, 4, 6)
    flipped = bytearray(path.read_bytes())
    flipped[sound + 300] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(ReducibleError, match=f"damaged: the record at byte {sound} is not what"):
        PickWriter.resume(path, 6)
    with PickWriter.resume(path, 4) as picks:
        _write_steps(picks, 4, 6)
    assert read_picks(path)["step"].to_pylist() == list(range(6))


def test_a_mark_says_whether_a_file_is_as_it_was(tmp_path):
    path = tmp_path / "m.jsonl"
    with MetricsWriter(path) as metrics:
        metrics.write({"step": 1})
        early = metrics.mark()
        metrics.write({"step": 2})
        late = metrics.mark()
    assert late == mark_of(path)
    assert is_whole(path, late)
    assert is_whole(path, early, up_to=True)
    assert not is_whole(path, early)
    path.write_bytes(path.read_bytes()[:-1])
    assert not is_whole(path, late, up_to=True)
    assert not is_whole(tmp_path / "absent", late)


def test_a_file_of_something_else_is_named(tmp_path):
    import pyarrow as pa

    (tmp_path / "p.arrow").write_bytes(pa.schema([("loss", pa.float32())]).serialize().to_pybytes())
    with pytest.raises(ReducibleError, match=r"stream of loss, not of step, ids,"):
        read_picks(tmp_path / "p.arrow")
    with pytest.raises(FileNotFoundError):
        read_picks(tmp_path / "absent.arrow")


@pytest.mark.parametrize("stop", [0, 1, 6, 9, 10, 25])
def test_resumed_picks_equal_never_having_stopped(tmp_path, stop):
    with PickWriter(tmp_path / "whole.arrow", flush_every=4) as picks:
        _write_steps(picks, 0, 25)
    killed = PickWriter(tmp_path / "p.arrow", flush_every=4)
    _write_steps(killed, 0, stop)
    killed.flush()  # the checkpoint before update `stop`
    _write_steps(killed, stop, min(stop + 7, 25))  # lost with the process, or thrown away
    killed._stream.close()
    with PickWriter.resume(tmp_path / "p.arrow", stop, flush_every=4) as picks:
        assert read_picks(tmp_path / "p.arrow")["step"].to_pylist() == list(range(stop))
        _write_steps(picks, stop, 25)
    assert read_picks(tmp_path / "p.arrow").equals(read_picks(tmp_path / "whole.arrow"))
    assert _leftovers(tmp_path) == []


def test_resume_after_a_cut_batch_and_without_a_file(tmp_path):
    path = tmp_path / "p.arrow"
    with PickWriter.resume(path, 0, flush_every=2) as picks:
        _write_steps(picks, 0, 6)
    path.write_bytes(path.read_bytes()[:-5])
    with PickWriter.resume(path, 4) as picks:
        _write_steps(picks, 4, 6)
    assert read_picks(path)["step"].to_pylist() == list(range(6))


@pytest.mark.filterwarnings("ignore:the last")  # the kill may come in the middle of a record
def test_picks_survive_sigkill(tmp_path):
    path = tmp_path / "p.arrow"
    code = f"""
import torch
from reducible.lab.records import PickWriter
picks = PickWriter({str(path)!r}, flush_every=2)
for step in range(10**9):
    picks.write(step, torch.arange(step, step + 500), torch.full((500,), step / 2))
"""
    child = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    try:
        give_up = time.monotonic() + 20
        while not (path.exists() and path.stat().st_size > 500_000):
            assert child.poll() is None
            assert time.monotonic() < give_up
            time.sleep(0.005)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    steps = read_picks(path)["step"].to_pylist()
    assert len(steps) >= 20
    assert steps == list(range(len(steps)))
    with PickWriter.resume(path, 10) as picks:
        picks.write(10, torch.tensor([4]))
    rows = read_picks(path).to_pylist()
    assert [row["step"] for row in rows] == list(range(11))
    assert rows[9]["ids"] == list(range(9, 509))
    assert rows[9]["scores"] == [4.5] * 500


def test_a_batch_that_half_fits_on_the_disk_is_taken_back_and_tried_again(tmp_path):
    path = tmp_path / "p.arrow"
    picks = PickWriter(path, flush_every=2)
    _write_steps(picks, 0, 3)
    real = picks._stream._log._file

    class FullDisk:
        closed = False

        def write(self, data):
            real.write(bytes(data[:20]))
            full_disk()

        def truncate(self, size):
            real.truncate(size)

    picks._stream._log._file = FullDisk()  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(OSError, match="No space left"):
        _write_steps(picks, 3, 4)
    assert read_picks(path)["step"].to_pylist() == [0, 1]
    picks._stream._log._file = real  # room again
    _write_steps(picks, 4, 5)
    picks.close()
    assert read_picks(path)["step"].to_pylist() == list(range(5))


def test_pick_errors(tmp_path):
    path = tmp_path / "p.arrow"
    with pytest.raises(ConfigurationError, match="flush_every must be a whole number"):
        PickWriter(path, flush_every=0)
    with PickWriter(path) as picks:
        with pytest.raises(ReducibleError, match=r"got \[2\] torch.float32: ids that pass"):
            picks.write(0, torch.ones(2))
        with pytest.raises(ReducibleError, match=r"scores must have one entry per id, \[2\], got"):
            picks.write(0, torch.arange(2), torch.ones(3))
    with pytest.raises(ReducibleError, match="exists: it is the log of an earlier run"):
        PickWriter(path)
    picks.write(0, torch.arange(2))
    with pytest.raises(ReducibleError, match="is closed, so nothing more can be logged"):
        picks.flush()


def test_reading_records_needs_no_torch():
    import ast

    path = Path(__file__).parents[2] / "src" / "reducible" / "lab" / "records.py"
    at_import = [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.Import)]
    names = {alias.name for node in at_import for alias in node.names}
    assert names.isdisjoint({"torch", "pyarrow", "numpy"})
