"""Run by test_checkpoint_kill.py in a process of its own: saves in a child, kills it, looks at what is left.

Prints a line of JSON for each round: the newest good step before it, the step loaded after the kill, the
drafts that the kill left, and the checks that any visible checkpoint fails.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from trainer.checkpoint import CheckpointRing, NoValidCheckpoint, RingConfig, State, list_records

CONFIG = RingConfig(promote_after=2)
SIZE = 100_000


def save_until_killed(root: Path, attempt: int, begin: int) -> None:
    ring, step = CheckpointRing(root, CONFIG), begin
    ring.invalidate_after(begin, attempt - 1)
    while True:
        step += 1
        parts = {name: {"w": torch.full((SIZE,), float(step))} for name in ("model", "ema", "optimizer")}
        ring.save(parts, {"step": step}, step=step, attempt=attempt, probe_loss=float(step))
        ring.healthy(step, open_findings=False)


def run_child(root: Path, attempt: int, begin: int, life_s: float) -> None:
    child = os.fork()
    if child == 0:
        try:
            save_until_killed(root, attempt, begin)
        finally:
            os._exit(1)
    await_first_draft(root)
    time.sleep(life_s)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        sys.exit("the child ended before it was killed")


def await_first_draft(root: Path) -> None:
    deadline = time.monotonic() + 20
    while not any(root.glob(".*")) and time.monotonic() < deadline:
        time.sleep(0.001)


def load(root: Path) -> int:
    """The step that a new process loads, after proof that all of it belongs to one step."""
    try:
        stored = CheckpointRing(root, CONFIG).load_newest().stored
    except NoValidCheckpoint:
        return 0
    step = stored.manifest.step
    assert stored.facts == {"step": step}
    assert all(torch.equal(part["w"], torch.full((SIZE,), float(step))) for part in stored.parts.values())
    return step


def newest_good(root: Path) -> int:
    return max((one.step for one in list_records(root) if one.state is State.GOOD), default=0)


def main(root: Path, rounds: int, seed: int) -> None:
    torch.set_num_threads(1)
    root.mkdir()
    dice, loaded = random.Random(seed), 0
    for attempt in range(1, rounds + 1):
        good = newest_good(root)
        run_child(root, attempt, loaded, dice.uniform(0.0, 0.2))
        drafts = len(list(root.glob("**/.*")))
        loaded = load(root)
        failed = sorted({record.failed_check for record in list_records(root) if record.failed_check})
        report = {"good": good, "loaded": loaded, "drafts": drafts, "failed": failed}
        sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
