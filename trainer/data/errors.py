"""What can be wrong with data.

DataError
├── BadFile            one file of the data set, and why it is refused
└── PositionMismatch   a saved position that belongs to other data or another order
"""

from pathlib import Path


class DataError(Exception):
    """The data can't be used; the message says what was found and what would do."""


class BadFile(DataError):
    """A file or folder of the data set is refused; ``path`` and ``reason`` say which and why."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason


class PositionMismatch(DataError):
    """A saved loading position does not fit this loader."""
