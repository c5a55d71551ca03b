"""The plain loop of the examples: it meets its two faults and ends healthy."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.checkpoint import list_records, read

ROOT = Path(__file__).parents[2]
LATE = """
import runpy, types
from trainer.guards import courier
copied = types.SimpleNamespace(query=lambda: False, synchronize=lambda: None)
courier.to_host = lambda numbers: (numbers.clone(), copied)
runpy.run_path("examples/any_loop.py", run_name="__main__")
"""
"""The same program, whose numbers come as late as they may from a GPU."""


@pytest.mark.parametrize("program", [["examples/any_loop.py"], ["-c", LATE]], ids=["at once", "late"])
def test_a_plain_loop_refuses_a_nan_and_returns_from_spoiled_weights(
    program: list[str], tmp_path: Path
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", *program, str(tmp_path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    *story, last = done.stdout.splitlines()
    assert any("step 149" in line and "refused on the device" in line for line in story)
    assert any(line.startswith("back to step ") for line in story)
    words = last.split()
    assert words[0] == "loss"
    assert float(words[1]) < 0.3
    for record in list_records(tmp_path):
        assert read(record.path).facts["applied"] == {"loss": record.step}, "not all of it was judged"
