"""Each command is carried out once, at a step boundary, by the attempt that it was meant for."""

import errno
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from shared.base import utc_now
from shared.events import CheckpointState, CommandUpdate
from shared.exchange import Reply
from trainer.checkpoint import ring
from trainer.errors import StopRequested


def told(events: list[Any]) -> list[tuple[str, str]]:
    return [(event.command, event.state) for event in events if isinstance(event, CommandUpdate)]


def test_a_stop_saves_and_ends_stopped(lab: Any, events: list[Any], order: Any, deliver: Any) -> None:
    def command(phase: Any, loop: Any) -> None:
        if phase == "report" and loop.state.step == 11:
            deliver(loop, order("stop"))

    with pytest.raises(StopRequested, match="stopped at step 12; the same command goes on from there"):
        lab.run(steps=40, observers=[command])
    assert told(events) == [("c1", "accepted"), ("c1", "succeeded")]
    saved = [event for event in events if getattr(event, "state", None) is CheckpointState.SEALED]
    assert [event.step for event in saved] == [12]
    assert (events[-1].type, events[-1].status) == ("run_ended", "stopped")
    assert "somebody: a test" in events[-1].message
    resumed = lab.run(steps=40, seed=None)
    assert resumed.reporter.record.status == "finished"


def test_a_save_is_a_checkpoint_of_this_boundary(
    lab: Any, events: list[Any], order: Any, deliver: Any
) -> None:
    loop = lab.loop()
    lab.steps(loop, 7)
    deliver(loop, order("save_checkpoint"))
    loop.step()
    loop.recovery.close()
    assert [record.name for record in loop.recovery.ring.records()] == ["step-00000008-attempt-1"]
    assert told(events) == [("c1", "accepted"), ("c1", "succeeded")]


def test_many_orders_to_save_at_one_step_make_one_checkpoint(
    lab: Any, events: list[Any], order: Any, deliver: Any
) -> None:
    loop, saved = lab.loop(), list[int]()
    loop.recovery.save = lambda: saved.append(loop.state.step)
    deliver(loop, *(order("save_checkpoint", f"c{number}") for number in range(5)))
    loop.step()
    assert saved == [1]
    assert [state for _, state in told(events)].count("succeeded") == 5


def test_a_command_that_comes_twice_is_carried_out_once(
    lab: Any, events: list[Any], order: Any, deliver: Any
) -> None:
    loop = lab.loop()
    lab.steps(loop, 30)
    command = order("roll_back")
    for _ in range(3):
        deliver(loop, command, command)
        loop.step()
    assert len(loop.reporter.record.rollbacks) == 1
    assert told(events) == [("c1", "accepted"), ("c1", "succeeded")]


def test_a_command_that_comes_again_after_a_restart_is_answered_again_and_not_carried_out(
    lab: Any, events: list[Any], order: Any, deliver: Any
) -> None:
    first = lab.loop()
    lab.steps(first, 5)
    command = order("save_checkpoint")
    deliver(first, command)
    first.step()
    first.recovery.close()
    second = lab.loop(seed=None)
    events.clear()
    second.recovery.save = lambda: pytest.fail("it was carried out twice")
    again = command.model_copy(update={"attempt": second.reporter.record.attempt})
    for _ in range(2):
        deliver(second, again)
        second.step()
    assert second.state.step == 8
    assert told(events) == [("c1", "succeeded")]


def test_what_a_killed_process_had_begun_has_failed_and_is_not_begun_again(
    lab: Any, events: list[Any], order: Any, deliver: Any
) -> None:
    class Killed(BaseException):
        pass

    def die(*_: Any, **__: Any) -> None:
        raise Killed

    first = lab.loop()
    lab.steps(first, 30)
    first.go_back, command = die, order("roll_back")
    deliver(first, command)
    with pytest.raises(Killed):
        first.step()
    first.recovery.close()
    second = lab.loop(seed=None)
    events.clear()
    deliver(second, command.model_copy(update={"attempt": second.reporter.record.attempt}))
    second.step()
    assert told(events) == [("c1", "failed")]
    assert "ended before it was done" in next(e.message for e in events if isinstance(e, CommandUpdate))
    assert second.reporter.record.rollbacks == []


def test_a_command_that_is_withdrawn_while_it_waits_is_never_carried_out(
    lab: Any, events: list[Any], order: Any, deliver: Any
) -> None:
    loop = lab.loop()
    lab.steps(loop, 12)
    deliver(loop, order("roll_back"), withdrawn=["c1", "c2"])
    loop.step()
    deliver(loop, order("roll_back"), order("roll_back", "c2"))  # replies that come late, or again
    loop.step()
    assert told(events) == [("c1", "cancelled"), ("c2", "cancelled")]
    assert loop.state.step == 14
    assert loop.reporter.record.rollbacks == []


