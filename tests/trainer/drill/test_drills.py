"""Drills of each kind, run for real: the command answers what became of each."""

import argparse
import json
from pathlib import Path

import pytest

from trainer.drill import command

NAMES = ("nan-gradient", "bit-on-disk", "lying-monitor", "hanging-step")


@pytest.mark.slow
def test_drills_of_each_kind_are_seen_and_healed(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    facts, words, went_well = command.drill(parser.parse_args([*NAMES, "--folder", str(tmp_path / "drills")]))
    assert went_well, words
    rows = {one["name"]: one for one in facts["drills"]}
    assert {name: one["place"] for name, one in rows.items()} == {
        "nan-gradient": "P",
        "hanging-step": "H",
        "lying-monitor": "M",
        "bit-on-disk": "C",
    }
    assert "4 of 4 faults detected, 4 healed" in words
    assert json.loads((tmp_path / "drills/twin.json").read_text())["findings"] == 0
