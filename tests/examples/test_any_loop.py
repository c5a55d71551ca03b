"""The plain loop of the examples: it meets its two faults and ends healthy."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_plain_loop_refuses_a_nan_and_returns_from_spoiled_weights(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "examples/any_loop.py", str(tmp_path)],
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
