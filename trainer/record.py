"""What has happened to a run so far: the memory that no rollback takes back, kept in the run's folder."""

from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.events import Change, CommandUpdate, Finding, Incident, Rollback, StepSkipped
from trainer.files import replace_file


class RunRecord(BaseModel):
    """Attempts, skips, rollbacks, findings and incidents of one run, and the commands it has seen.

    A rollback restores the state of an earlier step; this is what must not be restored: budgets would start
    anew, a command would be carried out twice, and a bad sample come again. ``commands_told`` is the last
    word on each command by its id; ``transients`` are POSIX seconds.
    """

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")

    identity: str | None = None
    attempt: int = 0
    skipped_steps: int = 0
    findings: list[Finding] = Field(default_factory=list)
    rollbacks: list[Rollback] = Field(default_factory=list)
    skips: list[StepSkipped] = Field(default_factory=list)
    commands_seen: list[str] = Field(default_factory=list)
    commands_told: dict[str, CommandUpdate] = Field(default_factory=dict)
    ladder: dict[str, Any] = Field(default_factory=dict)
    factors: dict[str, Any] = Field(default_factory=dict)
    quarantined: list[str] = Field(default_factory=list)
    changes: list[Change] = Field(default_factory=list)
    incidents: list[Incident] = Field(default_factory=list)
    transients: list[float] = Field(default_factory=list)
    status: str = "running"

    @classmethod
    def load(cls, path: Path) -> "RunRecord":
        """The record at ``path``; an empty one where there is none yet.

        Raises:
            ValueError: what is there is no record.
        """
        if not path.exists():
            return cls()
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            problem = error.errors()[0]
            place = ".".join(map(str, problem["loc"]))
            raise ValueError(
                f"{path} is not readable as a run's record ({place} {problem['msg']}); move it elsewhere to "
                f"go on without the run's history"
            ) from error

    @classmethod
    def take_up(cls, path: Path) -> "RunRecord":
        """The same for the process that trains: a record without an identity gets one, on disk first.

        It tells the monitor that a folder, or a copy of it, goes on with its own run. Where it can't be
        written the run goes without: after a restart it would be another.

        Raises:
            ValueError: what is there is no record.
        """
        record = cls.load(path)
        if record.identity is None:
            named = record.model_copy(update={"identity": uuid4().hex})
            with suppress(OSError):
                named.save(path)
                return named
        return record

    def save(self, path: Path) -> None:
        """Replace the file at ``path`` in one step, so that a kill leaves the old or the new one."""
        replace_file(path, self.model_dump_json(indent=1).encode())
