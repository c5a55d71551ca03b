"""Drills of each kind, run as a user would: what became of each, and an exit code that tells."""

import json
from pathlib import Path
from typing import Any

import pytest

from trainer.__main__ import main
from trainer.drill.ground import DRILL_CONFIG

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # a minute by itself, and more on a crowded machine

PLACES = {
    "nan-gradient": "P",  # the step
    "killed-worker": "L",  # the process
    "bit-on-disk": "C",  # the disk
    "lying-monitor": "M",  # the monitor
    "hanging-step": "H",  # time
    "zero-gradients": "L",  # what can't be healed, and stops
}


def drilled(capsys: pytest.CaptureFixture[str], folder: Path, *words: str) -> tuple[int, dict[str, Any]]:
    """The command's exit code and its facts, on a ground of fewer steps than usual."""
    folder.mkdir()
    short = folder / "short.toml"
    short.write_text(DRILL_CONFIG.read_text().replace("steps = 100", "steps = 60"))
    code = main(["drill", "--json", "--config", str(short), "--folder", str(folder / "drills"), *words])
    return code, json.loads(capsys.readouterr().out)


def test_drills_of_each_kind_are_seen_and_healed_and_the_command_ends_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, facts = drilled(capsys, tmp_path / "each", *PLACES)
    assert (code, facts["fell_short"]) == (0, []), facts["drills"]
    assert {one["name"]: one["place"] for one in facts["drills"]} == PLACES
    assert facts["summary"] == "5 of 5 faults detected, 4 healed, 1 stopped by design"
    assert json.loads((tmp_path / "each/drills/twin.json").read_text())["findings"] == 0


def test_a_drill_that_ends_further_from_its_twin_than_is_asked_for_makes_the_command_fail(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, facts = drilled(capsys, tmp_path / "strict", "nan-pixel", "--within", "1e-9")
    assert (code, facts["fell_short"]) == (1, ["nan-pixel"])
    (row,) = facts["drills"]
    assert row["is_detected"]
    assert "the final loss is" in row["fell_short"][0]
