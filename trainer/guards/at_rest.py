"""What the last step wrote is what the next one must find: memory that changes while nobody writes it."""

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from shared.events import Finding, Severity
from trainer.guards.base import StepView, Watched, finding, own_part, parameter_names
from trainer.guards.courier import to_host
from trainer.guards.nonfinite import kept_tensors
from trainer.guards.refusal import running_statistics
from trainer.section import Section

_ON_CPU, _ON_GPU = 1 << 18, 1 << 24
_NAMED = 3
_MANTISSA = {torch.float64: 52, torch.float32: 23, torch.float16: 10, torch.bfloat16: 7}


class AtRestConfig(Section):
    """How much of the state is watched between two steps."""

    elements: int | None = Field(
        None,
        ge=0,
        description="Numbers (of 4 bytes) watched from one update to the next, the whole state in turn; 0 "
        "watches none. Default: 262,144 on a CPU, 16,777,216 on a GPU.",
    )


@dataclass(frozen=True)
class _Chunk:
    """A stretch of one tensor's memory, as bytes; ``start`` is its first byte's place in the tensor."""

    name: str
    memory: Tensor
    start: int
    dtype: torch.dtype
    is_exact: bool


@dataclass(frozen=True)
class _Remembered:
    chunks: Sequence[_Chunk]
    bytes: Tensor
    sum: Tensor


@dataclass(frozen=True)
class _Compared:
    then: _Remembered
    now: Tensor
    differs: Tensor
    copied: torch.cuda.Event | None


