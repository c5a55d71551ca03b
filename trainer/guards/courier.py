"""Carries a step's numbers from the device to the host, without anybody waiting for them."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Parcel:
    """What of a step is known on the host already, and is needed to read its numbers."""

    iteration: int
    lr: float | None
    parts: tuple[str, ...]
    modules: tuple[str, ...]
    samples: int
    scaled: bool
    missing: tuple[int, ...]
    frozen: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Sent:
    parcel: Parcel
    numbers: Tensor
    copied: torch.cuda.Event | None


class Courier:
    """Steps' numbers under way, handed out in the order in which they were sent.

    Args:
        history: steps that the host may run ahead before ``arrived`` waits. in_step: numbers from a GPU are
            handed out after exactly so many steps, however early they come: so several processes hear of a
            step at the same time.
    """

    def __init__(self, history: int, *, in_step: bool = False) -> None:
        self._history, self._is_in_step = history, in_step
        self._outstanding: deque[_Sent] = deque()

    def send(self, parcel: Parcel, pieces: Sequence[Tensor]) -> None:
        """Start on the way: one copy of all pieces, as float64."""
        count = sum(len(piece) for piece in pieces)
        host, copied = to_host(torch.cat(list(pieces), out=pieces[-1].new_empty(count, dtype=torch.float64)))
        self._outstanding.append(_Sent(parcel, host, copied))

    def arrived(self, wait: bool = False) -> Iterator[tuple[Parcel, list[float]]]:
        """What has reached the host since the last call; with ``wait`` all of it."""
        while self._outstanding:
            sent = self._outstanding[0]
            if self._must_wait_for(sent):
                if not wait and len(self._outstanding) <= self._history:
                    return
                assert sent.copied is not None
                sent.copied.synchronize()
            self._outstanding.popleft()
            yield sent.parcel, sent.numbers.numpy().tolist()

    def forget(self) -> None:
        """What is under way is of a lost stretch."""
        self._outstanding.clear()

    def _must_wait_for(self, sent: _Sent) -> bool:
        if sent.copied is None:
            return False
        return self._is_in_step or not sent.copied.query()  # type: ignore[no-untyped-call]


def to_host(numbers: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Start the copy to the host. Pinned memory is of torch's pool, which frees it when it has been read."""
    if not numbers.is_cuda:
        return numbers, None
    host = torch.empty(len(numbers), dtype=numbers.dtype, pin_memory=True)
    host.copy_(numbers, non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record()
    return host, copied
