"""NaN and infinity: in a batch before it is used, in a refused step, and in everything that is kept."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from shared.events import Finding, Severity
from trainer.guards.base import (
    StepView,
    Vitals,
    Watched,
    count_nonfinite,
    every,
    finding,
    norms,
    parameter_names,
)
from trainer.section import Section

_NAMED = 3  # bad tensors named in a message; the rest are counted


class NonfiniteConfig(Section):
    scan_every: int = Field(
        100, ge=1, description="Search weights, buffers, moments and EMA this often, in steps."
    )


class Nonfinite:
    """Explains a step refused for NaN or infinity (error), and searches the state for them (critical).

    One device read for each scan; a bad one costs one more for each tensor it names. A number that is only
    logged and not finite (a loss part, say) is a warning when it begins.
    """

    name = "nonfinite"
    scans = True

    def __init__(self, config: NonfiniteConfig | None = None) -> None:
        self._due = every((config or NonfiniteConfig()).scan_every)
        self._scanned = -1
        self._tolerated: list[str] = []

    def inspect(self, view: StepView) -> Finding | None:
        iteration = view.vitals.iteration
        if view.alarm or (self._due(iteration) and iteration != self._scanned):
            self._scanned = iteration
            found = self._scan(view)
            if found is not None:
                return found
        return self._explain(view)

    def state_dict(self) -> dict[str, Any]:
        return {"scanned": self._scanned, "tolerated": self._tolerated}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._scanned = state["scanned"]
        self._tolerated = list(state["tolerated"])

    def _scan(self, view: StepView) -> Finding | None:
        tensors = dict(kept_tensors(view.watched))
        sizes = norms(list(tensors.values())).tolist()
        bad = [name for name, size in zip(tensors, sizes, strict=True) if not math.isfinite(size)]
        if not bad:
            return None
        named = "; ".join(_describe(name, tensors[name]) for name in bad[:_NAMED])
        more = f"; and {len(bad) - _NAMED} more tensors" if len(bad) > _NAMED else ""
        message = f"the state is corrupt: {named}{more}"
        return finding(self.name, view, Severity.CRITICAL, message, bad_tensors=float(len(bad)), first=bad[0])

    def _explain(self, view: StepView) -> Finding | None:
        vitals = view.vitals
        if vitals.reason == "overflow":
            return None  # the loss scale's business, which the next steps are rid of
        bad = {name: value for name, value in _measured(vitals) if not math.isfinite(value)}
        if vitals.refused and bad:
            return self._tell(view, bad, Severity.ERROR, "the update was refused on the device")
        begun = [name for name in bad if name not in self._tolerated]
        self._tolerated = list(bad)
        if begun:
            return self._tell(
                view, bad, Severity.WARNING, "loss and gradient are finite, so the update was applied"
            )
        return None

    def _tell(self, view: StepView, bad: dict[str, float], severity: Severity, done: str) -> Finding:
        words = ", ".join(f"{name} is {value}" for name, value in bad.items())
        message = f"{view.vitals.objective}: {words}; {done}{_batch(view.sample_ids)}"
        return finding(self.name, view, severity, message, **bad, **_bad_sample(view))


def kept_tensors(watched: Watched) -> Iterator[tuple[str, Tensor]]:
    """All floating tensors that outlive a step, by a findable name: weights, buffers, moments, EMA."""
    names = parameter_names(watched.model)
    yield from ((name, parameter.detach()) for parameter, name in names.items())
    for name, buffer in watched.model.named_buffers():
        if buffer.is_floating_point():
            yield name, buffer
    for objective, optimizer in watched.optimizers.items():
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                if isinstance(value, Tensor) and key != "step":
                    yield f"{objective} optimizer {key} of {names.get(parameter, '(unnamed)')}", value
    for name, average in (watched.ema or {}).items():
        if average.is_floating_point():
            yield f"EMA {name}", average


def find_nonfinite_batch(item: object, limit: float = 100.0) -> str | None:
    """What is wrong with a batch or sample, in words; ``None`` if nothing is. For the data worker.

    Looks into mappings and sequences of tensors, arrays and numbers. Wrong is NaN, infinity, nothing at all,
    and a magnitude above ``limit``, which well scaled inputs never reach (0..255 where -1..1 is meant).
    """
    for path, values in _arrays(item, ""):
        if not values.size:
            return f"{path}: it is empty, of shape {values.shape}"
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            where = tuple(bad[0].tolist())
            count = f"{len(bad)} of {values.size} values are not finite"
            return f"{path}: {count}, the first at {where}: {values[where]}"
        largest = float(np.abs(values).max(initial=0))
        if largest > limit:
            return f"{path}: values reach {largest:.4g}, beyond the limit of {limit:g}"
    return None


def _arrays(item: object, path: str) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    if isinstance(item, Mapping):
        for key, value in item.items():
            yield from _arrays(value, f"{path}.{key}" if path else str(key))
    elif isinstance(item, Sequence) and not isinstance(item, str | bytes):
        for index, value in enumerate(item):
            yield from _arrays(value, f"{path}[{index}]")
    elif isinstance(item, Tensor | np.ndarray | float):
        values = _as_array(item) if isinstance(item, Tensor) else np.asarray(item)
        if values.dtype.kind in "fc":  # whole numbers are labels, masks and indices: any of them may be right
            yield path or "value", values


def _as_array(tensor: Tensor) -> np.ndarray[Any, Any]:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _measured(vitals: Vitals) -> Iterator[tuple[str, float]]:
    yield "loss", vitals.loss
    for name, value in vitals.parts.items():
        yield f"part {name}", value
    yield "gradient norm", vitals.grad_norm


def _batch(sample_ids: Sequence[str]) -> str:
    named = ", ".join(sample_ids[:_NAMED])
    more = f" and {len(sample_ids) - _NAMED} more" if len(sample_ids) > _NAMED else ""
    return f"; the batch held {named}{more}" if sample_ids else ""


def _describe(name: str, tensor: Tensor) -> str:
    count = count_nonfinite(tensor)
    if count == 0:
        return f"{name} holds values beyond {torch.finfo(torch.float32).max ** 0.5:.1g}"
    return f"{name} has {count} of {tensor.numel()} values not finite"


def _bad_sample(view: StepView) -> dict[str, str]:
    """The first sample whose own loss is not finite, if the samples have losses and names."""
    pairs = zip(view.sample_ids, view.vitals.sample_losses, strict=False)
    return next(({"sample": name} for name, loss in pairs if not math.isfinite(loss)), {})
