"""The same state in host memory: the quickest way back, for a rollback in about the time of a step."""

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trainer.checkpoint.facts import Facts
from trainer.checkpoint.tensors import HostParts, Parts


@dataclass(frozen=True)
class Snapshot:
    """A state of the run, a copy of the ring's own: load it, change it, keep it."""

    step: int
    attempt: int
    parts: HostParts
    facts: dict[str, Any]


@dataclass
class _Slot:
    parts: HostParts = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    step: int = -1
    attempt: int = 0
    is_filled: bool = False
    keep_until: int = -1


def stage(parts: Parts) -> HostParts:
    """Copies on the host that training no longer touches.

    Costs one copy of all bytes. From a CUDA device they travel together into pinned memory and are waited for
    once: 1.6 GB take about 32 ms at 50 GB/s. Pinning takes longer, so a ``SnapshotRing`` keeps its memory.
    """
    staged = _room_for(parts)
    _fill(staged, parts)
    return staged


class SnapshotRing:
    """The last snapshots of a run, each slot's memory used again.

    Args:
        slots: how many; host memory is this many times the state. Two, since the newest may hold the fault.
    """

    def __init__(self, slots: int = 2) -> None:
        if slots < 1:
            raise ValueError(f"slots is {slots}; a ring needs 1 or more, 2 is usual")
        self._slots = [_Slot() for _ in range(slots)]

    def take(self, *, step: int, attempt: int, parts: Parts, facts: Facts) -> None:
        """Copy the state over the oldest snapshot, or over one of this very step.

        Costs one copy of all bytes; allocates only if names, shapes or dtypes changed.
        """
        slot = self._slot_for(step)
        if slot.step != step:
            slot.keep_until = -1
        slot.is_filled = False  # half a copy must not be found if this fails on the way
        if not _fits(slot.parts, parts):
            slot.parts = _room_for(parts)
        _fill(slot.parts, parts)
        slot.facts, slot.step, slot.attempt = deepcopy(dict(facts)), step, attempt
        slot.is_filled = True

    def protect(self, step: int, until: int) -> None:
        """Keep the snapshot of ``step`` until one of step ``until``; the other slots go on without it."""
        for slot in self._slots:
            if len(self._slots) > 1:
                slot.keep_until = until if slot.is_filled and slot.step == step else -1

    def steps(self) -> tuple[int, ...]:
        """Steps of the snapshots at hand, newest first."""
        return tuple(slot.step for slot in self._newest_first())

    def newest(self, before_step: int | None = None) -> Snapshot | None:
        """The newest snapshot, of a smaller step than ``before_step`` if that is given.

        A copy, since ``Optimizer.load_state_dict`` on a CPU takes tensors as they are, and the next steps
        would then change the slot.
        """
        fits = [slot for slot in self._newest_first() if before_step is None or slot.step < before_step]
        if not fits:
            return None
        slot = fits[0]
        return Snapshot(slot.step, slot.attempt, stage(slot.parts), deepcopy(slot.facts))

    def drop_after(self, step: int) -> None:
        """Forget snapshots of later steps: the run went back to ``step`` and they are of another stretch."""
        for slot in self._slots:
            if slot.step > step:
                slot.is_filled = False

    def _slot_for(self, step: int) -> _Slot:
        same = [slot for slot in self._slots if slot.is_filled and slot.step == step]
        free = [slot for slot in self._slots if not slot.is_filled or slot.keep_until <= step]
        return same[0] if same else min(free, key=lambda one: one.step if one.is_filled else -1)

    def _newest_first(self) -> list[_Slot]:
        return sorted(
            (slot for slot in self._slots if slot.is_filled), key=lambda one: one.step, reverse=True
        )


def _room_for(parts: Parts) -> HostParts:
    return {
        part: {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            for name, tensor in tensors.items()
        }
        for part, tensors in parts.items()
    }


def _fill(slots: HostParts, parts: Parts) -> None:
    for part, tensors in parts.items():
        for name, tensor in tensors.items():
            slots[part][name].copy_(tensor.detach(), non_blocking=True)
    for device in {tensor.device for tensor in _all(parts) if tensor.is_cuda}:
        torch.cuda.current_stream(device).synchronize()


def _fits(slots: Parts, parts: Parts) -> bool:
    return _layout(slots) == _layout(parts)


def _layout(parts: Parts) -> dict[str, dict[str, tuple[torch.Size, torch.dtype]]]:
    return {
        part: {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
        for part, tensors in parts.items()
    }


def _all(parts: Parts) -> Iterable[Tensor]:
    return (tensor for tensors in parts.values() for tensor in tensors.values())
