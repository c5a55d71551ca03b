"""What the page of one incident shows: what happened, who is to blame, what was done, what it cost."""

import shlex
from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection

from monitor_service import queries
from monitor_service.health import OVER
from monitor_service.incidents import IncidentPage, IncidentView, incident_of, incidents
from monitor_service.pictures import PictureView, pictures
from monitor_service.span import Span
from monitor_service.views import EventView, RunDetail
from monitor_service.web import words
from monitor_service.web.marks import Mark
from monitor_service.web.run_page import (
    CHARTS,
    ELSEWHERE,
    MAX_EVENTS,
    MAX_INCIDENTS,
    Happening,
    Told,
    told_events,
)

AROUND = 100
"""Steps shown before the onset and after the last that belongs to it."""

NEAR = 10
"""Steps after an alarm within which another one is of the same fault: so counts the trainer."""

LEAD = timedelta(minutes=1)
"""What a guard sees is told before the incident that follows from it."""

_KIND = {
    "transient": "A fault that did not come again",
    "data": "Bad data",
    "weights": "Corrupt weights",
    "state": "A corrupt state",
    "hang": "A step that did not end",
    "process": "The process died",
    "unknown": "A fault of unknown cause",
}


@dataclass(frozen=True)
class IncidentPageView:
    """Everything that ``incident.html`` needs."""

    run: RunDetail
    view: IncidentView
    told: Told
    pictures: list[PictureView]
    belonging: Collection[int]
    """Ids of the events that are part of it."""
    is_over: bool

    charts = CHARTS

    @classmethod
    def read(cls, connection: Connection, run: str, name: str) -> "IncidentPageView | None":
        """None if the run tells of no such incident. Raises NotFound: no such run."""
        view = incident_of(connection, run, name)
        if view is None:
            return None
        detail = queries.run_detail(connection, run)
        shown = pictures(connection, run, incident=name).items
        around = _around(connection, run, view)
        told = told_events(connection, detail, queries.checkpoints(connection, run).items, around)
        return cls(
            detail,
            view,
            told,
            shown,
            {event.id for event in around},
            queries.health(connection, run).status in OVER,
        )

    @property
    def sign(self) -> words.Sign:
        return words.OUTCOME[self.view.incident.outcome]

    @property
    def heading(self) -> str:
        """What kind of fault, and when."""
        return f"{_KIND[self.view.incident.kind]} at step {self.view.incident.step:,}"

    @property
    def sentence(self) -> str:
        """What happened, who is to blame, what was done and at what price."""
        told = self.view.incident
        parts = [words.brief(told.message).rstrip(".")]
        blame = [f"first in {told.module}"] if told.module else []
        if told.sample_ids:
            more = f" and {len(told.sample_ids) - 1} more" if len(told.sample_ids) > 1 else ""
            blame.append(f"because of sample {told.sample_ids[0]}{more}")
        if blame:
            parts.append(", ".join(blame))
        if told.action:
            price = f"{words.steps(told.steps_lost)} and {words.seconds(told.seconds_lost)}"
            parts.append(f"{told.action}, at the price of {price}")
        return " ".join(f"{part[:1].upper()}{part[1:]}." for part in parts)

    @property
    def first(self) -> int:
        return max(self.view.incident.onset_step - AROUND, 0)

    @property
    def last(self) -> int:
        """The last step that the charts show: some after the last that belongs to the incident."""
        return max((one.event.step for one in self.timeline), default=self.view.incident.step) + AROUND

    @property
    def timeline(self) -> list[Happening]:
        """What belongs to it, oldest first: what names it, and what happened between onset and alarm."""
        chosen = [one for one in self.told.happenings if one.event.id in self.belonging]
        return sorted(chosen, key=lambda one: (one.event.time, one.event.id))

    @property
    def marks(self) -> list[Mark]:
        return self.told.marks

    @property
    def replay(self) -> str | None:
        """The command that does the step once more, if its evidence was kept."""
        evidence, run = self.view.incident.evidence, self.run.config.get("run")
        if evidence is None:
            return None
        folder = run.get("folder") if isinstance(run, dict) else None
        if isinstance(run, dict) and self.run.run == f"{run.get('name')}-first-stage":
            folder = f"{folder}/first-stage"
        # both are what a trainer said, and somebody will paste this into a shell
        path = f"{folder or 'RUN_FOLDER'}/{evidence}"
        return f"python -m trainer replay {shlex.quote(path)}"

    @property
    def story(self) -> dict[str, Any]:
        """What the page's script must know to draw."""
        return {**self.told.story(self.run, CHARTS, is_over=self.is_over), "focus": [self.first, self.last]}


@dataclass(frozen=True)
class IncidentsPageView:
    """Everything that ``incidents.html`` needs: some of a run's incidents, the youngest first."""

    run: RunDetail
    incidents: IncidentPage
    skip: int

    outcome_signs = words.OUTCOME

    @classmethod
    def read(cls, connection: Connection, run: str, skip: int) -> "IncidentsPageView":
        """Raises NotFound: no such run."""
        detail = queries.run_detail(connection, run)
        return cls(detail, incidents(connection, run, skip=skip, limit=MAX_INCIDENTS), skip)

    @property
    def words(self) -> str:
        """Which of them these are."""
        if not self.incidents.items:
            return "none as old as that"
        return f"{self.skip + 1:,} to {self.skip + len(self.incidents.items):,}, the youngest first"

    @property
    def younger(self) -> int | None:
        return max(self.skip - MAX_INCIDENTS, 0) if self.skip else None

    @property
    def older(self) -> int | None:
        after = self.skip + len(self.incidents.items)
        return after if self.incidents.items and after < self.incidents.cost.incidents else None


def _around(connection: Connection, run: str, view: IncidentView) -> list[EventView]:
    """What happened between onset and alarm, the first ``MAX_EVENTS`` of it, and what names the incident."""
    told = view.incident
    span = Span(
        from_step=told.onset_step,
        to_step=told.step + NEAR,
        since=view.first_told - LEAD,
        attempts=(view.attempt - 1, view.attempt),
    )
    near = queries.events(connection, run, without=ELSEWHERE, span=span, limit=MAX_EVENTS).items
    named = queries.events(connection, run, types=["change"], naming=told.incident, limit=MAX_EVENTS).items
    return [*near, *(event for event in named if event.data.get("incident") == told.incident)]
