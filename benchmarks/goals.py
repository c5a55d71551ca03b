"""A table of what was measured beside what was wanted."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Goal:
    """One row. ``at_most`` or ``at_least`` is what was wanted; neither: only told."""

    what: str
    found: float
    unit: str
    at_most: float | None = None
    at_least: float | None = None

    @property
    def times(self) -> float | None:
        """How many times as good as wanted; 1 and more is reached."""
        if self.at_most is not None:
            return self.at_most / self.found if self.found else float("inf")
        return self.found / self.at_least if self.at_least is not None else None

    def line(self) -> str:
        wanted = ""
        if self.at_most is not None:
            wanted = f"at most {self.at_most:,g}"
        elif self.at_least is not None:
            wanted = f"at least {self.at_least:,g}"
        times = "" if self.times is None else f"{self.times:.2f}"
        return f"| {self.what} | {_short(self.found)} | {self.unit} | {wanted} | {times} |"


def _short(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def head() -> None:
    say("| what | found | unit | goal | x as good as the goal |")
    say("|---|---|---|---|---|")


def table(rows: Iterable[Goal]) -> None:
    """The whole table at once."""
    head()
    for row in rows:
        say(row.line())
