"""What the ring knows of one checkpoint: its state, and why; kept in the checkpoint's own folder."""

import re
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Self

from pydantic import Field

from trainer.checkpoint.errors import os_reason
from trainer.checkpoint.sealed import SealedPage

STATUS_FILE = "status.json"

_NAME = re.compile(r"^step-(\d{8,})-attempt-(\d+)$")


class State(StrEnum):
    """``sealed -> good``, or ``bad`` with the check that failed; ``deleted`` by retention.

    What is being written has a hidden name and no record: a kill leaves no half checkpoint to be seen.
    """

    SEALED = "sealed"
    GOOD = "good"
    BAD = "bad"
    DELETED = "deleted"


USABLE = frozenset({State.SEALED, State.GOOD})


class Record(SealedPage):
    """One checkpoint of a ring. ``failed_check`` and ``found`` say why it is bad."""

    name: str
    step: int = Field(ge=0)
    attempt: int = Field(ge=1)
    state: State
    size_bytes: int = Field(0, ge=0)
    probe_loss: float | None = Field(None, allow_inf_nan=False)
    seconds: float = Field(0.0, description="Time to check, write and prove it, seconds.")
    failed_check: str | None = None
    found: str | None = None
    path: Path = Field(Path(), exclude=True)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The record in a checkpoint's folder. Without one it is bad: nobody knows what was decided."""
        try:
            record = cls.unseal((folder / STATUS_FILE).read_bytes())
            if record.name != folder.name:
                raise ValueError(f"belongs to {record.name}")
        except (OSError, ValueError) as error:
            why = os_reason(error) if isinstance(error, OSError) else str(error)
            lost = {"state": State.BAD, "failed_check": "status", "found": f"{STATUS_FILE}: {why}"}
            return cls.draft(folder.parent, *parse_name(folder.name)).model_copy(update=lost)
        return record.model_copy(update={"path": folder})

    @classmethod
    def draft(cls, root: Path, step: int, attempt: int) -> Self:
        """The record of a checkpoint that is about to be written."""
        name = name_of(step, attempt)
        return cls(name=name, step=step, attempt=attempt, state=State.SEALED, path=root / name)


def name_of(step: int, attempt: int) -> str:
    """``step-00000150-attempt-3``: sorts by step in any listing."""
    return f"step-{step:08d}-attempt-{attempt}"


def parse_name(name: str) -> tuple[int, int]:
    """Step and attempt.

    Raises:
        ValueError: not such a name.
    """
    found = _NAME.match(name)
    if found is None:
        raise ValueError(f"{name!r} is no checkpoint's name; one looks like {name_of(150, 3)}")
    return int(found[1]), int(found[2])


def list_records(root: Path) -> tuple[Record, ...]:
    """All checkpoints in a folder, newest first; changes nothing, so it may look on while a run trains."""
    folders = [path for path in root.iterdir() if path.is_dir() and _NAME.match(path.name)]
    return newest_first(Record.load(folder) for folder in folders)


def newest_first(records: Iterable[Record]) -> tuple[Record, ...]:
    """By attempt, then by step: a later attempt began after an earlier one, wherever it went back to."""
    return tuple(sorted(records, key=lambda record: (record.attempt, record.step), reverse=True))
