"""What the page of one run shows: health, key numbers, marks for the charts, and what happened."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args
from urllib.parse import quote, urlencode

from pydantic import TypeAdapter
from sqlalchemy import Connection

from monitor_service import queries
from monitor_service.health import OVER
from monitor_service.incidents import IncidentPage, incidents
from monitor_service.pictures import PictureView, pictures
from monitor_service.views import CheckpointView, CommandView, EventView, HealthView, RunDetail
from monitor_service.web import words
from monitor_service.web.marks import Kind, Mark, mark_attempt, mark_checkpoint, mark_event
from shared.events import AnyEvent

MAX_EVENTS = 500
MAX_CHECKPOINTS = 50
"""So many of the newest are listed; the page links to all."""

MAX_INCIDENTS = MAX_COMMANDS = 50
MAX_DRAWN = 24

ELSEWHERE = ("checkpoint", "command", "picture", "incident")
"""Events that other parts of the page show; one of a type that is not known here is told by its name."""

CHARTS = (("loss", "Loss"), ("grad_norm", "Gradient norm"))
MINOR_CHARTS = (("lr", "Learning rate"), ("step_seconds", "Step time in seconds"))
"""Smaller, without marks, and only of runs that send these series."""

POINTS = 1_000
"""Points of a line: about one for each pixel; each tells the lowest and highest of its steps.
No more than that: a block of a thousand steps that fits into one point need not be unpacked."""

MODULES = "grad_norm/"
"""Before the names of modules whose norms are sent."""

_EVENT: TypeAdapter[AnyEvent] = TypeAdapter(AnyEvent)


@dataclass(frozen=True)
class Happening:
    """An event of the run with its telling."""

    event: EventView
    telling: words.Telling


@dataclass(frozen=True)
class Told:
    """What a run told: in words, newest first, and as marks for its charts."""

    happenings: list[Happening]
    marks: list[Mark]

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

    def story(self, run: RunDetail, charts: Sequence[tuple[str, str]], *, is_over: bool) -> dict[str, Any]:
        """What a page's script must know to draw."""
        return {
            "run": run.run,
            "step": run.step,
            "is_over": is_over,
            "series": [name for name, _ in charts if name in run.series],
            "points": POINTS,
            "modules": sorted((name for name in run.series if name.startswith(MODULES)), key=_natural),
            "attempts": [{"attempt": a.attempt, "start_step": a.start_step} for a in run.attempts],
            "marks": [mark.as_json() for mark in self.marks],
        }


def told_events(
    connection: Connection,
    run: RunDetail,
    checkpoints: Sequence[CheckpointView],
    more: Sequence[EventView] = (),
) -> Told:
    """The newest events of a run and ``more`` of it, and its checkpoints."""
    newest = queries.events(connection, run.run, without=ELSEWHERE, limit=MAX_EVENTS, newest_first=True).items
    chosen = {event.id: event for event in (*newest, *more)}
    events = [
        (event, _EVENT.validate_python(event.data)) for _, event in sorted(chosen.items(), reverse=True)
    ]
    told = ((view, words.tell(event)) for view, event in events)
    found = (mark_event(event, view.attempt) for view, event in events)
    return Told(
        [Happening(view, telling) for view, telling in told if telling is not None],
        [
            *(mark for mark in found if mark is not None),
            *(mark_attempt(attempt) for attempt in run.attempts if attempt.reason == "resume"),
            *(mark_checkpoint(checkpoint) for checkpoint in checkpoints),
        ],
    )


@dataclass(frozen=True)
class Drawn:
    """The maps that were drawn at one step."""

    step: int
    attempt: int
    pictures: list[PictureView]


@dataclass(frozen=True)
class RunPageView:
    """Everything that ``run.html`` needs."""

    run: RunDetail
    health: HealthView
    told: Told
    incidents: IncidentPage
    drawn: list[Drawn]
    checkpoints: list[CheckpointView]
    commands: list[CommandView]
    may_order: bool

    charts = CHARTS
    minor_charts = MINOR_CHARTS
    max_events = MAX_EVENTS
    max_checkpoints = MAX_CHECKPOINTS
    max_commands = MAX_COMMANDS
    checkpoint_signs = words.CHECKPOINT
    command_words = words.COMMAND
    command_signs = words.COMMAND_STATE
    outcome_signs = words.OUTCOME
    severity_signs = words.SEVERITY

    @classmethod
    def read(cls, connection: Connection, run: str, *, may_order: bool) -> "RunPageView":
        """Raises NotFound: no such run."""
        detail = queries.run_detail(connection, run)
        checkpoints = queries.checkpoints(connection, run).items
        return cls(
            run=detail,
            health=queries.health(connection, run),
            told=told_events(connection, detail, checkpoints),
            incidents=incidents(connection, run, limit=MAX_INCIDENTS),
            drawn=_by_step(pictures(connection, run, kinds=["drawn"], limit=MAX_DRAWN).items),
            checkpoints=checkpoints,
            commands=queries.commands(connection, run, limit=MAX_COMMANDS).items,
            may_order=may_order,
        )

    @property
    def is_over(self) -> bool:
        return self.health.status in OVER

    @property
    def sign(self) -> words.Sign:
        return words.STATUS[self.health.status]

    @property
    def story(self) -> dict[str, Any]:
        """What the page's script must know to draw."""
        return self.told.story(self.run, (*CHARTS, *MINOR_CHARTS), is_over=self.is_over)

    def is_abandoned(self, attempt: int, step: int) -> bool:
        """Whether a later attempt began at or before that step."""
        return any(one.attempt > attempt and one.start_step < step for one in self.run.attempts)


def first_look(story: dict[str, Any]) -> str | None:
    """What the script asks first, letter by letter: a browser told so asks while the scripts still arrive."""
    if not story["series"]:
        return None
    ends = zip(("from_step", "to_step"), story.get("focus", ()), strict=False)
    names = [("name", name) for name in story["series"]]
    query = urlencode([*names, ("attempt", "effective"), ("buckets", story["points"]), *ends])
    return f"/api/v1/runs/{quote(story['run'], safe='')}/series?{query}"


def _natural(name: str) -> list[str | int]:
    """Sorts ``levels.10`` after ``levels.9``: words and numbers take turns, words first."""
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", name)]


def _by_step(found: Sequence[PictureView]) -> list[Drawn]:
    """Pictures of one moment together, the newest first."""
    places = dict.fromkeys((one.step, one.attempt) for one in found)
    return [
        Drawn(step, attempt, [one for one in found if (one.step, one.attempt) == (step, attempt)])
        for step, attempt in places
    ]
