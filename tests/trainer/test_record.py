"""What has happened to a run outlives kills, full disks and rollbacks."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from shared.events import Finding, Rollback, Severity, StepSkipped
from trainer.files import replace_file
from trainer.record import RunRecord

NAN, INF = float("nan"), float("inf")


class Killed(BaseException):
    """Stands for a SIGKILL: nothing may catch it."""


def full_record() -> RunRecord:
    reading: dict[str, float | str] = {"loss": NAN, "norm": INF, "least": -INF, "objective": "denoiser"}
    return RunRecord(
        attempt=3,
        skipped_steps=1,
        findings=[Finding(step=4, guard="nonfinite", severity=Severity.ERROR, message="m", reading=reading)],
        skips=[StepSkipped(step=4, reason="nonfinite_loss", loss=NAN, grad_norm=INF, sample_ids=("12_3",))],
        rollbacks=[
            Rollback(
                step=9, from_step=9, to_step=5, source="snapshot", reason="r", trigger="guard", seconds=0.5
            )
        ],
        commands_seen=["c1"],
        ladder={"num_rollbacks": 1, "corrupt_at": [9], "refused_in_row": 0},
        status="stopped",
    )


def test_a_record_comes_back_with_every_nan_and_infinity(tmp_path: Path) -> None:
    record = full_record()
    record.save(tmp_path / "record.json")
    loaded = RunRecord.load(tmp_path / "record.json")
    assert repr(loaded) == repr(record)  # by their words, since NaN equals nothing
    assert (
        str(loaded.findings[0].reading)
        == "{'loss': nan, 'norm': inf, 'least': -inf, 'objective': 'denoiser'}"
    )


def test_a_run_without_a_record_has_an_empty_one(tmp_path: Path) -> None:
    assert RunRecord.load(tmp_path / "record.json") == RunRecord()


@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_a_kill_in_the_middle_of_saving_leaves_the_old_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    path = tmp_path / "record.json"
    RunRecord(attempt=1).save(path)

    def kill(*arguments: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        if moment == "write":
            half = path.with_name("record.json.tmp")
            half.write_bytes(b'{"attempt": 2, "fin')  # what a kill within write leaves
        elif moment == "fsync":
            patch.setattr(os, "fsync", kill)
        else:
            patch.setattr(Path, "replace", kill)
        if moment != "write":
            with pytest.raises(Killed):
                full_record().save(path)
    assert RunRecord.load(path).attempt == 1
    full_record().save(path)
    assert RunRecord.load(path).attempt == 3
    assert os.listdir(tmp_path) == ["record.json"]


def test_a_full_disk_leaves_the_old_file_and_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "summary.json"
    replace_file(path, b"old")

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["summary.json"]


@pytest.mark.parametrize("content", ["", "{", '{"attempt": "many"}', '{"unknown": 1}', "[]"])
def test_what_is_no_record_is_refused_in_one_line_with_its_path(tmp_path: Path, content: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"record\.json is not readable as a run's record") as refusal:
        RunRecord.load(path)
    assert "\n" not in str(refusal.value)
