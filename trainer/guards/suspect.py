"""The first module that gives what is not finite, found by hooks on every module of one pass."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


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


@dataclass
class Watch:
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
        if self.suspect is None and not all_finite(list(_tensors(output))):
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
            if self.suspect is None and not all_finite([grad]):
                # what takes the tensor made its gradient: the innermost, which was called last
                module, args, kwargs = (flow.consumers or flow.producers)[-1]
                self.suspect = self._describe("backward", module, list(_tensors((args, kwargs))))

        return look

    def _weight_hook(self, module: nn.Module) -> Callable[[Tensor], None]:
        def look(grad: Tensor) -> None:
            if self.suspect is None and not all_finite([grad]):
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
            bad_input=not all_finite(given),
        )


@dataclass
class _Flow:
    """A tensor (kept, or its id might be given to another) with the modules before and after it."""

    tensor: Tensor
    producers: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    consumers: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)


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


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """One host read a tensor: for the search after an alarm."""
    return all(bool(torch.isfinite(tensor.detach()).all()) for tensor in tensors)


def _range(tensors: Sequence[Tensor]) -> tuple[float, float] | None:
    least, most = math.inf, -math.inf
    for tensor in tensors:
        finite = tensor.detach()[torch.isfinite(tensor.detach())]
        if finite.numel():
            least, most = min(least, float(finite.min())), max(most, float(finite.max()))
    return (least, most) if least <= most else None
