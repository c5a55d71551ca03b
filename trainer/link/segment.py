"""One file of the spool, and the lines in it.

A line is ``crc32 seq hold_s body``. The checksum covers the rest, and JSON has no raw line end, so a damaged
line costs itself and not its neighbours, and a tail torn by a SIGKILL is only a damaged last line.
"""

import errno
import os
import zlib
from dataclasses import dataclass
from pathlib import Path


class Segment:
    """One spool file: lines are added at its end and read once, from its start."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = path.stat().st_size if path.exists() else 0
        self.unread = _count_lines(path) if self.size else 0
        self.outstanding = 0
        self._position = 0

    @property
    def is_done(self) -> bool:
        """Everything in it was read and settled."""
        return self._position >= self.size and not self.outstanding

    def append(self, line: bytes) -> None:
        """Add a line, whole or not at all. Raises ``OSError``."""
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            # At a place, not at the end: what a full disk took of a line before is written over.
            if os.pwrite(descriptor, line, self.size) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        finally:
            os.close(descriptor)
        self.size += len(line)
        self.unread += 1

    def read(self) -> bytes | None:
        """The next line without its end, ``None`` after the last. Raises ``OSError``."""
        if self._position >= self.size:
            return None
        with self.path.open("rb") as file:
            file.seek(self._position)
            line = file.readline()
        # A file that somebody shortened ends here, or the loop would ask for ever.
        self._position = self._position + len(line) if line else self.size
        self.unread -= 1
        return line.removesuffix(b"\n")

    def clear(self) -> None:
        """Forget what was delivered. Raises ``OSError``."""
        os.truncate(self.path, 0)
        self.size = self._position = self.unread = 0

    def sync(self) -> None:
        """Make it outlive a power cut. Raises ``OSError``."""
        for path in (self.path, self.path.parent):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Record:
    """A packed batch. ``body`` never changes, so that a repeat is equal byte by byte."""

    seq: int
    hold_s: float
    body: bytes
    segment: Segment | None = None

    def line(self) -> bytes:
        """As it stands in a spool file."""
        rest = b"%d %g %s" % (self.seq, self.hold_s, self.body)
        return b"%08x %s\n" % (zlib.crc32(rest), rest)

    @classmethod
    def parse(cls, line: bytes, segment: Segment) -> "Record":
        """Read a line. Raises ``ValueError`` when it is damaged."""
        checksum, _, rest = line.partition(b" ")
        if checksum != b"%08x" % zlib.crc32(rest):
            raise ValueError("checksum")
        seq, hold_s, body = rest.split(b" ", 2)
        return cls(int(seq), float(hold_s), body, segment)


def _count_lines(path: Path) -> int:
    """Lines in a file, a torn last one included."""
    count, last = 0, b"\n"
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            count += block.count(b"\n")
            last = block[-1:]
    return count + (last != b"\n")
