"""What the tests of records share: a file that was cut, a disk that is full."""

import errno
import os
from contextlib import nullcontext

import pytest


def warning_of_a_cut(expected):
    return pytest.warns(UserWarning, match="are no whole record") if expected else nullcontext()


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
