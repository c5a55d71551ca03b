"""A resume with other settings than the checkpoint was made with is told, setting by setting."""

from typing import Any

import pytest

from shared.events import Event, Finding
from trainer.objective import OptimizerConfig
from trainer.settings import changes


def test_changed_settings_are_named_with_both_values() -> None:
    before = {"training": {"steps": 10, "optimizer": {"lr": 0.003}}, "data": {"root": "a"}}
    now = {"training": {"steps": 20, "optimizer": {"lr": 0.001}}, "data": {"root": "a"}, "new": 1}
    assert changes(before, now) == [
        "new None -> 1",
        "training.optimizer.lr 0.003 -> 0.001",
        "training.steps 10 -> 20",
    ]
    assert changes(before, before) == []


@pytest.mark.parametrize(("lr", "told"), [(1e-3, []), (5e-4, ["training.optimizer.lr 0.001 -> 0.0005"])])
def test_a_resume_tells_of_a_changed_learning_rate(
    lab: Any, events: list[Event], lr: float, told: list[str]
) -> None:
    with pytest.raises(lab.Killed):
        lab.run(steps=60, observers=[lab.wait_for_disk, lab.kill_at(30)])
    lab.run(steps=60, optimizer=OptimizerConfig(lr=lr))
    findings = [event for event in events if isinstance(event, Finding) and event.guard == "settings"]
    assert [
        finding.message.removeprefix("resumed with other settings than before: ") for finding in findings
    ] == told
