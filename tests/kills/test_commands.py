"""A command is carried out exactly once or never, and both sides say the same, whoever is killed when.

The trainer ends itself by SIGKILL at each moment between the receipt of a command and the report on it; the
monitor is killed as well, so that replies are lost and come again. Then both live on.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.kills.lived import Api, Lives

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ENDS = ("succeeded", "failed", "refused", "expired", "cancelled")
MOMENTS = {
    "never": ("succeeded", 1),
    "received": ("refused", 0),  # the next life is another attempt
    "before accepted": ("refused", 0),
    "after accepted": ("failed", 0),
    "before it is done": ("failed", 0),
    "while it is done": ("failed", 1),
    "before succeeded": ("failed", 1),
    "after succeeded": ("succeeded", 1),
    "once it is told": ("succeeded", 1),
}
"""When the trainer is killed; what both sides say then, and how often it was done."""


def order(api: Api, **more: Any) -> str:
    wish = {"kind": "roll_back", "reason": "a test", **more}
    command: str = api.insist("POST", "/runs/kills/commands", wish)["id"]
    return command


def outcome(api: Api, folder: Path, command: str) -> tuple[str, str, int]:
    """The last word on it at the monitor, once there is one; that of the trainer's record; and the deeds."""
    deadline = time.monotonic() + 60
    while True:
        state = api.insist("GET", f"/runs/kills/commands/{command}")["state"]
        told = json.loads((folder / "record.json").read_text())["commands_told"].get(command, {})
        if state in ENDS and told.get("state") in (
            state,
            None,
        ):
            break
        assert time.monotonic() < deadline, (state, told)
        time.sleep(0.05)
    done = (folder / "done").read_text() if (folder / "done").exists() else ""
    return state, told.get("state", "nothing"), done.split().count(command)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_command_is_carried_out_exactly_once_or_never_and_both_sides_say_the_same(
    lives: Callable[..., Lives], port: int, api: Api, tmp_path: Path, moment: str
) -> None:
    monitor = lives("monitor", str(port), f"sqlite:///{tmp_path}/monitor.db")
    trainer = lives("obedient", f"http://127.0.0.1:{port}", str(tmp_path))
    monitor.start()
    api.insist("GET", "/runs")
    trainer.start(moment)
    wait_for_attempt(api, 1)
    command = order(api)
    if moment != "never":
        trainer.wait()
    monitor.kill()
    monitor.start()
    if moment != "never":
        killed = json.loads((tmp_path / "record.json").read_text())["attempt"]
        trainer.start()
        wait_for_attempt(api, killed + 1)  # an order given before is one to the attempt that was killed
    state, times = MOMENTS[moment]
    assert outcome(api, tmp_path, command) == (state, state, times)
    again = order(api)  # the way is free, and what was done is not done again
    assert outcome(api, tmp_path, again) == ("succeeded", "succeeded", 1)
    assert outcome(api, tmp_path, command) == (state, state, times)


def test_a_command_that_lapses_while_the_trainer_is_away_is_never_carried_out(
    lives: Callable[..., Lives], port: int, api: Api, tmp_path: Path
) -> None:
    monitor = lives("monitor", str(port), f"sqlite:///{tmp_path}/monitor.db")
    trainer = lives("obedient", f"http://127.0.0.1:{port}", str(tmp_path))
    monitor.start()
    api.insist("GET", "/runs")
    trainer.start()
    wait_for_attempt(api, 1)
    trainer.kill()
    command = order(api, valid_for_s=0.5)
    time.sleep(0.6)
    trainer.start()
    wait_for_attempt(api, 2)
    assert outcome(api, tmp_path, command) == ("expired", "nothing", 0)


def wait_for_attempt(api: Api, attempt: int) -> None:
    deadline = time.monotonic() + 60
    while (found := api.ask("GET", "/runs/kills")) is None or found[1].get("attempt", 0) < attempt:
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
