"""What can go wrong with checkpoints.

    CheckpointError
    ├── CheckpointInvalid       a checkpoint on disk fails a check
    ├── SaveRefused             a state must not become a checkpoint
    ├── CheckpointWriteFailed   the disk did not take it
    └── NoValidCheckpoint       nothing in the ring could be loaded

``ValueError`` stays what it is elsewhere: a caller's mistake, such as facts that JSON can't hold.
"""

import errno
from collections.abc import Sequence
from pathlib import Path


class CheckpointError(Exception):
    """Base of everything that this package raises about a checkpoint."""


class CheckpointInvalid(CheckpointError):
    """A checkpoint failed a check; ``path``, ``check`` and ``found`` say which and how."""

    def __init__(self, path: Path, check: str, found: str) -> None:
        super().__init__(f"{path.name} fails {check}: {found}. Load the checkpoint before it.")
        self.path, self.check, self.found = path, check, found


class SaveRefused(CheckpointError):
    """A state failed a check before it was written; nothing was written and older checkpoints stand."""

    def __init__(self, path: Path, check: str, found: str) -> None:
        super().__init__(
            f"{path.name} is not saved, it fails {check}: {found}. Roll back to a good checkpoint."
        )
        self.path, self.check, self.found = path, check, found


class CheckpointWriteFailed(CheckpointError):
    """The disk did not take a checkpoint: nothing of it is visible, and older ones are untouched."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"cannot write {path}: {reason}. Older checkpoints are untouched; "
            "make room there or choose another folder."
        )
        self.path, self.reason = path, reason


class NoValidCheckpoint(CheckpointError):
    """No checkpoint could be loaded; ``tried`` holds one ``CheckpointInvalid`` for each attempt."""

    def __init__(self, root: Path, tried: Sequence[CheckpointInvalid]) -> None:
        failures = "; ".join(f"{one.path.name} fails {one.check}: {one.found}" for one in tried)
        super().__init__(
            f"no valid checkpoint in {root}: {failures or 'there is none that fits'}. "
            "Start the run anew or name another folder."
        )
        self.root, self.tried = root, tuple(tried)


def os_reason(error: OSError) -> str:
    """The system's own words and its symbol, for example ``No space left on device (ENOSPC)``."""
    if error.errno is None:
        return str(error)
    return f"{error.strerror} ({errno.errorcode.get(error.errno, error.errno)})"
