"""Saves beside training: nothing blocks, nothing is lost unseen."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trainer.checkpoint import (
    CheckpointRing,
    CheckpointWriteFailed,
    CheckpointWriter,
    RingConfig,
    SaveRefused,
    SaveResult,
    State,
)
from trainer.checkpoint import ring as ring_module

PATIENCE_S = 10.0


class SlowDisk:
    """Holds every save until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.started, self.go_on = threading.Semaphore(0), threading.Semaphore(0)
        honest = ring_module.write_draft

        def wait_first(*args: Any, **kwargs: Any) -> Any:
            self.started.release()
            assert self.go_on.acquire(timeout=PATIENCE_S)
            return honest(*args, **kwargs)

        monkeypatch.setattr(ring_module, "write_draft", wait_first)

    def await_save(self) -> None:
        assert self.started.acquire(timeout=PATIENCE_S)


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> SlowDisk:
    return SlowDisk(monkeypatch)


@pytest.fixture
def ring(tmp_path: Path) -> CheckpointRing:
    return CheckpointRing(tmp_path, RingConfig(promote_after=5))


@pytest.fixture
def writer(ring: CheckpointRing) -> Iterator[CheckpointWriter]:
    with CheckpointWriter(ring) as writer:
        yield writer


def submit(writer: CheckpointWriter, step: int, parts: dict[str, dict[str, Tensor]] | None = None) -> None:
    state = {"model": {"w": torch.full((4,), float(step))}} if parts is None else parts
    writer.submit(state, {"step": step}, step=step, attempt=1)


def steps(results: list[SaveResult]) -> list[int]:
    return [result.step for result in results]


def test_a_submitted_state_is_saved_and_its_record_collected_once(
    ring: CheckpointRing, writer: CheckpointWriter
) -> None:
    submit(writer, 10)
    writer.drain()
    results = writer.finished()
    assert [result.record for result in results] == list(ring.records())
    assert writer.finished() == []


def test_the_newest_of_the_waiting_saves_wins_and_the_others_are_counted(
    writer: CheckpointWriter, slow_disk: SlowDisk
) -> None:
    submit(writer, 10)
    slow_disk.await_save()
    for step in (20, 30, 40):
        submit(writer, step)
    assert writer.finished() == []
    slow_disk.go_on.release(2)
    writer.drain()
    assert steps(writer.finished()) == [10, 40]
    assert writer.num_replaced == 2


def test_a_slow_disk_does_not_hold_a_step(
    ring: CheckpointRing, writer: CheckpointWriter, slow_disk: SlowDisk
) -> None:
    """All of this returns while the save is held; a step that waited for it would wait for ever."""
    slow_disk.go_on.release()
    submit(writer, 10)
    writer.drain()
    submit(writer, 20)
    slow_disk.await_save()
    slow_disk.await_save()
    for step in range(11, 31):
        writer.healthy(step, open_findings=False)
        assert len(ring.records()) == 1
        assert steps(writer.finished()) in ([], [10])
    slow_disk.go_on.release()
    writer.drain()
    assert {record.step: record.state for record in ring.records()}[10] is State.GOOD


def test_a_failed_save_is_a_result_and_the_next_one_is_tried(
    writer: CheckpointWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ring_module, "write_draft", full)
        submit(writer, 10)
        writer.drain()
    submit(writer, 20)
    writer.drain()
    failed, saved = writer.finished()
    assert isinstance(failed.error, CheckpointWriteFailed)
    assert failed.record is None
    assert saved.record is not None


def test_a_refused_state_is_a_result(writer: CheckpointWriter) -> None:
    submit(writer, 10, {"model": {"w": torch.tensor([float("nan")])}})
    writer.drain()
    (result,) = writer.finished()
    assert isinstance(result.error, SaveRefused)


def test_facts_are_those_of_the_moment_of_submission(
    ring: CheckpointRing, writer: CheckpointWriter, slow_disk: SlowDisk
) -> None:
    window = [1.0]
    writer.submit({}, {"window": window}, step=10, attempt=1)
    slow_disk.await_save()
    window.append(2.0)
    slow_disk.go_on.release()
    writer.drain()
    assert ring.load_newest().stored.facts == {"window": [1.0]}


def test_a_callers_mistake_rises_in_the_callers_thread(writer: CheckpointWriter) -> None:
    writer.submit({}, {"set": {1}}, step=10, attempt=1)
    writer.drain()
    with pytest.raises(ValueError, match=r"facts\.set is a set"):
        writer.finished()


def test_closing_finishes_what_was_submitted(ring: CheckpointRing) -> None:
    with CheckpointWriter(ring) as writer:
        submit(writer, 10)
    assert steps(writer.finished()) == [10]
    assert [record.step for record in ring.records()] == [10]
