"""SIGKILL at random moments during saves: what is visible is whole, and a verified one always loads."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("kill_rounds.py")


def play(root: Path, rounds: int, seed: int) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(root), str(rounds), str(seed)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the child is forked")
@pytest.mark.parametrize("rounds", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_a_kill_during_a_save_never_costs_more_than_that_save(tmp_path: Path, rounds: int) -> None:
    told = play(tmp_path / "ring", rounds, seed=11)
    assert len(told) == rounds
    assert all(set(one["failed"]) <= {"abandoned"} for one in told), "a half checkpoint was visible"
    assert all(one["loaded"] >= one["good"] for one in told), "a good checkpoint was lost"
    assert told[-1]["loaded"] > 0
    assert any(one["drafts"] for one in told), "no kill fell into a save, so nothing was proved"