class AtRest:
    """Weights, moments, average and constants must not change from one update to the next.

        meter.protect(); forward; backward
        at_rest.compare()           # before the update: the same bits as after the last one?
        meter.measure(...); update
        at_rest.remember()          # after everything has been written

    Each step watches the next ``elements`` numbers of the state, in turn, so a small model is watched whole
    and a large one by and by. The sum over their bits, as 64-bit words, is compared on the device; a copy of
    them tells, on an alarm only, which element of which tensor changed and how.

    One bit of one mantissa is told as silent data corruption, and no more: training heals it. Anything else
    is critical. Running statistics, which a forward pass writes, are left out.

    A state that is about to be kept is an alarm as well, and is compared there and then: what changed after
    the update would be kept with it, and no rollback could mend it.

    Two copies of ``elements`` numbers, and their sums, a step; no host read. On a GPU the word comes with the
    step's vitals. On an alarm one more sum, and one read.
    """

    name = "at_rest"
    scans = True

    def __init__(self, config: AtRestConfig | None = None) -> None:
        self._config = config or AtRestConfig()
        self._watched: Watched | None = None
        self._groups: list[list[_Chunk]] = []
        self._num_states = self._turn = 0
        self._remembered: _Remembered | None = None
        self._compared: deque[_Compared] = deque()

    @torch.no_grad()
    def remember(self) -> None:
        """After the update: what the next step must find. Nothing before the first ``rebase``."""
        if self._watched is not None and self._num_states != _count_states(self._watched):
            self._look_over(self._watched)  # an optimizer makes its moments in its first step
        if self._groups:
            chunks = self._groups[self._turn % len(self._groups)]
            self._turn += 1
            now = _bytes(chunks)
            self._remembered = _Remembered(chunks, now, _sum(now))

    @torch.no_grad()
    def compare(self) -> None:
        """Before the update: is it still so? The answer is on its way to the host."""
        then, self._remembered = self._remembered, None
        if then is not None:
            now = _bytes(then.chunks)
            host, copied = to_host((_sum(now) != then.sum).reshape(1))
            self._compared.append(_Compared(then, now, host, copied))

    def inspect(self, view: StepView) -> Finding | None:
        while self._compared:
            first = self._compared[0]
            if first.copied is not None and not first.copied.query():  # type: ignore[no-untyped-call]
                break
            self._compared.popleft()
            if first.differs.numpy()[0]:
                return self._tell(view, first)
        return self._look_now(view) if view.alarm else None

    @torch.no_grad()
    def _look_now(self, view: StepView) -> Finding | None:
        """Whether what was written last is still so; what is harmless is told by the next comparison."""
        then = self._remembered
        if then is None:
            return None
        now = _bytes(then.chunks)
        if not bool(_sum(now) != then.sum):
            return None
        found = self._tell(view, _Compared(then, now, torch.ones(1, dtype=torch.bool), None))
        return found if found.severity is Severity.CRITICAL else None

    def rebase(self, watched: Watched) -> None:
        """The state was set from outside: what was remembered is of another one."""
        self._remembered = None
        self._compared.clear()
        self._look_over(watched)

    def state_dict(self) -> dict[str, Any]:
        return {"turn": self._turn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._turn = state["turn"]
        self._remembered = None
        self._compared.clear()

    def _look_over(self, watched: Watched) -> None:
        """Find the memory of all that is watched."""
        self._watched, self._num_states = watched, _count_states(watched)
        device = next(watched.model.parameters()).device
        elements = self._config.elements
        if elements is None:
            elements = _ON_GPU if device.type == "cuda" else _ON_CPU
        chunks = [one for one in _chunks(watched) if one.memory.device == device] if elements else []
        self._groups = list(_grouped(chunks, max(8, 4 * elements)))

    def _tell(self, view: StepView, one: _Compared) -> Finding:
        changes = list(_changes(one))
        harmless = len(changes) == 1 and changes[0].is_harmless
        named = "; ".join(change.words for change in changes[:_NAMED])
        more = f"; and {len(changes) - _NAMED} more tensors" if len(changes) > _NAMED else ""
        what = "silent data corruption, too small to matter" if harmless else "memory is corrupt"
        message = f"{what}: changed while nobody wrote it: {named}{more}"
        severity = Severity.WARNING if harmless else Severity.CRITICAL
        elements = float(sum(change.elements for change in changes))
        return finding(self.name, view, severity, message, first=changes[0].name, elements=elements)


@dataclass(frozen=True)
class _Change:
    name: str
    elements: int
    words: str
    is_harmless: bool


def _changes(one: _Compared) -> Iterator[_Change]:
    """What differs between the two copies, tensor by tensor. Reads the device: on an alarm only."""
    begin = 0
    for chunk in one.then.chunks:
        size = len(chunk.memory)
        then, now = one.then.bytes[begin : begin + size].cpu(), one.now[begin : begin + size].cpu()
        begin += size
        if not torch.equal(then, now):
            yield _change(chunk, then.clone().view(chunk.dtype), now.clone().view(chunk.dtype))


def _change(chunk: _Chunk, then: Tensor, now: Tensor) -> _Change:
    width = then.element_size()
    differs = (then.view(torch.uint8) != now.view(torch.uint8)).reshape(-1, width).any(dim=1)
    places = differs.nonzero().flatten()
    place, count = int(places[0]), len(places)
    flipped = _bits(then[place]) ^ _bits(now[place])
    bits = [bit for bit in range(8 * width) if flipped >> bit & 1]
    which = f"bit {bits[0]}" if len(bits) == 1 else f"{len(bits)} bits"
    where = f"{chunk.name}[{chunk.start // width + place}]"
    words = f"{where} went from {then[place].item():.6g} to {now[place].item():.6g} ({which})"
    if count > 1:
        words = f"{count} elements of {chunk.name}, the first: {words}"
    mantissa = _MANTISSA.get(chunk.dtype, 0)
    harmless = count == 1 and len(bits) == 1 and bits[0] < mantissa and not chunk.is_exact
    return _Change(chunk.name, count, words, harmless and math.isfinite(float(now[place])))


def _bits(scalar: Tensor) -> int:
    return int.from_bytes(bytes(scalar.reshape(1).view(torch.uint8).tolist()), "little")


def _count_states(watched: Watched) -> int:
    return sum(len(optimizer.state) for optimizer in watched.optimizers.values())


def _chunks(watched: Watched) -> Iterator[_Chunk]:
    """Everything that only an update may write, each tensor as one stretch of bytes."""
    written = running_statistics(watched.model)
    constant = {name for name, p in watched.model.named_parameters() if not p.requires_grad}
    constant |= {name for name, _ in watched.model.named_buffers()}
    for name, tensor in [*kept_tensors(watched), *_counters(watched)]:
        memory = None if name in written else _memory(tensor)
        if memory is not None:
            is_exact = name in constant or " step of " in name
            yield _Chunk(name, memory, 0, tensor.dtype, is_exact)


def _counters(watched: Watched) -> Iterator[tuple[str, Tensor]]:
    names = parameter_names(watched.model)
    for objective, optimizer in watched.optimizers.items():
        for parameter, state in optimizer.state.items():
            if isinstance(state.get("step"), Tensor):
                yield f"{objective} optimizer step of {names.get(parameter, '(unnamed)')}", state["step"]


def _memory(tensor: Tensor) -> Tensor | None:
    """The tensor's memory as bytes, in whatever order its elements lie; None where it has gaps."""
    own = own_part(tensor).detach()
    is_dense = own.is_contiguous() or (
        own.dim() == 4 and own.is_contiguous(memory_format=torch.channels_last)
    )
    if not is_dense or not own.numel() or own.is_complex():
        return None
    return own.as_strided((own.numel(),), (1,)).view(torch.uint8)


def _grouped(chunks: Sequence[_Chunk], limit: int) -> Iterator[list[_Chunk]]:
    """In order, at most ``limit`` bytes together; a larger tensor is cut, between two elements."""
    group: list[_Chunk] = []
    room = limit
    for chunk in chunks:
        start = 0
        while start < len(chunk.memory):
            size = min(room - room % 8, len(chunk.memory) - start)
            if size == 0 or (size < len(chunk.memory) - start and group):
                yield group
                group, room = [], limit
                continue
            group.append(
                _Chunk(chunk.name, chunk.memory[start : start + size], start, chunk.dtype, chunk.is_exact)
            )
            start, room = start + size, room - size
    if group:
        yield group


def _bytes(chunks: Sequence[_Chunk]) -> Tensor:
    """Their memory in one piece, filled up with zeros to whole words."""
    pieces = [chunk.memory for chunk in chunks]
    missing = -sum(map(len, pieces)) % 8
    return torch.cat([*pieces, pieces[0].new_zeros(missing)] if missing else pieces)


def _sum(memory: Tensor) -> Tensor:
    """Over its 64-bit words, wrapping around: exact in any order of summing."""
    return memory.view(torch.int64).sum()
