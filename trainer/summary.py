"""What a run came to: the page that is left behind as ``summary.json``."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from shared.events import Change, Finding, Incident, Rollback
from trainer.evaluation import Evaluation
from trainer.files import replace_file
from trainer.loop import Loop


class RollbackSummary(BaseModel):
    """One rollback; ``steps_lost`` are applied updates thrown away, ``seconds`` the time of the restore."""

    from_step: int = Field(serialization_alias="from")
    to_step: int = Field(serialization_alias="to")
    reason: str
    trigger: Literal["guard", "command"]
    source: Literal["snapshot", "checkpoint"]
    checkpoint: str | None
    steps_lost: int
    seconds: float

    @classmethod
    def of(cls, event: Rollback) -> "RollbackSummary":
        """From the event that was reported."""
        return cls(steps_lost=event.steps_lost, **event.model_dump(include=set(cls.model_fields)))


class StageSummary(BaseModel):
    """Status of one stage, what went wrong, and what it cost."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    run: str
    status: str
    steps: int
    attempts: int
    final_loss: float
    skipped_steps: int
    rollbacks: list[RollbackSummary]
    findings: list[Finding]
    incidents: list[Incident] = []
    changes: list[Change] = []
    fell_short: list[str] = []

    def as_json(self) -> str:
        """For the file, and for ``--json``."""
        return self.model_dump_json(indent=1, by_alias=True, exclude={"evaluation": {"maps"}})

    def save(self, folder: Path) -> None:
        """Write ``summary.json`` in one step. Raises ``OSError``."""
        replace_file(folder / "summary.json", self.as_json().encode())

    @classmethod
    def of_stage(cls, loop: Loop, **more: Any) -> Self:
        """From a loop that has ended; ``more`` are the fields of a larger summary."""
        record = loop.reporter.record
        return cls(
            run=loop.reporter.run,
            status=record.status,
            steps=loop.state.step,
            attempts=record.attempt,
            final_loss=loop.reporter.recent_loss,
            skipped_steps=record.skipped_steps,
            rollbacks=[RollbackSummary.of(one) for one in record.rollbacks],
            findings=record.findings,
            incidents=record.incidents,
            changes=record.changes,
            **more,
        )


class Summary(StageSummary):
    """The same of a whole training, and how good its maps are (NMSE: Σ error² / Σ truth²)."""

    nmse: float
    nmse_mean_map: float
    evaluation: Evaluation

    @classmethod
    def of(cls, loop: Loop, evaluation: Evaluation) -> "Summary":
        """From the second stage's loop, which has ended, and its evaluation."""
        return cls.of_stage(
            loop,
            nmse=evaluation.drawn.mean.nmse,
            nmse_mean_map=evaluation.mean_map.mean.nmse,
            evaluation=evaluation,
        )
