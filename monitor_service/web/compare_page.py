"""What the page of several runs shows: how each is, in what settings they differ, and whose lines to draw."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from monitor_service import comparing, queries
from monitor_service.health import OVER
from monitor_service.views import RunDetail
from monitor_service.web import words
from monitor_service.web.run_page import CHARTS

MOST_RUNS = 8
"""So many lines can be told apart; ``compare.css`` has a colour and a dash for each."""

CELLS = 500


@dataclass(frozen=True)
class ComparePageView:
    """Everything that ``compare.html`` needs."""

    runs: list[RunDetail]

    charts = CHARTS
    signs = words.STATUS

    @classmethod
    def read(cls, connection: Connection, names: Sequence[str]) -> "ComparePageView":
        """Raises NotFound: no such run."""
        return cls([queries.run_detail(connection, name) for name in names])

    @property
    def differences(self) -> dict[str, list[str]]:
        """Settings by dotted name, each with its value in every run."""
        found = comparing.differences({one.run: one.config for one in self.runs})
        return {
            name: [_written(by_run[one.run]) if one.run in by_run else words.DASH for one in self.runs]
            for name, by_run in found.items()
            if name != "run.name"  # heads the columns
        }

    @property
    def has_settings(self) -> bool:
        """Whether any of the runs told its settings."""
        return any(one.config for one in self.runs)

    @property
    def series(self) -> list[tuple[str, str]]:
        """The charts that have something to show."""
        return [(name, label) for name, label in CHARTS if any(name in one.series for one in self.runs)]

    @property
    def story(self) -> dict[str, Any]:
        """What the page's script must know to draw."""
        return {
            "runs": [one.run for one in self.runs],
            "steps": [one.step for one in self.runs],
            "series": [name for name, _ in self.series],
            "cells": CELLS,
            "is_over": all(one.status in OVER for one in self.runs),
        }


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
