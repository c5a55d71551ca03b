"""Faults of the data: damaged items, labels that are not theirs, a loader that is stuck."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trainer.data.items import Item
from trainer.data.radiomaps import RadioMaps
from trainer.drill.faults import Fault, Ground
from trainer.loop import Loop
from trainer.passes import Phase

Damage = Callable[[Item], None]


class DamagedMaps(RadioMaps):
    """The maps as they are, but for what ``damage`` does to items while it is switched on."""

    def __init__(self, maps: RadioMaps, damage: Callable[["DamagedMaps", Item, int], None]) -> None:
        self.__dict__.update(maps.__dict__)
        self.is_on, self._damage = False, damage

    def example(self, index: int, rng: np.random.Generator) -> Item:
        """The item for training, damaged or not."""
        item = super().example(index, rng)
        if self.is_on:
            self._damage(self, item, index)
        return item


@dataclass
class BadItems:
    """F01 to F04, F06: ``times`` batches whose items are damaged: the first of each, or ``all_of_them``."""

    at_step: int
    damage: Damage
    times: int = 1
    struck_at: int | None = field(default=None, init=False)
    _is_spent: bool = field(default=False, init=False)

    def inject(self, ground: Ground) -> None:
        """Train on maps one of which goes bad."""
        maps = DamagedMaps(ground.maps, self._once)

        def switch(loop: Loop) -> None:
            self.struck_at = loop.number if self.struck_at is None else self.struck_at
            maps.is_on, self._is_spent = True, False

        def switch_off(phase: Phase, loop: Loop) -> None:
            if phase is Phase.FORWARD:
                maps.is_on = False

        ground.train([Fault(self.at_step, Phase.FETCH, switch, self.times), switch_off], maps)

    def _once(self, maps: DamagedMaps, item: Item, index: int) -> None:
        if not self._is_spent:
            self._is_spent = True
            self.damage(item)


def nan_in_batch(at_step: int, key: str) -> Fault:
    """R03: one NaN in ``image`` or ``cond`` of a batch, after the worker has looked at it.

    The forward pass writes it into BatchNorm's statistics before anybody can know; the next step looks
    whether they were put back.
    """

    def strike(loop: Loop) -> None:
        loop.batch[key].view(-1)[35] = math.nan

    return Fault(at_step, Phase.FORWARD, strike)


@dataclass
class PoisonedStatistics:
    """R03: as ``nan_in_batch``, and the statistics are looked at in the step after it."""

    at_step: int
    key: str
    struck_at: int | None = field(default=None, init=False)
    broke: list[str] = field(default_factory=list, init=False)

    def inject(self, ground: Ground) -> None:
        """Train with one damaged batch."""
        fault = nan_in_batch(self.at_step, self.key)
        poisoned: list[str] = []

        def look(phase: Phase, loop: Loop) -> None:
            if phase is Phase.UPDATE and fault.struck and not poisoned:
                poisoned.extend(_not_finite(loop))
            if phase is Phase.FETCH and fault.struck:
                self.broke += [f"{name} stays poisoned" for name in _not_finite(loop)][:3]

        ground.train([fault, look])
        self.struck_at = fault.struck_at
        if not poisoned:
            self.broke.append("the forward pass poisoned no statistic, so nothing was proved")


def _not_finite(loop: Loop) -> list[str]:
    return [name for name, buffer in loop.model.named_buffers() if not bool(buffer.isfinite().all())]


def nan_pixel(item: Item) -> None:
    """F01."""
    item["image"][0, 3, 5] = math.nan


def infinite_condition(item: Item) -> None:
    """F02."""
    item["cond"][1, 2, 2] = math.inf


def a_million_times(item: Item) -> None:
    """F03."""
    item["image"].mul_(1e6)


def eight_bits(item: Item) -> None:
    """F03, the quiet kind: 0..255 where -1..1 is meant, and this map is dark."""
    item["image"].add_(1).mul_(127.5).clamp_(max=90)


def constant_condition(item: Item) -> None:
    """R16: a condition that says nothing."""
    item["cond"].fill_(-1)


def constant_image(item: Item) -> None:
    """F04."""
    item["image"].fill_(-1)


@dataclass
class ShuffledConditions:
    """F06: in a stretch of the data each map comes with the condition of another."""

    at_step: int
    items: int
    struck_at: int | None = field(default=None, init=False)
    _left: int = field(default=0, init=False)

    def inject(self, ground: Ground) -> None:
        """Train on maps of which so many in a row have the conditions of others."""
        maps = DamagedMaps(ground.maps, self._swap)
        self._left = self.items

        def begin(loop: Loop) -> None:
            self.struck_at = loop.number
            maps.is_on = True

        ground.train([Fault(self.at_step, Phase.FETCH, begin)], maps)

    def _swap(self, maps: DamagedMaps, item: Item, index: int) -> None:
        if self._left:
            self._left -= 1
            item["cond"] = maps[(index + len(maps) // 2) % len(maps)]["cond"]


@dataclass
class LoaderRepeats:
    """F05, F34: from ``at_step`` on the workers' stream serves each batch ``times`` times.

    F34 is two: what two workers with one seed would do. A loader that is restarted is well again.
    """

    at_step: int
    times: int
    struck_at: int | None = field(default=None, init=False)

    def inject(self, ground: Ground) -> None:
        """Train with the stream replaced; with workers, there is one."""

        def strike(loop: Loop) -> None:
            loader: Any = loop.state.loader
            assert loader._stream is not None, "give the loader a worker"
            self.struck_at = loop.number
            loader._stream = self._repeating(loader._stream)

        ground.train([Fault(self.at_step, Phase.FETCH, strike)])

    def _repeating(self, stream: Iterator[Any]) -> Iterator[Any]:
        for loaded in stream:
            for _ in range(self.times):
                yield loaded
