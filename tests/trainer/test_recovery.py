"""The way back is kept open, proved before it is believed, and a refusal leaves everything where it was."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from shared.events import AttemptStarted, CheckpointChanged, CheckpointState, CommandUpdate, Finding, Rollback
from trainer.checkpoint import CheckpointRing, NoValidCheckpoint, State, read, write
from trainer.drill.faults import nan_gradient, nan_weight
from trainer.errors import ConfigError, ResumeRefused, RunStopped, TrainerError


def make_over(folder: Path, *, without: str = "", **tensors: float) -> None:
    """Write a checkpoint anew with these model tensors filled: every hash and every shape is right.

    Of the parameter ``without`` it holds no moments, as of one that was frozen until then.
    """
    stored = read(folder)
    status = (folder / "status.json").read_bytes()
    for name, value in tensors.items():
        stored.parts["model"][name].fill_(value)
    if without:
        stored.facts["with_moments"]["denoiser"] -= 1
        for name in [name for name in stored.parts["optimizer"] if f"/{without}/" in name]:
            del stored.parts["optimizer"][name]
    shutil.rmtree(folder)
    step, attempt = stored.manifest.step, stored.manifest.attempt
    write(
        folder, stored.parts, stored.facts, step=step, attempt=attempt, probe_loss=stored.manifest.probe_loss
    )
    (folder / "status.json").write_bytes(status)


def checkpoint(loop: Any, step: int, attempt: int = 1) -> Path:
    return Path(loop.recovery.ring.root / f"step-{step:08d}-attempt-{attempt}")


def usable(loop: Any) -> list[int]:
    return sorted(loop.recovery.ring.steps())


class FullDisk:
    """While ``is_full``, nothing gets to the disk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_full = False
        self._fsync = os.fsync
        monkeypatch.setattr(os, "fsync", self)

    def __call__(self, descriptor: int) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._fsync(descriptor)


def test_checkpoints_come_on_schedule_and_become_good(lab: Any) -> None:
    loop = lab.run(steps=60, observers=[lab.wait_for_disk])
    states = {record.step: record.state for record in loop.recovery.ring.records()}
    assert states == {25: State.GOOD, 50: State.GOOD, 60: State.SEALED}


def test_a_refused_step_puts_off_what_would_become_good(lab: Any) -> None:
    loop = lab.run(steps=38, observers=[lab.wait_for_disk, nan_gradient(30)])
    states = {record.step: record.state for record in loop.recovery.ring.records()}
    assert states[25] is State.SEALED, "ten healthy steps after the refusal at 30 are not over"


def test_a_state_that_is_not_the_one_saved_is_refused_with_the_number(lab: Any, events: list[Any]) -> None:
    first = lab.run(steps=60)
    make_over(checkpoint(first, 60), scale_factor=1.0)
    events.clear()
    resumed = lab.run(steps=60, seed=None)
    started = next(event for event in events if isinstance(event, AttemptStarted))
    assert (started.step, started.checkpoint) == (50, "step-00000050-attempt-1")
    (bad,) = [event for event in events if getattr(event, "state", None) is CheckpointState.BAD]
    saved = read(checkpoint(first, 50)).manifest.probe_loss
    assert bad.checkpoint == "step-00000060-attempt-1"
    assert "accept: probe loss (live weights) is " in bad.failed_check
    assert "when saved" in bad.failed_check
    assert saved is not None
    assert float(resumed.model.scale_factor) == pytest.approx(0.9)


@pytest.mark.parametrize("refused_by", ["the probe", "another rank"])
def test_a_refused_checkpoint_takes_no_moments_away_from_the_older_one(
    lab: Any, monkeypatch: pytest.MonkeyPatch, refused_by: str
) -> None:
    """It was taken over to be proved, and had none for a layer; the older one has some for it."""
    first = lab.run(steps=60)
    if refused_by == "the probe":
        make_over(checkpoint(first, 60), without="head.weight", scale_factor=1.0)
    else:
        make_over(checkpoint(first, 60), without="head.weight")
        load = CheckpointRing.load_newest

        def with_another(ring: Any, *, accept: Any, **asked: Any) -> Any:
            def both(stored: Any) -> str | None:
                return accept(stored) or ("rank 1: no" if stored.manifest.step == 60 else None)

            return load(ring, accept=both, **asked)

        monkeypatch.setattr(CheckpointRing, "load_newest", with_another)
    resumed = lab.loop(steps=60, seed=None)
    assert resumed.state.step == 50
    saved, live = read(checkpoint(first, 50)).parts["optimizer"], resumed.state.parts()["optimizer"]
    assert "denoiser/head.weight/exp_avg" in saved
    assert saved.keys() == live.keys()
    assert all(torch.equal(saved[name], live[name]) for name in saved)


def test_a_run_without_one_checkpoint_to_trust_does_not_start_anew(lab: Any, events: list[Any]) -> None:
    first = lab.run(steps=30)
    for step in (25, 30):
        make_over(checkpoint(first, step), scale_factor=1.0)
    with pytest.raises(ResumeRefused, match=r"step-00000030.*probe loss.*step-00000025.*probe loss"):
        lab.run(steps=30, seed=None)
    assert (events[-1].type, events[-1].status) == ("run_ended", "failed")
    assert usable(first) == [25, 30], "none is called bad: the program may be at fault"


