"""The trainer is killed, or asked to end: the same command goes on, to the same bits."""

import json
import random
import signal
import time
from typing import Any

import pytest

pytestmark = pytest.mark.slow

STEPS = 80


@pytest.mark.parametrize("seed", [7, 23])
def test_a_trainer_killed_twice_ends_bit_for_bit_as_one_that_was_not(
    seed: int, house: Any, undisturbed: Any, until: Any
) -> None:
    chance = random.Random(seed)
    monitor = house.monitor()
    for lowest, highest in ((10, 40), (50, 70)):
        trainer, step = house.trainer(monitor.url), chance.randint(lowest, highest)
        until(lambda trainer=trainer, step=step: trainer.has_sealed(step), f"step {step} is on disk")
        time.sleep(chance.uniform(0, 0.3))
        assert trainer.end(signal.SIGKILL) == -signal.SIGKILL
    trainer = house.trainer(monitor.url)
    assert trainer.end() == 0, trainer.log
    assert "going on from step-" in trainer.log
    assert undisturbed.differences(house) == []
    assert monitor.curves() == undisturbed.curves
    started = [(event["attempt"], event["reason"]) for event in monitor.events(type="attempt_started")]
    assert started == [(1, "start"), (2, "resume"), (3, "resume")]
    assert monitor.tell("/health")["status"] == "finished"


def test_a_trainer_asked_to_end_leaves_a_checkpoint_and_the_same_command_finishes(
    house: Any, undisturbed: Any, until: Any
) -> None:
    monitor = house.monitor()
    trainer = house.trainer(monitor.url)
    until(lambda: trainer.has_sealed(30), "step 30 is on disk")
    assert trainer.end(signal.SIGTERM) == 0, trainer.log
    health = monitor.tell("/health")
    assert health["status"] == "stopped"
    assert "SIGTERM received" in health["reasons"][0]
    stopped_at = monitor.events(type="run_ended")[-1]["step"]
    assert house.last_checkpoint().facts["step"] == stopped_at
    assert not (house.run_folder / "summary.json").exists()

    trainer = house.trainer(monitor.url)
    assert trainer.end() == 0, trainer.log
    again = monitor.events(type="attempt_started")[-1]
    assert (again["reason"], again["step"]) == ("resume", stopped_at)
    assert json.loads((house.run_folder / "summary.json").read_text())["steps"] == STEPS
    # it scans what it keeps, and after the stop the checkpoints are ten steps from there: 44, 54, 64 …
    assert set(undisturbed.differences(house)) <= {"diffusion: guards/nonfinite"}
    assert monitor.curves() == undisturbed.curves
    assert monitor.tell("/health")["status"] == "finished"
