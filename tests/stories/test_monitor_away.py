"""The monitor dies, hangs, or never comes: training goes on as if it were there, and all arrives."""

import json
import signal
import socket
from collections import Counter
from typing import Any

import pytest

pytestmark = pytest.mark.slow

STEPS = 60


def assert_all_is_there_once(monitor: Any, trainer: Any, undisturbed: Any) -> None:
    """Curves as of the undisturbed training, bit for bit; each event that the trainer told of, once."""
    assert monitor.curves() == undisturbed.curves
    assert [step for step, _ in monitor.curves()["loss"]] == list(range(STEPS))
    events = monitor.events()
    assert max(Counter(map(json.dumps, events)).values()) == 1
    told = [(event["checkpoint"], event["state"]) for event in events if event["type"] == "checkpoint"]
    assert told == trainer.checkpoint_changes()
    drawn = [event for event in events if event["type"] == "picture"]
    assert len(drawn) == sum(event["type"] == "picture" for event in undisturbed.events)
    others = [event["type"] for event in events if event["type"] not in ("checkpoint", "picture")]
    assert others == ["attempt_started", "run_ended"]
    assert monitor.tell("/health")["status"] == "finished"
    assert monitor.tell(run="radio-7-first-stage")["status"] == "finished"


def test_a_monitor_killed_and_started_again_lacks_nothing_and_has_nothing_twice(
    house: Any, undisturbed: Any, until: Any
) -> None:
    monitor = house.monitor()
    trainer = house.trainer(monitor.url)
    until(lambda: monitor.step() >= 15, "the monitor knows of step 15")
    monitor.end(signal.SIGKILL)
    until(lambda: trainer.has_sealed(30), "step 30 is reached without a monitor")
    monitor = house.monitor(monitor.port)
    assert trainer.end() == 0, trainer.log
    assert_all_is_there_once(monitor, trainer, undisturbed)
    assert undisturbed.differences(house) == []


def test_a_monitor_that_hangs_delays_no_step_and_catches_up_when_it_wakes(
    house: Any, undisturbed: Any, until: Any
) -> None:
    monitor = house.monitor()
    trainer = house.trainer(monitor.url)
    until(lambda: monitor.step() >= 15, "the monitor knows of step 15")
    monitor.send(signal.SIGSTOP)
    until(lambda: trainer.has_sealed(40), "training goes on before a monitor that hangs")
    assert trainer.is_running
    monitor.send(signal.SIGCONT)
    assert trainer.end() == 0, trainer.log
    assert_all_is_there_once(monitor, trainer, undisturbed)
    assert undisturbed.differences(house) == []


def test_without_a_monitor_training_is_the_same_and_the_spool_is_delivered_later(
    house: Any, undisturbed: Any
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # taken, and refusing every connection
        trainer = house.trainer(f"http://127.0.0.1:{nobody.getsockname()[1]}")
        assert trainer.end() == 0, trainer.log
    assert undisturbed.differences(house) == []
    summary = json.loads((house.run_folder / "summary.json").read_text())
    for name in ("status", "steps", "final_loss", "nmse"):
        assert summary[name] == undisturbed.summary[name]
    assert "did not reach the monitor; they wait in" in trainer.log
    monitor = house.monitor()
    for spool in ("spool", "first-stage/spool"):
        delivery = house.program("trainer", "deliver", str(house.run_folder / spool), "--url", monitor.url)
        assert delivery.end() == 0, delivery.log
        assert delivery.words == "0 batches still wait\n"
    assert_all_is_there_once(monitor, trainer, undisturbed)