def test_a_run_on_other_data_is_refused_with_both_names(lab: Any) -> None:
    lab.run(steps=26)
    with pytest.raises(ResumeRefused, match="data set pictures-36-0, this run has pictures-36-9"):
        lab.run(steps=26, source=lab.Pictures(seed=9))


def test_a_full_disk_is_a_finding_and_the_save_is_tried_again(
    lab: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disk = FullDisk(monkeypatch)

    def fill(phase: Any, loop: Any) -> None:
        failed = any(finding.guard == "checkpoint" for finding in loop.reporter.record.findings)
        disk.is_full = loop.state.step >= 20 and not failed

    loop = lab.run(steps=60, observers=[fill, lab.wait_for_disk])
    assert loop.reporter.record.status == "finished"
    (finding,) = loop.reporter.record.findings
    assert "No space left on device (ENOSPC)" in finding.message
    assert 25 not in usable(loop)
    assert [step for step in usable(loop) if step < 60], "tried again before the end"
    assert not list((lab.root / "run/checkpoints").glob(".*")), "nothing half written"


def test_a_full_disk_keeps_no_event_from_the_monitor(
    lab: Any, monkeypatch: pytest.MonkeyPatch, events: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    disk = FullDisk(monkeypatch)
    loop = lab.loop(observers=[nan_gradient(4)])
    disk.is_full = True
    lab.steps(loop, 8)
    disk.is_full = False
    told = ["attempt_started", "finding", "step_skipped"]
    assert [event.type for event in events][:3] == told
    assert "cannot write its record: [Errno 28] No space left on device" in caplog.text


def test_a_last_save_that_failed_on_the_way_is_made_at_the_end(
    lab: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disk = FullDisk(monkeypatch)
    loop = lab.loop(steps=25, observers=[lambda phase, loop: setattr(disk, "is_full", loop.state.step >= 24)])
    lab.steps(loop, 25)
    loop.recovery._writer.drain()
    disk.is_full = False
    loop.recovery.keep_last()
    loop.recovery.close()
    assert usable(loop) == [25]


def test_an_ordered_rollback_goes_to_the_newest_good_checkpoint(
    lab: Any, everything: Any, differences: Any, events: list[Any], order: Any, deliver: Any
) -> None:
    loop = lab.loop(steps=50)
    lab.steps(loop, 40)
    deliver(loop, order("roll_back"))
    loop.step()
    (rollback,) = [event for event in events if isinstance(event, Rollback)]
    assert (rollback.from_step, rollback.to_step, rollback.source) == (41, 25, "checkpoint")
    assert (rollback.trigger, rollback.command) == ("command", "c1")
    assert rollback.checkpoint == "step-00000025-attempt-1"
    started = events[events.index(rollback) + 1]
    assert (started.type, started.attempt, started.step) == ("attempt_started", 2, 25)
    assert [event.state for event in events if isinstance(event, CommandUpdate)] == ["accepted", "succeeded"]
    lab.steps(loop, 50)
    twin = lab.run("twin", steps=50)
    compared = [everything(loop), everything(twin)]
    for state in compared:
        del state["facts"]["guards"]  # they remember when they looked last
    assert differences(*compared) == []


def test_an_ordered_rollback_goes_no_further_than_asked(lab: Any, order: Any, deliver: Any) -> None:
    loop = lab.loop(steps=70)
    lab.steps(loop, 64)
    deliver(loop, order("roll_back", to_step=49))
    loop.step()
    assert loop.state.step == 25


def test_an_ordered_rollback_with_nothing_to_go_back_to_changes_nothing(
    lab: Any, everything: Any, differences: Any, events: list[Any], order: Any, deliver: Any
) -> None:
    loop = lab.loop()
    lab.steps(loop, 7)
    before = everything(loop)
    deliver(loop, order("roll_back"))
    loop.orders.carry_out(loop, loop.reporter.link.commands())
    assert differences(before, everything(loop)) == []
    told = [event for event in events if isinstance(event, CommandUpdate)]
    assert [event.state for event in told] == ["accepted", "failed"]
    assert "no valid checkpoint" in told[-1].message
    assert loop.reporter.record.attempt == 1


@pytest.mark.parametrize("without", ["", "head.weight"], ids=["", "without some moments"])
def test_an_ordered_rollback_to_a_checkpoint_that_lies_puts_everything_back(
    lab: Any, everything: Any, differences: Any, order: Any, deliver: Any, without: str
) -> None:
    loop = lab.loop(observers=[nan_weight(38)])
    lab.steps(loop, 36)
    loop.recovery._writer.drain()
    make_over(checkpoint(loop, 25), without=without, scale_factor=1.0)
    before = everything(loop)
    deliver(loop, order("roll_back"))
    loop.orders.carry_out(loop, loop.reporter.link.commands())
    assert differences(before, everything(loop)) == [], "its tensors had been taken over to look at them"
    while not loop.reporter.record.rollbacks:
        loop.step()
    assert loop.state.step < 38, "and guards go on comparing with the state as it is"


def test_a_rollback_that_abandons_every_checkpoint_makes_another_at_once(lab: Any) -> None:
    loop = lab.loop()
    lab.steps(loop, 26)
    loop.go_back("no reason", "guard")
    loop.go_back("no reason", "guard")
    assert (loop.state.step, usable(loop)) == (20, [])
    assert loop.recovery._snapshots.steps() == (20,), "that of step 25 is of the abandoned stretch"
    loop.step()
    loop.recovery._writer.drain()
    assert usable(loop) == [21]


def test_a_guards_rollback_without_a_way_back_ends_the_run(lab: Any) -> None:
    loop = lab.loop()
    loop.step()
    loop.go_back("no reason", "guard")
    assert loop.state.step == 0
    with pytest.raises(Exception, match="no snapshot or checkpoint from before it"):
        loop.go_back("no reason", "guard")


def test_attempts_are_numbered_on_where_the_record_was_lost(lab: Any, events: list[Any]) -> None:
    lab.run(steps=26)
    (lab.root / "run/record.json").unlink()
    events.clear()
    lab.run(steps=28, seed=None)
    assert next(event for event in events if isinstance(event, AttemptStarted)).attempt == 2


def test_a_record_that_is_none_is_refused_with_its_path(lab: Any) -> None:
    lab.run(steps=2)
    (lab.root / "run/record.json").write_text('{"attempt": "many"}')
    with pytest.raises(ConfigError, match=r"run/record.json is not readable.*attempt.*move it elsewhere"):
        lab.run(steps=2)


def test_what_was_handed_over_is_finished_and_told_also_when_a_run_breaks(
    lab: Any, events: list[Any]
) -> None:
    def fail(phase: Any, loop: Any) -> None:
        if phase == "backward" and loop.state.step == 25:
            raise torch.OutOfMemoryError("a test")

    with pytest.raises(torch.OutOfMemoryError):
        lab.run(observers=[fail])
    states = [event.state for event in events if isinstance(event, CheckpointChanged)]
    assert states == [CheckpointState.SEALED]
    assert (events[-1].type, events[-1].status, events[-1].message) == ("run_ended", "failed", "a test")


def test_a_command_that_finds_nothing_says_so_to_its_caller(lab: Any) -> None:
    loop = lab.loop()
    with pytest.raises(NoValidCheckpoint):
        loop.go_back("a wish", "command", command="c1")


def test_no_finding_comes_of_a_healthy_run(lab: Any, events: list[Any]) -> None:
    lab.run(steps=60)
    assert not [event for event in events if isinstance(event, Finding)]


def broken_after(step: int, factor: float) -> Any:
    """An observer that spoils a weight when ``step`` updates have been judged and the next was applied."""

    def spoil(phase: Any, loop: Any) -> None:
        if phase == "report" and loop.state.step == step and not loop.reporter.record.rollbacks:
            with torch.no_grad():
                loop.model.head.weight.mul_(factor)

    return spoil


@pytest.mark.parametrize("factor", [torch.nan, 1000.0])
def test_a_run_does_not_end_in_a_state_that_broke_after_the_last_scan(lab: Any, factor: float) -> None:
    loop = lab.run(steps=57, observers=[broken_after(56, factor)])
    (rollback,) = loop.reporter.record.rollbacks
    assert (rollback.from_step, rollback.to_step) == (57, 50)
    assert (loop.state.step, loop.reporter.record.status) == (57, "finished")
    assert loop.model.head.weight.isfinite().all()
    assert 57 in usable(loop)


def test_a_stopped_run_keeps_no_state_that_broke_after_the_last_scan(lab: Any) -> None:
    def stop(phase: Any, loop: Any) -> None:
        if phase == "report" and loop.state.step == 36:
            loop.stop("a wish")

    loop = lab.loop(observers=[stop, broken_after(36, 1000.0)])
    assert loop.run() == "stopped"
    assert [one.from_step for one in loop.reporter.record.rollbacks] == [37]
    assert loop.model.head.weight.abs().max() < 10
    assert loop.state.step in usable(loop)


def test_a_stop_whose_last_state_the_disk_refused_says_so(
    lab: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disk = FullDisk(monkeypatch)

    def stop(phase: Any, loop: Any) -> None:
        if phase == "report" and loop.state.step == 32:
            loop.recovery._writer.drain()
            disk.is_full = True
            loop.stop("a wish")

    with pytest.raises(
        TrainerError, match=r"stopped at step 33, but .* could not be kept.* from step 25"
    ) as end:
        lab.run(steps=60, observers=[stop])
    assert end.value.exit_code == 1


def test_a_critic_that_is_refused_for_ever_stops_the_run(lab: Any) -> None:
    def spoil(phase: Any, loop: Any) -> None:
        if phase == "measure" and loop.objective is loop.objectives[1]:
            next(p for p in loop.model.parameters_of(loop.objective.name)).grad.fill_(torch.nan)

    with pytest.raises(RunStopped, match="33 updates refused in a row"):
        lab.run(steps=60, model=lab.DenoiserWithCritic, observers=[spoil])
