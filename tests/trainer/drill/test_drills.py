"""Drills of each kind, run as a user would: what became of each, and an exit code that tells."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PLACES = {
    "nan-pixel": "W",  # data
    "nan-gradient": "P",  # the step
    "mantissa-flip": "L",  # the state
    "killed-worker": "L",  # the process
    "bit-on-disk": "C",  # the disk
    "lying-monitor": "M",  # the monitor
    "hanging-step": "H",  # time
    "zero-gradients": "L",  # what can't be healed, and stops
}


def drilled(folder: Path, *words: str) -> tuple[int, dict[str, Any]]:
    """The command's exit code and its facts."""
    command = [sys.executable, "-m", "trainer", "drill", "--json", "--folder", str(folder), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.stdout, done.stderr[-2000:]
    return done.returncode, json.loads(done.stdout)


@pytest.mark.slow
def test_drills_of_each_kind_are_seen_and_healed_and_the_command_ends_well(tmp_path: Path) -> None:
    code, facts = drilled(tmp_path / "drills", *PLACES)
    assert (code, facts["fell_short"]) == (0, []), facts["drills"]
    assert {one["name"]: one["place"] for one in facts["drills"]} == PLACES
    assert "8 of 8 faults detected, 7 healed, 1 stopped by design" in facts["summary"]
    assert json.loads((tmp_path / "drills/twin.json").read_text())["findings"] == 0


@pytest.mark.slow
def test_a_drill_that_ends_further_from_its_twin_than_is_asked_for_makes_the_command_fail(
    tmp_path: Path,
) -> None:
    code, facts = drilled(tmp_path / "drills", "nan-pixel", "--within", "1e-9")
    assert (code, facts["fell_short"]) == (1, ["nan-pixel"])
    (row,) = facts["drills"]
    assert row["is_detected"]
    assert "the final loss is" in row["fell_short"][0]
