"""Who is to blame for a refused step: the first module that goes wrong, and the weights or the data.

The step is replayed with hooks on every module, so this is for an alarm only: each module costs a host read.
Works in any loop that can compute its losses again:

    start = Randomness.now(device)                       # at the start of each step, a few microseconds
    ...                                                  # the step was refused:
    culprit = Culprit(model, lambda batch: model.training_step(batch), start)
    verdict = culprit.accuse(batch, earlier_weights)     # Accusation: kind, module, places in the batch

Nothing of it stays: gradients, buffers, modes, random states and hooks are as they were.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from trainer.guards.base import StepLosses
from trainer.guards.pieces import piece_of

Kind = Literal["data", "weights", "unknown"]
Batch = Mapping[str, Any]
Replay = Callable[[Batch], StepLosses]
"""Computes the losses of a batch with a graph; called with the random states of the step set."""

_MOST_REPLAYS = 64
_NOBODY: AbstractContextManager[object] = nullcontext()


@dataclass(frozen=True)
class Randomness:
    """torch's random states of the host and of one device. Taking them reads nothing from the device."""

    host: Tensor
    device: torch.device
    on_device: Tensor | None = None

    @classmethod
    def now(cls, device: torch.device) -> "Randomness":
        """The states at this moment: 5 KB, and 16 bytes of a GPU's."""
        on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(torch.get_rng_state(), device, on_device)

    def set(self) -> None:
        """Make them the present ones."""
        torch.set_rng_state(self.host)
        if self.on_device is not None:
            torch.cuda.set_rng_state(self.on_device, self.device)

    def tensors(self) -> dict[str, Tensor]:
        """By name, for a file."""
        return {"host": self.host} | ({} if self.on_device is None else {"device": self.on_device})


@dataclass(frozen=True)
class Suspect:
    """The first thing in execution order that was not finite.

    ``module`` is its name in the model ("" where every module was fine and the loss itself was not). Ranges
    are (least, greatest) of what is finite there, and None where there is nothing.
    """

    phase: Literal["forward", "backward"]
    module: str
    kind: str
    dtype: str = ""
    input_range: tuple[float, float] | None = None
    weight_range: tuple[float, float] | None = None
    bad_input: bool = False

    def in_words(self) -> str:
        """For a message: ``forward: unet.mid (Conv2d, float32), input -3.1..2.9, weights -1..1``."""
        if not self.module:
            return f"{self.phase}: no module, the loss itself"
        words = f"{self.phase}: {self.module} ({self.kind}, {self.dtype})"
        words += ", its input was bad already" if self.bad_input else ""
        for name, limits in (("input", self.input_range), ("weights", self.weight_range)):
            words += f", {name} {limits[0]:.4g}..{limits[1]:.4g}" if limits else ""
        return words


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
            watch = _Watch(self._model)
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
        return _all_finite([*totals, *grads])

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


@dataclass
class _Watch:
    """Hooks on every module that stop looking at the first value that is not finite.

    Gradients are watched by hooks on tensors: hooks on modules would put nodes of their own into the graph,
    which refuse modules that write in place.
    """

    model: nn.Module
    suspect: Suspect | None = None
    _hooks: ExitStack = field(default_factory=ExitStack)
    _names: dict[nn.Module, str] = field(default_factory=dict)
    _seen: dict[int, "_Flow"] = field(default_factory=dict)

    def __enter__(self) -> None:
        for name, module in self.model.named_modules():
            self._names[module] = name or type(module).__name__
            self._keep(module.register_forward_pre_hook(self._before, with_kwargs=True))
            self._keep(module.register_forward_hook(self._after, with_kwargs=True))
            for parameter in module.parameters(recurse=False):
                if parameter.requires_grad:
                    self._on_gradient(parameter, self._weight_hook(module))

    def __exit__(self, *error: object) -> None:
        self._hooks.close()
        self._seen.clear()

    def _keep(self, handle: RemovableHandle) -> None:
        self._hooks.callback(handle.remove)

    def _on_gradient(self, tensor: Tensor, look: Callable[[Tensor], None]) -> None:
        self._keep(tensor.register_hook(look))  # type: ignore[no-untyped-call]

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for tensor in _tensors((args, kwargs)):
            self._flow(tensor).consumers.append((module, args, kwargs))

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given = list(_tensors((args, kwargs)))
        if self.suspect is None and not _all_finite(list(_tensors(output))):
            self.suspect = self._describe("forward", module, given)
        for tensor in _tensors(output):
            self._flow(tensor).producers.append((module, args, kwargs))

    def _flow(self, tensor: Tensor) -> "_Flow":
        """Who makes and who takes a tensor; its gradient is looked at once."""
        if id(tensor) not in self._seen:
            self._seen[id(tensor)] = _Flow(tensor)
            if tensor.requires_grad and not tensor.is_leaf:
                self._on_gradient(tensor, self._gradient_hook(self._seen[id(tensor)]))
        return self._seen[id(tensor)]

    def _gradient_hook(self, flow: "_Flow") -> Callable[[Tensor], None]:
        def look(grad: Tensor) -> None:
            if self.suspect is None and not _all_finite([grad]):
                # what takes the tensor made its gradient: the innermost, which was called last
                module, args, kwargs = (flow.consumers or flow.producers)[-1]
                self.suspect = self._describe("backward", module, list(_tensors((args, kwargs))))

        return look

    def _weight_hook(self, module: nn.Module) -> Callable[[Tensor], None]:
        def look(grad: Tensor) -> None:
            if self.suspect is None and not _all_finite([grad]):
                self.suspect = self._describe("backward", module, [])

        return look

    def _describe(
        self, phase: Literal["forward", "backward"], module: nn.Module, given: Sequence[Tensor]
    ) -> Suspect:
        weights = [parameter.detach() for parameter in module.parameters(recurse=False)]
        dtype = next((tensor.dtype for tensor in [*weights, *given]), None)
        return Suspect(
            phase=phase,
            module=self._names[module],
            kind=type(module).__name__,
            dtype=str(dtype).removeprefix("torch."),
            input_range=_range(given),
            weight_range=_range(weights),
            bad_input=not _all_finite(given),
        )


@dataclass
class _Flow:
    """A tensor (kept, or its id might be given to another) with the modules before and after it."""

    tensor: Tensor
    producers: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    consumers: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)


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


def _tensors(values: Any) -> Iterator[Tensor]:
    """Floating tensors anywhere in arguments or outputs."""
    if isinstance(values, Tensor):
        if values.is_floating_point():
            yield values
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from _tensors(value)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)
    elif hasattr(values, "__dataclass_fields__"):
        for name in values.__dataclass_fields__:
            yield from _tensors(getattr(values, name))


def _all_finite(tensors: Sequence[Tensor]) -> bool:
    return all(bool(torch.isfinite(tensor.detach()).all()) for tensor in tensors)


def _range(tensors: Sequence[Tensor]) -> tuple[float, float] | None:
    least, most = math.inf, -math.inf
    for tensor in tensors:
        finite = tensor.detach()[torch.isfinite(tensor.detach())]
        if finite.numel():
            least, most = min(least, float(finite.min())), max(most, float(finite.max()))
    return (least, most) if least <= most else None
