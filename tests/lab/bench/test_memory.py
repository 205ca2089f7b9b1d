"""What memory a process has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from reducible.lab.bench import memory


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is told by /proc")
def test_own_memory_is_that_which_no_file_backs(tmp_path: Path) -> None:
    size, path = 64 * 2**20, tmp_path / "file"
    path.write_bytes(b"\1" * size)
    before = memory.own_memory_bytes()
    mapped = torch.from_file(str(path), size=size, dtype=torch.uint8)
    assert int(mapped.sum()) == size  # every page is read
    assert memory.own_memory_bytes() - before < size // 4
    own = torch.ones(size, dtype=torch.uint8)
    assert memory.own_memory_bytes() - before > size * 3 // 4
    del own
