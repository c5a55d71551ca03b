"""Faults of what lies on disk, and of the disk itself."""

import math
import os
import resource
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trainer.checkpoint import CheckpointRing, RingConfig, list_records, read
from trainer.checkpoint.durable import remove_folder
from trainer.drill.faults import Fault, Ground, first_life, passed_over
from trainer.drill.judge import Sighting
from trainer.loop import Loop
from trainer.passes import Phase

_LONGEST_S = 60.0
_FULL_BYTES = 256 << 10
"""The largest file that a full disk still takes: logs and the record go on, no checkpoint does."""


Damage = Callable[[Path], None]


@dataclass
class DamagedCheckpoint:
    """F35, F36: the run stops, its newest checkpoint is damaged, the run goes on from an older one."""

    at_step: int
    damage: Damage
    struck_at: int | None = field(default=None, init=False)
    sighted: Sighting | None = field(default=None, init=False)
    broke: list[str] = field(default_factory=list, init=False)

    def inject(self, ground: Ground) -> None:
        """Damage it, and go on."""
        first_life(ground, self.at_step)
        newest = list_records(ground.folder / "checkpoints")[0]
        self.struck_at = newest.step
        self.damage(newest.path)
        ground.train([Fault(0, Phase.FETCH, self._look)])

    def _look(self, loop: Loop) -> None:
        assert self.struck_at is not None
        self.sighted = passed_over(loop, self.struck_at)
        if loop.state.step >= self.struck_at:
            self.broke.append("the damaged checkpoint was loaded")


def flip_bit(folder: Path) -> None:
    """F35: one bit in the middle of the weights."""
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_short(folder: Path) -> None:
    """F36: the last kilobyte is missing."""
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1024])


def zero_page(folder: Path) -> None:
    """F36: a page of zeros, as a power failure leaves it."""
    path = folder / "optimizer.safetensors"
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4096] = bytes(4096)
    path.write_bytes(content)


def empty_file(folder: Path) -> None:
    """R12: nothing was written under the final name."""
    (folder / "model.safetensors").write_bytes(b"")


def zero_tail(folder: Path) -> None:
    """R12: the last quarter is zeros, as after a power failure."""
    path = folder / "model.safetensors"
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size - size // 4)
        file.write(bytes(size // 4))


def zero_64_kib(folder: Path) -> None:
    """R11: a longer stretch of zeros in the tensors."""
    path = folder / "model.safetensors"
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(64 << 10))


def nan_in_file(folder: Path) -> None:
    """R11: one value, overwritten where it lies."""
    path = folder / "model.safetensors"
    with path.open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(np.float32(np.nan).tobytes())


def lose_manifest(folder: Path) -> None:
    """F36: the page that is written last."""
    (folder / "manifest.json").unlink()


@dataclass
class RenamedMoments:
    """F40: one checkpoint, whole and with right hashes, whose optimizer names another layer."""

    at_step: int
    struck_at: int | None = field(default=None, init=False)
    sighted: Sighting | None = field(default=None, init=False)

    def inject(self, ground: Ground) -> None:
        """The life that goes on has nothing that it may take over."""
        first_life(ground, self.at_step)
        root = ground.folder / "checkpoints"
        newest, *older = list_records(root)
        stored = read(newest.path)
        for record in (newest, *older):
            remove_folder(record.path)
        parts: dict[str, Any] = {part: dict(tensors) for part, tensors in stored.parts.items()}
        name = next(name for name in parts["optimizer"] if name.endswith("exp_avg"))
        parts["optimizer"][f"{name}.of.another"] = parts["optimizer"].pop(name)
        CheckpointRing(root, RingConfig()).save(parts, stored.facts, step=newest.step, attempt=1)
        self.struck_at = newest.step
        ground.train()
        if ground.ended[-1].startswith("ResumeRefused"):
            self.sighted = Sighting("C", "resume", newest.step, ground.ended[-1])


def nan_on_the_way(at_step: int) -> Fault:
    """F37: what is handed to the writer holds a NaN that the state itself never had, as after a bad cast."""

    def strike(loop: Loop) -> None:
        writer: Any = loop.recovery._writer
        submit = writer.submit

        def poisoned(parts: Any, facts: Any, **about: Any) -> None:
            next(iter(parts["ema"].values())).view(-1)[0] = math.nan
            writer.submit = submit
            submit(parts, facts, **about)

        writer.submit = poisoned

    return Fault(at_step, Phase.FETCH, strike)


@dataclass
class FullDisk:
    """F39: for ``steps`` steps the system takes no file as large as a checkpoint."""

    at_step: int
    steps: int
    struck_at: int | None = field(default=None, init=False)
    broke: list[str] = field(default_factory=list, init=False)

    def inject(self, ground: Ground) -> None:
        """Train under a limit that is lifted again, whatever happens."""
        before = resource.getrlimit(resource.RLIMIT_FSIZE)

        def fill(loop: Loop) -> None:
            self.struck_at = loop.number
            resource.setrlimit(resource.RLIMIT_FSIZE, (_FULL_BYTES, before[1]))

        def empty(loop: Loop) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

        try:
            ground.train(
                [
                    Fault(self.at_step, Phase.FETCH, fill),
                    Fault(self.at_step + self.steps, Phase.FETCH, empty),
                ]
            )
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        self.broke += _unless_kept(ground, self.at_step + self.steps)


@dataclass
class SlowDisk:
    """F39: from ``at_step`` on the disk takes ``steps`` steps' time for a single file.

    Stands in for a disk that needs a minute: what counts is that training is much quicker than it.
    """

    at_step: int
    steps: int
    struck_at: int | None = field(default=None, init=False)
    broke: list[str] = field(default_factory=list, init=False)

    def inject(self, ground: Ground) -> None:
        """Train with every fsync of the writer's thread waiting for that moment."""
        sync, is_quick_again, begun = os.fsync, threading.Event(), threading.Event()

        def slow(descriptor: Any) -> None:
            if threading.current_thread().name.startswith("checkpoint-writer"):
                begun.set()
                is_quick_again.wait(_LONGEST_S)
            sync(descriptor)

        def strike(loop: Loop) -> None:
            self.struck_at = loop.number
            os.fsync = slow  # type: ignore[assignment]

        def mend(loop: Loop) -> None:
            if not begun.is_set():
                self.broke.append("no save began while the disk was slow")
            is_quick_again.set()

        try:
            ground.train(
                [
                    Fault(self.at_step, Phase.FETCH, strike),
                    Fault(self.at_step + self.steps, Phase.FETCH, mend),
                ]
            )
        finally:
            os.fsync = sync
            is_quick_again.set()
        self.broke += _unless_kept(ground, self.at_step + self.steps)


def _unless_kept(ground: Ground, step: int) -> list[str]:
    kept = [one.step for one in list_records(ground.folder / "checkpoints")]
    return [] if max(kept, default=0) >= step else ["no checkpoint was kept after all was well again"]
