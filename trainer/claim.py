"""A folder that one process works in at a time: two trainers would take each other's checkpoints apart."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.errors import ConfigError


@contextmanager
def claimed(lock: Path) -> Iterator[None]:
    """Hold the file ``lock``, in an existing folder, within this block; a killed process lets go of it, too.

    Raises:
        ConfigError: another process holds it.
        OSError: it can't be made.
    """
    with lock.open("ab") as file:
        try:
            # not flock: loader workers forked from a trainer that was killed would go on holding it
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"{lock.parent} is in use by another process (it holds {lock.name}); wait for its end, or "
                "choose another folder"
            ) from error
        yield
