"""Random states that come again are told; healthy ones, idle ones and those after a rollback are not."""

import json
from typing import Any

import pytest
import torch

from shared.events import Finding, Severity
from trainer.guards.base import StepView, Watched
from trainer.guards.randomness import Randomness
from trainer.guards.streams import Streams

CPU = torch.device("cpu")


@pytest.fixture
def draw(vitals: Any) -> Any:
    """Steps that each draw some numbers; what the guard says of them."""
    watched = Watched(torch.nn.Linear(1, 1), {})

    def steps(guard: Streams, count: int, *, first: int = 0, numbers: int = 7) -> list[Finding]:
        found = []
        for iteration in range(first, first + count):
            guard.note(Randomness.now(CPU), iteration)
            torch.rand(numbers)
            guard.drawn(Randomness.now(CPU))
            found.append(guard.inspect(StepView(vitals(iteration=iteration), (), watched)))
        return [one for one in found if one is not None]

    return steps


def test_a_long_healthy_stream_is_new_at_each_step(draw: Any) -> None:
    torch.manual_seed(0)
    assert draw(Streams(), 2_000) == []


def test_steps_that_draw_nothing_repeat_nothing(draw: Any) -> None:
    torch.manual_seed(0)
    assert draw(Streams(), 50, numbers=0) == []


def test_a_seed_set_anew_is_told_with_the_batch_that_it_repeats_and_not_at_every_step(draw: Any) -> None:
    guard = Streams()
    torch.manual_seed(3)
    assert draw(guard, 500) == []
    torch.manual_seed(3)
    found = draw(guard, 20, first=500)
    assert [one.reading["count"] for one in found] == [1, 2, 4, 8, 16]
    assert {one.severity for one in found} == {Severity.WARNING}
    assert "batch 500 begins with the random states of batch 0; something seeds them anew" in found[0].message


def test_a_resume_that_forgot_its_random_states_is_told(draw: Any) -> None:
    guard, resumed = Streams(), Streams()
    torch.manual_seed(3)
    draw(guard, 500)
    resumed.load_state_dict(json.loads(json.dumps(guard.state_dict(), allow_nan=False)))
    torch.manual_seed(3)
    assert len(draw(resumed, 1, first=500)) == 1


def test_a_memory_that_goes_back_with_the_states_finds_the_same_steps_new(draw: Any) -> None:
    guard = Streams()
    torch.manual_seed(3)
    draw(guard, 60)
    kept, states = json.dumps(guard.state_dict()), torch.get_rng_state()
    draw(guard, 20, first=60)
    torch.set_rng_state(states)
    guard.load_state_dict(json.loads(kept))
    assert draw(guard, 20, first=60) == []


def test_a_seed_that_is_set_in_every_step_is_told_also_across_a_resume(lab: Any) -> None:
    def seed(phase: Any, loop: Any) -> None:
        if phase == "fetch":
            torch.manual_seed(7)

    seeded = lab.run(steps=20, observers=[seed])
    told = [one for one in seeded.reporter.record.findings if one.guard == "streams"]
    assert [one.reading["count"] for one in told] == [1, 2, 4, 8, 16]
    assert "batch 1 begins with the random states of batch 0" in told[0].message
    resumed = Streams()
    resumed.load_state_dict(json.loads(json.dumps(seeded._streams.state_dict())))
    torch.manual_seed(7)
    resumed.note(Randomness.now(CPU), 20)
    assert resumed.state_dict()["repeats"] == 20


def test_its_memory_does_not_grow(draw: Any) -> None:
    guard = Streams()
    draw(guard, 1_000)
    assert len(json.dumps(guard.state_dict())) < 6_000


def test_a_run_that_samples_under_a_seed_of_its_own_is_told_and_a_rollback_is_not(lab: Any) -> None:
    def sample(phase: Any, loop: Any) -> None:
        if phase == "fetch" and loop.state.step in (10, 20, 30):
            torch.manual_seed(0)

    def spoil(phase: Any, loop: Any) -> None:
        if phase == "fetch" and loop.state.step == 35 and not loop.reporter.record.rollbacks:
            with torch.no_grad():
                loop.model.head.weight.fill_(torch.nan)

    seeded = lab.run(folder="seeded", steps=40, observers=[sample])
    told = [one for one in seeded.reporter.record.findings if one.guard == "streams"]
    assert [one.step for one in told][:1] == [20]
    spoiled = lab.run(folder="spoiled", steps=60, observers=[spoil])
    assert len(spoiled.reporter.record.rollbacks) == 1
    assert [one for one in spoiled.reporter.record.findings if one.guard == "streams"] == []