def test_a_withdrawal_that_comes_too_late_changes_nothing(
    lab: Any, events: list[Any], order: Any, deliver: Any
) -> None:
    loop = lab.loop()
    lab.steps(loop, 12)
    deliver(loop, order("save_checkpoint"))
    loop.step()
    deliver(loop, withdrawn=["c1"])
    loop.step()
    assert told(events) == [("c1", "accepted"), ("c1", "succeeded")]


def test_a_command_is_on_record_before_it_is_obeyed(lab: Any, order: Any, deliver: Any) -> None:
    """Killed on the way, it must not be carried out again by the next process."""
    loop = lab.loop()
    loop.step()
    seen: list[bool] = []

    def save() -> None:
        seen.append('"c1"' in (lab.root / "run/record.json").read_text())

    loop.recovery.save = save
    deliver(loop, order("save_checkpoint"))
    loop.step()
    assert seen == [True]


@pytest.mark.parametrize("attempt", [1, 3])
def test_a_command_for_another_attempt_is_refused(
    lab: Any, everything: Any, differences: Any, events: list[Any], order: Any, deliver: Any, attempt: int
) -> None:
    loop = lab.loop()
    lab.steps(loop, 27)
    loop.go_back("no reason", "guard")
    before = everything(loop)
    deliver(loop, order("roll_back", attempt=attempt))
    loop.orders.carry_out(loop, loop.reporter.link.commands())
    assert differences(before, everything(loop)) == []
    assert told(events) == [("c1", "refused")]
    message = f"it was meant for attempt {attempt}, the run is at attempt 2"
    assert events[-1].message == message


def test_commands_are_carried_out_in_their_order(
    lab: Any, events: list[Any], order: Any, deliver: Any
) -> None:
    loop = lab.loop()
    lab.steps(loop, 30)
    deliver(loop, order("roll_back", "c1"), order("save_checkpoint", "c2"), order("stop", "c3", attempt=2))
    loop.step()
    assert told(events) == [
        *(("c1", "accepted"), ("c1", "succeeded")),
        ("c2", "refused"),
        *(("c3", "accepted"), ("c3", "succeeded")),
    ]


@pytest.mark.usefixtures("late_numbers")
def test_a_command_waits_until_everything_before_it_has_been_judged(
    lab: Any, order: Any, deliver: Any
) -> None:
    loop = lab.loop()
    lab.steps(loop, 3)
    ahead = int(loop.objectives[0].meter.applied)
    assert ahead > loop.state.step
    deliver(loop, order("save_checkpoint"))
    loop.step()
    assert loop.state.step == ahead + 1
    loop.recovery.close()
    assert loop.recovery.ring.steps() == (ahead + 1,)


def test_a_trainer_whose_clock_is_wrong_obeys_a_fresh_command(
    lab: Any, events: list[Any], order: Any
) -> None:
    """The monitor's clock decides when a command lapses; here it is a day behind the trainer's."""
    loop = lab.loop()
    there = utc_now() - timedelta(days=1)
    command = order("save_checkpoint", issued_at=there, expires_at=there + timedelta(minutes=5))
    reply = Reply(seq=1, commands=[command], server_time=there)
    loop.reporter.link._inbox.accept(reply.model_dump_json().encode(), seq=1)
    loop.step()
    assert told(events) == [("c1", "accepted"), ("c1", "succeeded")]


def test_a_command_whose_time_is_over_is_not_carried_out(lab: Any, events: list[Any], order: Any) -> None:
    loop = lab.loop()
    reply = Reply(seq=1, commands=[order("stop")], server_time=utc_now() + timedelta(minutes=2))
    loop.reporter.link._inbox.accept(reply.model_dump_json().encode(), seq=1)
    loop.step()
    assert told(events) == []


def test_an_order_that_the_system_does_not_let_be_obeyed_fails_and_the_run_goes_on(
    lab: Any,
    everything: Any,
    differences: Any,
    events: list[Any],
    order: Any,
    deliver: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(folder: Path) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    loop = lab.loop()
    lab.steps(loop, 30)
    before = everything(loop)
    monkeypatch.setattr(ring, "read", refuse)
    deliver(loop, order("roll_back"))
    loop.orders.carry_out(loop, loop.reporter.link.commands())
    assert differences(before, everything(loop)) == []
    (failed,) = [event for event in events if getattr(event, "state", None) == "failed"]
    assert "Too many open files" in failed.message


def test_a_corrupt_state_is_not_saved_on_request(
    lab: Any, events: list[Any], order: Any, deliver: Any
) -> None:
    loop = lab.loop()
    lab.steps(loop, 17)
    with torch.no_grad():
        loop.model.head.weight.mul_(1000)
    deliver(loop, order("save_checkpoint"))
    loop.orders.carry_out(loop, loop.reporter.link.commands())
    assert told(events) == [("c1", "accepted"), ("c1", "failed")]
    assert loop.state.step == 10
    loop.recovery.close()
    assert loop.recovery.ring.steps() == ()
