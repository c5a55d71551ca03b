"""Faults of what lies on disk, and of the disk itself."""

import math
import resource
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.checkpoint import CheckpointRing, RingConfig, list_records, read
from trainer.checkpoint.durable import remove_folder
from trainer.drill.faults import Fault, Ground
from trainer.drill.judge import Sighting
from trainer.loop import Loop, Phase

_FULL_BYTES = 256 << 10
"""The largest file that a full disk still takes: logs and the record go on, no checkpoint does."""


@dataclass
class DamagedCheckpoint:
    """F35, F36: the run stops, its newest checkpoint is damaged, the run goes on from an older one."""

    at_step: int
    damage: Callable[[Path], None]
    struck_at: int | None = field(default=None, init=False)
    sighted: Sighting | None = field(default=None, init=False)
    broke: list[str] = field(default_factory=list, init=False)

    def inject(self, ground: Ground) -> None:
        """Two lives, and the damage between them."""
        ground.train([_stop_at(self.at_step)])
        newest = list_records(ground.folder / "checkpoints")[0]
        self.struck_at = newest.step
        self.damage(newest.path)
        ground.train([Fault(0, Phase.FETCH, self._look)])

    def _look(self, loop: Loop) -> None:
        assert self.struck_at is not None
        bad = [one for one in loop.recovery.ring.records() if one.failed_check not in (None, "abandoned")]
        if bad:
            words = f"{bad[0].name} fails {bad[0].failed_check}: {bad[0].found}"
            self.sighted = Sighting("C", str(bad[0].failed_check), self.struck_at, words)
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
        """Two lives; the second has nothing that it may take over."""
        ground.train([_stop_at(self.at_step)])
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
        kept = [one.step for one in list_records(ground.folder / "checkpoints")]
        if max(kept, default=0) < self.at_step + self.steps:
            self.broke.append("no checkpoint was kept after there was room again")


def _stop_at(step: int) -> Fault:
    return Fault(step, Phase.FETCH, lambda loop: loop.stop("the drill ends this life"))
