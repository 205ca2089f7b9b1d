"""Checksums inside files: every record carries one of itself and of all that stands before it."""

from __future__ import annotations

import hashlib
import re
from typing import final

BLANK = "check-" + 32 * "0"
"""Text that a record holds once, where its checksum will stand."""
_SEAL = re.compile(rb"check-[0-9a-f]{32}")


def digest(data: bytes = b"") -> hashlib.blake2b:
    """BLAKE2b of 128 bits, as ``b2sum --length 128`` computes it."""
    return hashlib.blake2b(data, digest_size=16)


@final
class Seals:
    """Seals or checks the records of a file, in their order.

    A record's checksum is that of all bytes of the file up to its end, with ``BLANK`` in its own
    place; so a changed, missing or repeated byte breaks the first seal behind it.

    >>> writing, reading = Seals(), Seals()
    >>> record = writing.seal(f"loss 0.5 {BLANK}".encode())
    >>> reading.holds(record), reading.holds(record)
    (True, False)
    """

    def __init__(self) -> None:
        self._before = digest()

    def seal(self, record: bytes) -> bytes:
        """Returns ``record`` with its checksum in place of ``BLANK``.

        Raises:
            ValueError: the record does not hold exactly one text like ``BLANK``.
        """
        place = _place(record)
        if place is None:
            raise ValueError(f"a record to seal holds {BLANK!r} once, and no text like it beside")
        filled = record[: place[0]] + self._check(record, place) + record[place[1] :]
        self._before.update(filled)
        return filled

    def holds(self, record: bytes) -> bool:
        """Whether ``record`` is what was written at this place. If not, it is not counted."""
        place = _place(record)
        if place is None or record[slice(*place)] != self._check(record, place):
            return False
        self._before.update(record)
        return True

    @property
    def digest(self) -> str:
        """The checksum of all records so far, as hexadecimal text."""
        return self._before.hexdigest()

    def copy(self) -> Seals:
        """Seals that go on from the same records."""
        other = Seals()
        other._before = self._before.copy()
        return other

    def _check(self, record: bytes, place: tuple[int, int]) -> bytes:
        check = self._before.copy()
        check.update(record[: place[0]])
        check.update(BLANK.encode())
        check.update(record[place[1] :])
        return b"check-" + check.hexdigest().encode()


def count(data: bytes) -> int:
    """Returns how many checksums ``data`` holds."""
    return len(_SEAL.findall(data))


def _place(record: bytes) -> tuple[int, int] | None:
    """Finds the one checksum of a record; None if there is none, or more than one."""
    found = [match.span() for match in _SEAL.finditer(record)]
    return found[0] if len(found) == 1 else None
