"""Who is to blame for a refused step: the first module that goes wrong, and the weights or the data.

The step is replayed with hooks on every module, so this is for an alarm only: each module costs a host read.
Works in any loop that can compute its losses again:

    start = Randomness.now(device)                       # at the start of each step, a few microseconds
    ...                                                  # the step was refused:
    culprit = Culprit(model, lambda batch: model.training_step(batch), start)
    verdict = culprit.accuse(batch, earlier_weights)     # Accusation: kind, module, places in the batch

Nothing of it stays: gradients, buffers, modes, random states and hooks are as they were.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trainer.guards.base import StepLosses
from trainer.guards.pieces import piece_of
from trainer.guards.randomness import Randomness
from trainer.guards.suspect import Suspect, Watch, all_finite

Kind = Literal["data", "weights", "unknown"]
Batch = Mapping[str, Any]
Replay = Callable[[Batch], StepLosses]
"""Computes the losses of a batch with a graph; called with the random states of the step set."""

_MOST_REPLAYS = 64
_NOBODY: AbstractContextManager[object] = nullcontext()


@dataclass(frozen=True)
class Accusation:
    """What the replays say: ``places`` are the bad samples' positions in the batch."""

    kind: Kind
    suspect: Suspect | None
    places: tuple[int, ...] = ()


class Culprit:
    """Replays one objective's refused step.

    Args:
        model: what is replayed; hooks go on every module of it.
        replay: computes the losses of a batch.
        start: the random states with which the refused step began.
        pieces: that the step took its batch in, one after the other; a replay needs no more memory than it.
    """

    def __init__(self, model: nn.Module, replay: Replay, start: Randomness, pieces: int = 1) -> None:
        self._model, self._replay, self._start, self._pieces = model, replay, start, pieces

    def accuse(self, batch: Batch, earlier: Mapping[str, Tensor] | None = None) -> Accusation:
        """Blame the weights if ``earlier`` ones (a healthy snapshot's, by name) are fine with the batch.

        Otherwise the batch, with the places of its bad samples, if some of it is good: where every sample is
        bad by itself, a layer that none gets through is as likely, and nothing is said against the data.
        ``unknown`` then, and if the replay is finite: the fault was none of model and batch. Costs one
        replay with hooks, one with the earlier weights, and about 2 log2(B) for each bad sample.
        """
        suspect = self.find(batch)
        if suspect is None:
            return Accusation("unknown", None)
        with self._borrowed(earlier) if earlier is not None else nullcontext():
            if earlier is not None and self.is_finite(batch):
                return Accusation("weights", suspect)
            places = self.bad_samples(batch)
        if 0 < len(places) < max(size_of(batch), 2):
            return Accusation("data", suspect, places)
        return Accusation("unknown", suspect)

    def find(self, batch: Batch) -> Suspect | None:
        """The first module in execution order, forward and then backward, that gives what is not finite."""
        with self._untouched():
            watch = Watch(self._model)
            finite = self._step(batch, watch)
            return watch.suspect or (None if finite else Suspect("forward", "", ""))

    def is_finite(self, batch: Batch) -> bool:
        """Whether loss and gradients of the batch are finite."""
        with self._untouched():
            return self._step(batch)

    def bad_samples(self, batch: Batch) -> tuple[int, ...]:
        """Places of the samples that are bad by themselves; all that are left where halving finds none.

        A part of the batch is repeated to the batch's size, since a normalisation may refuse a smaller one.
        """
        size, budget = size_of(batch), _MOST_REPLAYS

        def search(places: range) -> list[int]:
            nonlocal budget
            budget -= 1
            if budget < 0 or self.is_finite(_part(batch, places, size)):
                return []
            if len(places) == 1:
                return [places[0]]
            middle = len(places) // 2
            return search(places[:middle]) + search(places[middle:]) or list(places)

        return tuple(search(range(size)))

    def _step(self, batch: Batch, watch: AbstractContextManager[object] = _NOBODY) -> bool:
        """``watch`` is entered for each piece, so that it lets go of the tensors of one before the next."""
        self._start.set()
        totals: list[Tensor] = []
        for piece in range(self._pieces):
            with watch:
                total = self._replay(piece_of(batch, piece, self._pieces)).total
                torch.autograd.backward(total)
            totals.append(total.detach())
        grads = [p.grad for p in self._model.parameters() if p.grad is not None]
        return all_finite([*totals, *grads])

    @contextmanager
    def _untouched(self) -> Iterator[None]:
        """Put back random states, modes, gradients and buffers."""
        model, here = self._model, Randomness.now(self._start.device)
        modes = [(module, module.training) for module in model.modules()]
        grads = [(parameter, parameter.grad) for parameter in model.parameters()]
        buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
        for parameter, _ in grads:
            parameter.grad = None
        try:
            yield
        finally:
            for parameter, grad in grads:
                parameter.grad = grad
            for module, mode in modes:
                module.training = mode
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
            here.set()

    @contextmanager
    def _borrowed(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        live = self._model.state_dict(keep_vars=True)
        own = {name: tensor.detach().clone() for name, tensor in live.items()}
        with torch.no_grad():
            for name, tensor in live.items():
                tensor.copy_(weights[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in live.items():
                    tensor.copy_(own[name])


def size_of(batch: Batch) -> int:
    """Samples in a batch: the first dimension of its first tensor."""
    return next((len(value) for value in batch.values() if isinstance(value, Tensor) and value.ndim), 0)


def _part(batch: Batch, places: range, size: int) -> dict[str, Any]:
    chosen = [places[index % len(places)] for index in range(size)]
    part: dict[str, Any] = {}
    for key, value in batch.items():
        if isinstance(value, Tensor) and value.ndim and len(value) == size:
            part[key] = value[torch.tensor(chosen, device=value.device)]
        elif isinstance(value, list | tuple) and len(value) == size:
            part[key] = [value[place] for place in chosen]
        else:
            part[key] = value
    return part
