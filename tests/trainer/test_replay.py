"""``replay FILE``: the three kinds of logs, what the guards say of them, and files that are none of these."""

import json
import math
import random
import struct
from pathlib import Path
from typing import Any

import pytest

from trainer.__main__ import main
from trainer.logs import read_log

ROWS = 120
SPIKE = 80


def curve() -> list[tuple[int, float, float]]:
    rng = random.Random(0)
    rows = [
        (25 * n, (2 + n) ** -0.3 * math.exp(rng.gauss(0, 0.03)), 1.0 + 0.1 * rng.random())
        for n in range(ROWS)
    ]
    rows[SPIKE] = (rows[SPIKE][0], 5.0, 1.0)
    return rows


def as_csv(path: Path) -> None:
    lines = [f"{step},{loss},{norm}," for step, loss, norm in curve()]
    path.write_text("\n".join(["step,loss,grad_norm,lr", *lines]))


def as_trainer_state(path: Path) -> None:
    history: list[dict[str, float]] = []
    for step, loss, norm in curve():
        history.append({"step": step, "loss": loss, "grad_norm": norm, "learning_rate": 1e-4})
        history.append({"step": step, "eval_loss": 9.0})
    path.write_text(json.dumps({"log_history": history}))


def as_event_file(path: Path) -> None:
    with path.open("wb") as file:
        file.write(frame(field(3, b"brain.Event:2")))
        for step, loss, norm in curve():
            file.write(frame(scalar_event(step, "train/loss", loss)))
            file.write(frame(scalar_event(step, "train/grad_norm", norm)))
            file.write(frame(scalar_event(step, "val/loss", 9.0)))


def frame(event: bytes) -> bytes:
    """A TFRecord; the reader takes no notice of the two checksums."""
    return struct.pack("<Q", len(event)) + bytes(4) + event + bytes(4)


def scalar_event(step: int, tag: str, number: float) -> bytes:
    value = field(1, tag.encode()) + b"\x15" + struct.pack("<f", number)
    return b"\x09" + struct.pack("<d", 1e9) + b"\x10" + varint(step) + field(5, field(1, value))


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(number: int) -> bytes:
    low, rest = number & 127, number >> 7
    return bytes([low | 128]) + varint(rest) if rest else bytes([low])


@pytest.fixture(params=[as_csv, as_trainer_state, as_event_file])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "log"
    request.param(path)
    return path


def answer(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    assert main(["replay", *map(str, arguments), "--json"]) == 0
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    return facts


def test_each_kind_of_log_gives_the_same_findings(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = answer(capsys, log)
    assert (facts["rows"], facts["alarms"]) == (ROWS, 1)
    (found,) = facts["findings"]
    assert (found["row"], found["step"], found["guard"]) == (SPIKE, 25.0 * SPIKE, "drift")
    assert found["severity"] == "warning"
    assert found["reading"]["kind"] == "spike"


def test_in_words_each_finding_has_a_line(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(log)]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("row 80 ")
    assert last.endswith(f"{ROWS} rows, 1 alarms")


def test_an_event_file_cut_off_in_mid_record_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    as_event_file(tmp_path / "log")
    content = (tmp_path / "log").read_bytes()
    (tmp_path / "log").write_bytes(content[: len(content) // 2])
    assert 0.4 * ROWS < len(read_log(tmp_path / "log")) < 0.6 * ROWS


def test_a_nan_is_an_error_once_and_a_single_overflow_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.csv"
    log.write_text("step,loss,grad_norm\n0,1,inf\n1,1,2\n2,,\n3,nan,1\n4,nan,nan\n5,inf,nan\n6,1,nan\n")
    facts = answer(capsys, log)
    told = [(found["row"], found["guard"], found["severity"]) for found in facts["findings"]]
    assert told[:2] == [(0, "nonfinite", "info"), (3, "nonfinite", "error")]
    assert facts["findings"][1]["reading"]["loss"] == "NaN"


def test_the_loss_may_have_another_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log.csv"
    log.write_text("step,critic\n0,1\n1,nan\n")
    assert answer(capsys, log, "--loss", "critic")["alarms"] == 1


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "no column 'step'"),
        (b"a,b\n1,2\n", "no column 'step', but: a, b"),
        (b"step,loss\n1,2\n2,many\n", "line 3: loss is 'many'"),
        (b"step,loss\nnan,2\n", "line 2: the step is nan"),
        (b"step,loss\n", "no row with a loss"),
        (b'{"epoch": 3}', "no trainer_state.json"),
        (b"{", "looks like JSON but is not"),
        (b"\x89PNG\xff\xfe", "neither text nor an event file"),
        (frame(field(3, b"brain.Event:2")), "no training loss"),
        (frame(field(3, b"brain.Event:2")) + frame(b"\x2a\x7f"), "is damaged"),
    ],
)
def test_what_is_no_log_is_refused_in_words(
    content: bytes, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log").write_bytes(content)
    assert main(["replay", str(tmp_path / "log")]) == 2
    assert told in capsys.readouterr().err


def test_a_missing_file_or_a_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(tmp_path / "none")]) == 2
    assert main(["replay", str(tmp_path)]) == 2
    assert "is no incident" in capsys.readouterr().err
