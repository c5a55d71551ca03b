"""Whether a run that is killed ends as one that is not: SIGKILL at random moments, the same command again.

    python benchmarks/resume_kill.py [--kills 100] [--seed 0] [--json]

Each training is a program of its own, killed at a moment drawn at random from its start to nearly its end,
saves included, and started again until the kills are used up; then it may finish. The last checkpoint's every
tensor and fact must be, bit for bit, that of a twin that nobody killed. Several trainings share the kills, so
that each stretch of a run is met often.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from trainer.checkpoint import Stored, list_records, read

KILLS_A_RUN = 10
CONFIG = Path(__file__).parents[1] / "deploy/configs/drill.toml"


def main() -> int:
    """Kill, resume, compare; exit code 1 if any run ended with other bits."""
    arguments = _arguments()
    chance = random.Random(arguments.seed)
    outcomes: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as room:
        begun = time.monotonic()
        twin = _Run(Path(room) / "twin")
        twin.finish()
        seconds = time.monotonic() - begun
        while (left := arguments.kills - sum(one["kills"] for one in outcomes)) > 0:
            run = _Run(Path(room) / f"run-{len(outcomes)}")
            kills = run.suffer(min(left, KILLS_A_RUN), chance, seconds)
            outcomes.append({"kills": kills, "differences": _differences(twin.last(), run.last())})
            sys.stderr.write(
                f"run {len(outcomes)}: {kills} kills, {outcomes[-1]['differences'] or 'same bits'}\n"
            )
    return _tell(arguments, outcomes)


class _Run:
    """One training in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder / "run"
        self._config = folder / "config.toml"
        shipped = CONFIG.read_text()
        self._config.write_text(shipped.replace('"runs/drills"', json.dumps(str(self.folder))))
        self._log = (folder / "log").open("wb")

    def suffer(self, kills: int, chance: random.Random, seconds: float) -> int:
        """Kill it so often, or until it ended before it could be killed; then let it finish."""
        for number in range(kills):
            process = self._start()
            try:
                self._check(process.wait(chance.uniform(0.2, 0.9) * seconds))
                return number
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
        self.finish()
        return kills

    def finish(self) -> None:
        """The same command, to its end."""
        self._check(self._start().wait())

    def last(self) -> Stored:
        """The state in which it ended."""
        return read(max(list_records(self.folder / "checkpoints"), key=lambda one: one.step).path)

    def _check(self, code: int) -> None:
        if code != 0:
            raise RuntimeError(f"exit code {code}; see {self._log.name}")

    def _start(self) -> "subprocess.Popen[bytes]":
        words = [sys.executable, "-m", "trainer", "run", str(self._config)]
        return subprocess.Popen(words, stdout=self._log, stderr=self._log)


def _differences(one: Stored, other: Stored) -> list[str]:
    tensors, theirs = _tensors(one), _tensors(other)
    names = sorted(tensors.keys() | theirs.keys())
    found = [name for name in names if not _same_bits(tensors.get(name), theirs.get(name))]
    facts, their_facts = dict(one.facts), dict(other.facts)
    return found + sorted(
        key for key in facts.keys() | their_facts.keys() if facts.get(key) != their_facts.get(key)
    )


def _tensors(stored: Stored) -> dict[str, torch.Tensor]:
    return {f"{part}/{name}": tensor for part, ones in stored.parts.items() for name, tensor in ones.items()}


def _same_bits(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    if one is None or other is None or one.shape != other.shape or one.dtype != other.dtype:
        return False
    return one.contiguous().view(-1).numpy().tobytes() == other.contiguous().view(-1).numpy().tobytes()


def _tell(arguments: argparse.Namespace, outcomes: Sequence[dict[str, Any]]) -> int:
    kills = sum(one["kills"] for one in outcomes)
    exact = sum(one["kills"] for one in outcomes if not one["differences"])
    if arguments.json:
        sys.stdout.write(json.dumps({"kills": kills, "bit_exact": exact, "runs": list(outcomes)}) + "\n")
    else:
        sys.stdout.write(f"{exact} of {kills} kills ended bit-exact, in {len(outcomes)} runs\n")
    return int(exact < kills)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
