"""A Lightning and a Hugging Face training, each as shipped in the examples, under the eyes of the monitor."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning", reason="pip install 'trainhealth[integrations]'")
pytest.importorskip("transformers", reason="pip install 'trainhealth[integrations]'")

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "run", "refused_at", "healthy"),
    [
        ("lightning_loop.py", "lightning-example", 150, 0.3),
        ("transformers_trainer.py", "transformers-example", 72, 0.3),
    ],
)
def test_a_framework_s_training_meets_two_faults_ends_healthy_and_the_monitor_knows(
    house: Any, tmp_path: Path, script: str, run: str, refused_at: int, healthy: float
) -> None:
    monitor = house.monitor()
    done = subprocess.run(
        [sys.executable, f"examples/{script}", str(tmp_path / "run"), monitor.url],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1].split()
    assert last[0] == "loss"
    assert float(last[1].rstrip(";")) < healthy
    assert monitor.tell(run=run)["status"] == "finished"
    (skipped,) = monitor.events(run, type="step_skipped")
    assert (skipped["step"], skipped["loss"]) == (refused_at, "NaN")
    (back,) = monitor.events(run, type="rollback")
    assert back["source"] == "snapshot"
    assert {event["outcome"] for event in monitor.events(run, type="incident")} == {"open", "healed"}
