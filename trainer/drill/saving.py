"""A program that saves a checkpoint and is killed on the way, once at each call that it makes of the system.

    python -m trainer.drill.saving CHECKPOINT ROOM

The first tensors of every part of a real checkpoint make a small ring. Then, each time, a child is forked; it
saves one of a later step in a copy of that ring, and ends by SIGKILL before or after one of its calls: open,
write, flush, fsync, close, rename, mkdir, remove. The interpreter itself reports the calls
(``sys.setprofile``), so the code that saves runs as it is. Prints a line of JSON for each kill: where, how
many steps later than the ring's own the checkpoint is that a new process loads, and what a visible one fails.
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from trainer.checkpoint import CheckpointRing, RingConfig, Stored, list_records, read

_CALLS = frozenset(
    {"open", "write", "flush", "fsync", "close", "rename", "replace", "mkdir", "unlink", "rmdir", "link"}
)
_SYSTEMS = frozenset({"posix", "_io", "io"})
_TENSORS = 5
_LATER = 10


class _Reaper:
    """Counts the calls of this process, and ends it at the ``deadly`` one."""

    def __init__(self, deadly: int | None) -> None:
        self.moments: list[str] = []
        self._deadly = deadly

    def __call__(self, frame: FrameType, event: str, called: Any) -> None:
        if event not in ("c_call", "c_return") or not _concerns_the_system(called):
            return
        when = "before" if event == "c_call" else "after"
        self.moments.append(f"{when} {called.__name__} in {frame.f_code.co_name}")
        if len(self.moments) - 1 == self._deadly:
            os.kill(os.getpid(), signal.SIGKILL)


def _concerns_the_system(called: Any) -> bool:
    modules = {getattr(called, "__module__", None), type(getattr(called, "__self__", None)).__module__}
    return called.__name__ in _CALLS and bool(modules & _SYSTEMS)


def save(root: Path, stored: Stored, step: int, deadly: int | None) -> list[str]:
    """Save as the program does; answers the moments at which it could have been killed."""
    ring, manifest = CheckpointRing(root, RingConfig()), stored.manifest
    about = {"attempt": manifest.attempt, "probe_loss": manifest.probe_loss}
    parts = {part: dict(list(stored.parts[part].items())[:_TENSORS]) for part in stored.parts}
    reaper = _Reaper(deadly)
    sys.setprofile(reaper)
    try:
        ring.save(parts, stored.facts, step=step, **about)  # type: ignore[arg-type]
    finally:
        sys.setprofile(None)
    return reaper.moments


def rounds(checkpoint: Path, room: Path) -> Iterator[dict[str, Any]]:
    """One for each moment, in a fresh copy of the ring."""
    stored, ring = read(checkpoint), room / "ring"
    step = stored.manifest.step
    save(ring, stored, step, None)
    moments = save(_copy_of(ring, room), stored, step + _LATER, None)
    for number, where in enumerate(moments):
        copy = _copy_of(ring, room)
        child = os.fork()
        if child == 0:
            try:
                save(copy, stored, step + _LATER, number)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            sys.exit(f"the child was to die {where}, and ended by itself")
        yield {"where": where, **_what_is_left(copy, step)}


def _what_is_left(root: Path, step: int) -> dict[str, Any]:
    failed = sorted({str(one.failed_check) for one in list_records(root) if one.failed_check})
    loaded = CheckpointRing(root, RingConfig()).load_newest(good_first=False)
    return {"later": loaded.record.step - step, "failed": failed}


def _copy_of(ring: Path, room: Path) -> Path:
    copy = room / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    return Path(shutil.copytree(ring, copy))


def main() -> None:
    """Kill at each moment in turn."""
    torch.set_num_threads(1)
    for one in rounds(Path(sys.argv[1]), Path(sys.argv[2])):
        sys.stdout.write(json.dumps(one) + "\n")
    shutil.rmtree(sys.argv[2])


if __name__ == "__main__":
    main()
