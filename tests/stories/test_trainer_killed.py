"""The trainer is killed, or asked to end: the same command goes on, to the same bits."""

import json
import random
import signal
import time
from typing import Any

import pytest

pytestmark = pytest.mark.slow

STEPS = 60


def test_a_trainer_killed_twice_ends_bit_for_bit_as_one_that_was_not(
    house: Any, undisturbed: Any, until: Any
) -> None:
    chance = random.Random(7)
    monitor = house.monitor()
    for lowest, highest in ((1, 3), (4, 5)):
        trainer, step = house.trainer(monitor.url), 10 * chance.randint(lowest, highest)
        until(lambda step=step: house.has_checkpoint(step), f"step {step} is on disk")
        time.sleep(chance.uniform(0, 0.3))
        assert trainer.end(signal.SIGKILL) == -signal.SIGKILL
    trainer = house.trainer(monitor.url)
    assert trainer.end() == 0, trainer.log
    assert f"run radio-7: going on from step-{step:08d}" in trainer.log
    assert undisturbed.differences(house) == []
    assert monitor.curves() == undisturbed.curves
    started = [(event["attempt"], event["reason"]) for event in monitor.events(type="attempt_started")]
    assert started == [(1, "start"), (2, "resume"), (3, "resume")]
    assert monitor.tell("/health")["status"] == "finished"


def test_a_trainer_killed_right_after_a_checkpoint_has_told_of_every_step_in_it(
    house: Any, undisturbed: Any, until: Any
) -> None:
    monitor = house.monitor()
    trainer = house.trainer(monitor.url, flush_s=5.0)  # steps of two checkpoints fit between two batches
    until(lambda: house.has_checkpoint(30), "step 30 is on disk")
    trainer.end(signal.SIGKILL)
    trainer = house.trainer(monitor.url, flush_s=5.0)
    assert trainer.end() == 0, trainer.log
    assert "run radio-7: going on from step-00000030-attempt-1" in trainer.log
    assert monitor.curves() == undisturbed.curves


def test_a_trainer_asked_to_end_leaves_a_checkpoint_and_the_same_command_finishes(
    house: Any, undisturbed: Any, until: Any
) -> None:
    monitor = house.monitor()
    trainer = house.trainer(monitor.url)
    until(lambda: trainer.has_sealed(20), "step 20 is on disk")
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
    # it scans what it keeps, and what it keeps after the stop is counted from there
    assert set(undisturbed.differences(house)) <= {"diffusion: guards/nonfinite"}
    assert monitor.curves() == undisturbed.curves
    assert monitor.tell("/health")["status"] == "finished"
