"""Whether a run that is killed ends as one that is not: SIGKILL at random moments, the same command again.

    python benchmarks/resume_kill.py [--kills 100] [--seed 0] [--steps 40] [--json]

Each life of a training is a process of its own, forked from one that has imported everything, so that a life
begins in a moment. It gets SIGKILL at a moment drawn at random, saves included, and is started again until it
has ended; then its last checkpoint's every tensor and fact must be, bit for bit, that of a twin that nobody
killed. Trainings follow each other until the kills are used up, so each stretch of a run is met often.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from trainer.__main__ import main as trainer
from trainer.checkpoint import Stored, list_records, read

CONFIG = Path(__file__).parents[1] / "deploy/configs/drill.toml"
LONGEST_LIFE = 0.4
"""Of what the twin took; a life is half of that on average."""
_POLL_S = 0.002


def main() -> int:
    """Kill, resume, compare; exit code 1 if any run ended with other bits."""
    arguments = _arguments()
    chance = random.Random(arguments.seed)
    outcomes: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        room, left = Path(name), arguments.kills
        twin = _Run(room / "twin", arguments.steps)
        seconds = twin.finish()
        while left > 0:
            run = _Run(room / f"run-{len(outcomes)}", arguments.steps)
            outcomes.append(run.suffer(left, chance, LONGEST_LIFE * seconds))
            outcomes[-1]["differences"] = _differences(twin.last(), run.last())
            left -= outcomes[-1]["kills"]
            sys.stderr.write(f"run {len(outcomes)}: {outcomes[-1]}\n")
    return _tell(arguments, outcomes)


class _Run:
    """One training in a folder of its own."""

    def __init__(self, folder: Path, steps: int) -> None:
        folder.mkdir()
        self.folder = folder / "run"
        self._config, self._log = folder / "config.toml", folder / "log"
        text = CONFIG.read_text().replace('"runs/drills"', json.dumps(str(self.folder)))
        text = text.replace(
            "[first_stage.training]\nsteps = 40", f"[first_stage.training]\nsteps = {steps // 2}"
        )
        text = text.replace("[diffusion.training]\nsteps = 100", f"[diffusion.training]\nsteps = {steps}")
        self._config.write_text(text)

    def suffer(self, kills: int, chance: random.Random, longest_s: float) -> dict[str, Any]:
        """Kill it so often, or until it ended before it could be killed; then let it finish."""
        saves = 0
        for number in range(kills):
            if self._live(chance.uniform(0.0, longest_s)):
                return {"kills": number, "in_saves": saves}
            saves += bool([*self.folder.glob("**/.*tmp-*")])
        self.finish()
        return {"kills": kills, "in_saves": saves}

    def finish(self) -> float:
        """The same command, to its end; in seconds."""
        begun = time.monotonic()
        self._live(float("inf"))
        return time.monotonic() - begun

    def last(self) -> Stored:
        """The state in which it ended."""
        return read(max(list_records(self.folder / "checkpoints"), key=lambda one: one.step).path)

    def _live(self, seconds: float) -> bool:
        """One life; whether it came to its end before the kill."""
        child = os.fork()
        if child == 0:
            self._train()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                self._check(os.waitstatus_to_exitcode(status))
                return True
            time.sleep(_POLL_S)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            return False
        self._check(os.waitstatus_to_exitcode(status))
        return True

    def _train(self) -> None:
        """In the child, and never beyond it."""
        log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = 1
        try:
            code = trainer(["run", str(self._config), "--json"])
        finally:
            os._exit(code)

    def _check(self, code: int) -> None:
        if code != 0:
            raise RuntimeError(f"exit code {code}: {self._log.read_text()[-2000:]}")


def _differences(one: Stored, other: Stored) -> list[str]:
    tensors, theirs = _tensors(one), _tensors(other)
    names = sorted(tensors.keys() | theirs.keys())
    found = [name for name in names if not _same_bits(tensors.get(name), theirs.get(name))]
    facts, their_facts = dict(one.facts), dict(other.facts)
    return found + sorted(
        key for key in facts.keys() | their_facts.keys() if facts.get(key) != their_facts.get(key)
    )


def _tensors(stored: Stored) -> Mapping[str, torch.Tensor]:
    return {f"{part}/{name}": tensor for part, ones in stored.parts.items() for name, tensor in ones.items()}


def _same_bits(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    if one is None or other is None or one.shape != other.shape or one.dtype != other.dtype:
        return False
    return one.contiguous().view(-1).numpy().tobytes() == other.contiguous().view(-1).numpy().tobytes()


def _tell(arguments: argparse.Namespace, outcomes: Sequence[dict[str, Any]]) -> int:
    kills = sum(one["kills"] for one in outcomes)
    exact = sum(one["kills"] for one in outcomes if not one["differences"])
    saves = sum(one["in_saves"] for one in outcomes)
    facts = {"kills": kills, "bit_exact": exact, "in_saves": saves, "runs": list(outcomes)}
    words = f"{exact} of {kills} kills ended bit-exact, in {len(outcomes)} runs; {saves} of them amid a save"
    sys.stdout.write(f"{json.dumps(facts) if arguments.json else words}\n")
    return int(exact < kills)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--steps", type=int, default=40, help="of the second stage; the first has half as many"
    )
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
