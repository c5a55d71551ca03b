"""Numbers of several objectives that come apart are brought together, batch by batch."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trainer.guards.randomness import Randomness
from trainer.taken import Taken
from trainer.under_way import UnderWay


class Meter:
    """Hands out the numbers that the test has put there."""

    def __init__(self) -> None:
        self.there: list[Any] = []

    def arrived(self, wait: bool) -> list[Any]:
        there, self.there = self.there, []
        return there

    def tell(self, *iterations: int) -> None:
        self.there += [SimpleNamespace(iteration=iteration) for iteration in iterations]


def taken(iteration: int) -> Taken:
    return Taken(iteration, (), 0.0, 0.0, {}, Randomness.now(torch.device("cpu")))


@pytest.fixture
def meters() -> list[Any]:
    return [Meter(), Meter()]


@pytest.fixture
def under_way(meters: list[Any]) -> UnderWay:
    steps = UnderWay(meters)
    for iteration in range(3):
        steps.add(taken(iteration))
    return steps


def iterations(steps: UnderWay) -> list[int]:
    return [one.iteration for one in steps.arrived(wait=False)]


def test_a_batch_has_arrived_when_every_objective_has_told(meters: list[Any], under_way: UnderWay) -> None:
    meters[0].tell(0, 1)
    assert iterations(under_way) == []
    meters[1].tell(0)
    assert iterations(under_way) == [0]
    meters[1].tell(1, 2)
    meters[0].tell(2)
    assert iterations(under_way) == [1, 2]
    assert len(under_way) == 0


def test_what_is_forgotten_while_one_is_judged_comes_no_more(meters: list[Any], under_way: UnderWay) -> None:
    for meter in meters:
        meter.tell(0, 1, 2)
    seen = []
    for one in under_way.arrived(wait=False):
        seen.append(one.iteration)
        under_way.forget()
    assert seen == [0]
