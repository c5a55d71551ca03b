"""What the page of one run shows: health, key numbers, marks for the charts, and what happened."""

from dataclasses import dataclass
from typing import Any, get_args

from pydantic import TypeAdapter
from sqlalchemy import Connection

from monitor_service import queries
from monitor_service.health import OVER
from monitor_service.views import CheckpointView, CommandView, EventView, HealthView, RunDetail
from monitor_service.web import words
from monitor_service.web.marks import Kind, Mark, mark_attempt, mark_checkpoint, mark_event
from shared.events import AnyEvent

MAX_EVENTS = 500
MAX_CHECKPOINTS = 50
"""So many of the newest are listed; the page links to all."""

TOLD = ("attempt_started", "finding", "step_skipped", "rollback", "run_ended")
CHARTS = (("loss", "Loss"), ("grad_norm", "Gradient norm"))

_EVENT: TypeAdapter[AnyEvent] = TypeAdapter(AnyEvent)


@dataclass(frozen=True)
class Happening:
    """An event of the run with its telling."""

    event: EventView
    telling: words.Telling


@dataclass(frozen=True)
class RunPageView:
    """Everything that ``run.html`` needs."""

    run: RunDetail
    health: HealthView
    happenings: list[Happening]
    checkpoints: list[CheckpointView]
    commands: list[CommandView]
    marks: list[Mark]

    charts = CHARTS
    max_events = MAX_EVENTS
    max_checkpoints = MAX_CHECKPOINTS
    checkpoint_signs = words.CHECKPOINT
    command_words = words.COMMAND

    @classmethod
    def read(cls, connection: Connection, run: str) -> "RunPageView":
        """Raises NotFound: no such run."""
        detail = queries.run_detail(connection, run)
        newest = queries.events(connection, run, types=TOLD, limit=MAX_EVENTS, newest_first=True).items
        events = [(event, _EVENT.validate_python(event.data)) for event in newest]
        checkpoints = queries.checkpoints(connection, run).items
        return cls(
            run=detail,
            health=queries.health(connection, run),
            happenings=_tell(events),
            checkpoints=checkpoints,
            commands=queries.commands(connection, run).items,
            marks=_marks(detail, events, checkpoints),
        )

    @property
    def sign(self) -> words.Sign:
        return words.STATUS[self.health.status]

    @property
    def legend(self) -> list[tuple[Mark, int]]:
        """One mark of each look with how often it stands on the charts."""
        counts: dict[tuple[str, str], int] = {}
        first: dict[tuple[str, str], Mark] = {}
        for mark in self.marks:
            look = (mark.kind, mark.label)
            counts[look] = counts.get(look, 0) + 1
            first.setdefault(look, mark)
        order = get_args(Kind)
        return [(first[look], counts[look]) for look in sorted(first, key=lambda look: order.index(look[0]))]

    @property
    def story(self) -> dict[str, Any]:
        """What the page's script must know to draw."""
        shown = [name for name, _ in CHARTS if name in self.run.series]
        return {
            "run": self.run.run,
            "step": self.run.step,
            "is_over": self.health.status in OVER,
            "series": shown,
            "attempts": [{"attempt": a.attempt, "start_step": a.start_step} for a in self.run.attempts],
            "marks": [mark.as_json() for mark in self.marks],
        }


def _tell(events: list[tuple[EventView, AnyEvent]]) -> list[Happening]:
    told = ((view, words.tell(event)) for view, event in events)
    return [Happening(view, telling) for view, telling in told if telling is not None]


def _marks(
    run: RunDetail, events: list[tuple[EventView, AnyEvent]], checkpoints: list[CheckpointView]
) -> list[Mark]:
    found = (mark_event(event, view.attempt) for view, event in events)
    return [
        *(mark for mark in found if mark is not None),
        *(mark_attempt(attempt) for attempt in run.attempts if attempt.reason == "resume"),
        *(mark_checkpoint(checkpoint) for checkpoint in checkpoints),
    ]
