"""The course of a curve as a whole: was anything gained, and has it been lost again?"""

import math
from collections import deque
from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any, NamedTuple

from pydantic import Field

from trainer.section import Section

_FIRST = 5  # rows whose median is where the run began
_RECENT = 16  # rows whose median is where it is
_NOISE = 100  # rows
_BLOCKS = 128
_LEAST_LOSS = 0.4  # log units: the loss is half as high again


class CourseConfig(Section):
    lost_share: float = Field(0.5, gt=0, description="Divergence: share of what was gained that is lost.")
    flat_below: float = Field(0.002, gt=0, description="Plateau: relative change over 3/4 of the run.")
    flat_noise: float = Field(0.01, gt=0, description="Plateau: a noisier curve says nothing about one.")


class Sight(NamedTuple):
    """What was seen: its kind, in words, and the numbers behind it."""

    kind: str
    words: str
    numbers: dict[str, float]


def scatter(values: Iterable[float]) -> float:
    """Robust standard deviation around 0: 1.4826 x the median of the absolute values."""
    return 1.4826 * median(abs(value) for value in values)


class Course:
    """Divergence and plateau of a curve of logarithms, from at most 128 blocks of rows."""

    def __init__(self, config: CourseConfig) -> None:
        self._config = config
        self._first: list[float] = []
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._steps: deque[float] = deque(maxlen=_NOISE)  # from row to row: noise, whatever the trend
        self._blocks: list[float] = []
        self._block: list[float] = []
        self._size, self._rows, self._best = 1, 0, math.inf
        self._told: list[str] = []

    def take(self, value: float) -> Sight | None:
        if self._recent:
            self._steps.append(value - self._recent[-1])
        self._recent.append(value)
        self._rows += 1
        if len(self._first) < _FIRST:
            self._first.append(value)
        self._block.append(value)
        if len(self._block) == self._size:
            self._blocks.append(sum(self._block) / self._size)
            self._block = []
        if len(self._blocks) == _BLOCKS:
            self._blocks = [(a + b) / 2 for a, b in zip(*[iter(self._blocks)] * 2, strict=True)]
            self._size *= 2
        return self._divergence() or self._plateau()

    def state_dict(self) -> dict[str, Any]:
        return {
            "first": list(self._first),
            "recent": list(self._recent),
            "steps": list(self._steps),
            "blocks": list(self._blocks),
            "block": list(self._block),
            "size": self._size,
            "rows": self._rows,
            "best": self._best if math.isfinite(self._best) else None,
            "told": list(self._told),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._first, self._recent = list(state["first"]), deque(state["recent"], maxlen=_RECENT)
        self._steps = deque(state["steps"], maxlen=_NOISE)
        self._blocks, self._block = list(state["blocks"]), list(state["block"])
        self._size, self._rows, self._told = state["size"], state["rows"], list(state["told"])
        self._best = math.inf if state["best"] is None else state["best"]

    def _divergence(self) -> Sight | None:
        if len(self._recent) < _RECENT:
            return None
        now, start = median(self._recent), median(self._first)
        if now < self._best:
            self._best = now
            self._told = [kind for kind in self._told if kind != "divergence"]
        gained, lost = start - self._best, now - self._best
        needed = max(_LEAST_LOSS, self._config.lost_share * gained)
        is_sure = gained > 0.5 * _LEAST_LOSS and min(self._recent) > self._best + 0.5 * lost
        if lost <= needed or not is_sure or "divergence" in self._told:
            return None
        self._told.append("divergence")
        words = f"rises from {math.exp(self._best):.4g}: it has lost {100 * lost / gained:.0f} % of its gain"
        return Sight("divergence", words, {"lost": lost, "gained": gained})

    def _plateau(self) -> Sight | None:
        """Nothing learned over the last three quarters, though the curve is smooth enough to show it."""
        if self._rows < 50 or self._rows % 5 or "plateau" in self._told:
            return None
        noise, flat_noise = scatter(self._steps) / math.sqrt(2), self._config.flat_noise
        if noise > flat_noise or self._rows < 50 + 1000 * noise / flat_noise:
            return None
        rest = self._blocks[len(self._blocks) // 4 :]
        sixth = len(rest) // 6
        levels = [median(rest[place * sixth : (place + 1) * sixth]) for place in range(6)]
        change = max(levels) - min(levels)
        if change > self._config.flat_below or median(self._first) - levels[-1] > 3:
            return None
        self._told.append("plateau")
        words = f"stands still: over the last three quarters of the run it changed by {100 * change:.2g} %"
        return Sight("plateau", words, {"change": change, "noise": noise})
