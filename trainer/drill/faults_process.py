"""Faults of the process: a step that hangs, a loader that is stuck, a kill in the midst of a save."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from trainer.checkpoint import list_records
from trainer.data.items import Item
from trainer.drill.faults import Fault, Ground, first_life
from trainer.drill.faults_data import DamagedMaps
from trainer.drill.judge import Sighting
from trainer.loop import Loop
from trainer.passes import Phase
from trainer.watchdog import EXIT_HUNG

HANGS_SOON = {"watchdog.least_s": 3.0, "watchdog.first_s": 3.0, "watchdog.give_up_after_s": 2.0}
_FOR_EVER_S = 3600.0
_PATIENCE_S = 240.0


def hanging_step(at_step: int) -> Fault:
    """F41: a forward pass waits for something that never comes."""
    return Fault(at_step, Phase.BACKWARD, lambda loop: _wait_for_ever())


def _wait_for_ever() -> None:
    threading.Event().wait(_FOR_EVER_S)


@dataclass
class StuckLoader:
    """F41: the data worker waits for a disk that never answers."""

    at_step: int
    struck_at: int | None = field(default=None, init=False)

    def inject(self, ground: Ground) -> None:
        """Train with a worker whose next item never comes: a file tells it so, as it has its own memory."""
        flag = ground.folder / "disk-hangs"
        maps = DamagedMaps(ground.maps, partial(_stop_if_told, flag))
        maps.is_on = True

        def strike(loop: Loop) -> None:
            self.struck_at = loop.number
            flag.touch()

        ground.train([Fault(self.at_step, Phase.FETCH, strike)], maps)


def killed_worker(at_step: int) -> Fault:
    """F41: the system kills the data worker for its memory."""

    def strike(loop: Loop) -> None:
        loader: Any = loop.state.loader
        os.kill(loader._stream._workers[0].pid, signal.SIGKILL)

    return Fault(at_step, Phase.FETCH, strike)


def _stop_if_told(flag: Path, maps: DamagedMaps, item: Item, index: int) -> None:
    if flag.exists():
        flag.unlink()
        time.sleep(_FOR_EVER_S)


@dataclass
class UnfreeableHang:
    """F41: a call that no signal interrupts: the process must end by itself, and its successor go on."""

    at_step: int
    struck_at: int | None = field(default=None, init=False)
    sighted: Sighting | None = field(default=None, init=False)
    broke: list[str] = field(default_factory=list, init=False)

    def inject(self, ground: Ground) -> None:
        """One life in a process of its own, that hangs; and the life after it."""
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=_hang_deaf, args=(ground, self.at_step))
        process.start()
        process.join(_PATIENCE_S)
        self.struck_at = self.at_step
        if process.exitcode != EXIT_HUNG:
            process.kill()
            self.broke.append(f"the process that hung ended with {process.exitcode}, not {EXIT_HUNG}")
        ground.train()


def _hang_deaf(ground: Ground, at_step: int) -> None:
    def strike(loop: Loop) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        _wait_for_ever()

    ground.train([Fault(at_step, Phase.BACKWARD, strike)])


@dataclass
class KilledInSave:
    """F38: SIGKILL before and after each call that a save makes of the system; then the run goes on.

    ``trainer.drill.saving`` does the saving and the dying.
    """

    at_step: int
    struck_at: int | None = field(default=None, init=False)
    sighted: Sighting | None = field(default=None, init=False)
    broke: list[str] = field(default_factory=list, init=False)

    def inject(self, ground: Ground) -> None:
        """Kill the saves, and go on from what the last one left."""
        first_life(ground, self.at_step)
        newest = list_records(ground.folder / "checkpoints")[0]
        self.struck_at = newest.step
        rounds = _save_and_die(newest.path, ground.folder / "rounds")
        lost = [one for one in rounds if one["later"] < 0 or one["failed"]]
        self.broke += [f"killed {one['where']}: {one['later']} steps, {one['failed']}" for one in lost]
        torn = sum(one["later"] == 0 for one in rounds)
        if not 0 < torn < len(rounds):
            self.broke.append(f"of {len(rounds)} kills {torn} came before the checkpoint was whole")
        words = f"{len(rounds)} kills at as many calls: {torn} before it was whole, and each left one to load"
        self.sighted = Sighting("C", "ring", self.struck_at, words)
        ground.train()


def _save_and_die(checkpoint: Path, room: Path) -> list[dict[str, Any]]:
    words = [sys.executable, "-m", "trainer.drill.saving", str(checkpoint), str(room)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=_PATIENCE_S)
    if done.returncode:
        raise RuntimeError(f"the saves that were to be killed did not run: {done.stderr[-2000:]}")
    return [json.loads(line) for line in done.stdout.splitlines()]
