"""A slow disk costs no step: it is told of once for each save, and the save is done when it can be."""

import os
import threading
from typing import Any

import pytest

from trainer.checkpoint import RingConfig, list_records
from trainer.passes import Phase
from trainer.recovery import RecoveryConfig


def test_training_goes_on_beside_a_slow_disk_which_is_told_of_once(
    lab: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync, is_quick, steps_meanwhile = os.fsync, threading.Event(), list[int]()

    def slow(descriptor: Any) -> None:
        if threading.current_thread().name.startswith("checkpoint-writer"):
            is_quick.wait(20)
        sync(descriptor)

    def mend(phase: Phase, loop: Any) -> None:
        if phase is Phase.FETCH and loop.recovery._writer.under_way() is not None:
            steps_meanwhile.append(loop.state.step)
        if phase is Phase.FETCH and loop.state.step == 17:
            is_quick.set()

    monkeypatch.setattr(os, "fsync", slow)
    recovery = RecoveryConfig(snapshot_every=5, checkpoint_every=5, slow_after_s=0.001)
    loop = lab.run(config=lab.config(recovery=recovery), steps=20, observers=[mend])
    slow_saves = [one for one in loop.reporter.record.findings if "the disk is slow" in one.message]
    assert "the checkpoint of step 5 is being written" in slow_saves[0].message
    assert len(slow_saves) == len({one.message.split(" is being")[0] for one in slow_saves})
    assert set(range(6, 18)) <= set(steps_meanwhile)
    assert {one.step for one in list_records(loop.recovery.ring.root)} >= {5, 20}


def test_a_disk_that_holds_up_a_promotion_is_told_of_though_no_save_has_begun(
    lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, is_quick = threading.Event(), threading.Event()

    def watch(phase: Phase, loop: Any) -> None:
        if phase is not Phase.FETCH:
            return
        if loop.state.step == 1:
            promote = loop.recovery.ring.promote
            monkeypatch.setattr(loop.recovery.ring, "promote", lambda step: slow(promote, step))
        if loop.state.step == 12:
            loop.recovery._writer.drain()  # the checkpoint of step 10 is whole
        if loop.state.step == 16:
            begun.wait(20)
        if loop.state.step == 19:
            is_quick.set()

    def slow(promote: Any, step: int) -> None:
        begun.set()
        is_quick.wait(20)
        promote(step)

    ring = RingConfig(promote_after=3)
    recovery = RecoveryConfig(snapshot_every=10, checkpoint_every=10, slow_after_s=1e-4, ring=ring)
    loop = lab.run(config=lab.config(recovery=recovery), steps=20, observers=[watch])
    slow_ones = [one for one in loop.reporter.record.findings if "the disk is slow" in one.message]
    told = [one for one in slow_ones if "a checkpoint is being marked as good" in one.message]
    assert [12 < one.step < 19 for one in told[:1]] == [True]
