"""What the page of all runs shows: which runs, how many of each status, and the course of each."""

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from sqlalchemy import Connection, func, select

from monitor_service import tables
from monitor_service.health import RunStatus
from monitor_service.run_list import Sort, list_runs
from monitor_service.views import RunPage
from monitor_service.web import words
from monitor_service.web.compare_page import MOST_RUNS
from monitor_service.web.sparklines import Sparkline, Sparklines

RUNS_ON_A_PAGE = 50


@dataclass(frozen=True)
class Wish:
    """Which runs a reader wants to see, and in which order."""

    statuses: Sequence[RunStatus] = ()
    search: str = ""
    sort: Sort = Sort.NEWEST
    cursor: str | None = None

    @property
    def is_any(self) -> bool:
        """Whether it leaves runs out."""
        return bool(self.statuses or self.search)

    def address(self, *, statuses: Sequence[RunStatus] | None = None, cursor: str | None = None) -> str:
        """The page of this wish with another choice of statuses, or further on."""
        chosen = self.statuses if statuses is None else statuses
        parts: list[tuple[str, str]] = [("status", status) for status in chosen]
        parts += [("search", self.search)] if self.search else []
        parts += [("sort", self.sort)] if self.sort is not Sort.NEWEST else []
        parts += [("cursor", cursor)] if cursor else []
        return f"/?{urlencode(parts)}" if parts else "/"


@dataclass(frozen=True)
class Choice:
    """A status with the number of its runs, and where a click on it leads."""

    status: RunStatus
    sign: words.Sign
    count: int
    is_chosen: bool
    address: str


@dataclass(frozen=True)
class FleetView:
    """Everything that ``fleet.html`` needs."""

    page: RunPage
    wish: Wish
    choices: list[Choice]
    lines: dict[str, Sparkline]

    signs = words.STATUS
    sorts = Sort
    most_compared = MOST_RUNS

    @classmethod
    def read(
        cls, connection: Connection, sparklines: Sparklines, wish: Wish, project: str | None
    ) -> "FleetView":
        """Raises InvalidMessage: the cursor is none of this order."""
        runs = list_runs(
            connection,
            statuses=wish.statuses,
            project=project,
            search=wish.search or None,
            sort=wish.sort,
            limit=RUNS_ON_A_PAGE,
            cursor=wish.cursor,
        )
        choices = _choices(connection, wish, project)
        return cls(runs, wish, choices, sparklines.of(connection, runs.items))

    @property
    def older(self) -> str | None:
        """Where the next page is."""
        cursor = self.page.next_cursor
        return self.wish.address(cursor=cursor) if cursor else None


def _choices(connection: Connection, wish: Wish, project: str | None) -> list[Choice]:
    known = tables.runs.c
    query = select(known.status, func.count()).group_by(known.status)
    if project is not None:
        query = query.where(known.project == project)
    if wish.search:
        query = query.where(known.name.icontains(wish.search, autoescape=True))
    counts = {RunStatus(status): count for status, count in connection.execute(query)}
    return [
        Choice(
            status,
            words.STATUS[status],
            counts.get(status, 0),
            status in wish.statuses,
            _turned(wish, status),
        )
        for status in RunStatus
        if counts.get(status) or status in wish.statuses
    ]


def _turned(wish: Wish, status: RunStatus) -> str:
    """The address with this status chosen, or no longer chosen."""
    others = [one for one in wish.statuses if one is not status]
    return wish.address(statuses=others if status in wish.statuses else [*others, status])
