"""How long a rollback from memory takes, in steps of the training that goes back.

    python benchmarks/rollback.py [--rounds 10] [--json]

The diffusion stage of ``deploy/configs/tiny.toml`` trains with everything on; every few steps it is sent back
to its newest snapshot in host memory, as by a guard, between two ordinary steps. CPU time of both: restoring
weights, moments, average, random states, data position and guards' memory, the report, and the new snapshot
that the next rollback would need.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from trainer.build import build_loop
from trainer.checkpoint import RestoreSnapshot
from trainer.config import load
from trainer.data.radiomaps import RadioMaps
from trainer.loop import Loop
from trainer.stage import diffusion_of

TINY = Path(__file__).parents[1] / "deploy/configs/tiny.toml"
BETWEEN = 6


def begun(folder: Path) -> Loop:
    """The training, ready for its first step."""
    config = load(TINY)
    run = config.run.model_copy(update={"folder": folder})
    model = config.diffusion.model.model_copy(update={"default_scale": True})  # a first batch would set it
    diffusion = config.diffusion.model_copy(update={"model": model})
    config = config.model_copy(update={"run": run, "diffusion": diffusion})
    loop = build_loop(config, diffusion_of(config, RadioMaps(config.data, "train")))
    loop.reporter.attempt(0, "start")
    loop.begin()
    return loop


def measure(rounds: int) -> tuple[list[float], list[float]]:
    """CPU seconds of steps, and of rollbacks between them."""
    steps: list[float] = []
    rollbacks: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        loop = begun(Path(folder))
        for _ in range(rounds):
            for _ in range(BETWEEN):
                at = time.process_time()
                loop.step()
                steps.append(time.process_time() - at)
            at = time.process_time()
            newest = loop.recovery._snapshots.steps()[0]
            loop.go_back("a benchmark", "guard", rung=RestoreSnapshot(newest))
            rollbacks.append(time.process_time() - at)
        loop.recovery.close()
    return steps, rollbacks


def main() -> None:
    """Print one line, or one object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    steps, rollbacks = measure(arguments.rounds)
    step, rollback, worst = statistics.median(steps), statistics.median(rollbacks), max(rollbacks)
    if arguments.json:
        sys.stdout.write(json.dumps({"step_s": step, "rollback_s": rollback, "worst_s": worst}) + "\n")
        return
    sys.stdout.write(
        f"a step {1000 * step:.0f} ms, a rollback from memory {1000 * rollback:.0f} ms "
        f"(worst {1000 * worst:.0f}): {rollback / step:.2f} steps (worst {worst / step:.2f})\n"
    )


if __name__ == "__main__":
    main()
