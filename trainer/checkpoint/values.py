"""What must hold for the tensors of a checkpoint: on the staged bytes before a save, and on what was read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.checkpoint.layout import some
from trainer.checkpoint.tensors import Parts, each


@dataclass(frozen=True)
class ValueCheck:
    """One thing that must hold for the tensors; ``look`` answers what is wrong."""

    name: str
    reason: str
    look: Callable[[Parts], str | None]


@dataclass(frozen=True)
class Failure:
    """The first check that did not hold."""

    check: str
    found: str


def first_bad_value(parts: Parts) -> Failure | None:
    """Run the checks of values. Reads host tensors twice at most, allocates nothing."""
    for check in VALUE_CHECKS:
        found = check.look(parts)
        if found is not None:
            return Failure(check.name, found)
    return None


def _all_finite(parts: Parts) -> str | None:
    return some("with NaN or infinity", [name for name, tensor in each(parts) if not _is_finite(tensor)])


def _second_moments_are_not_negative(parts: Parts) -> str | None:
    moments = [(name, tensor) for name, tensor in each(parts) if name.endswith("exp_avg_sq")]
    return some("below zero", [name for name, tensor in moments if tensor.numel() and bool(tensor.min() < 0)])


def _second_moments_are_there(parts: Parts) -> str | None:
    """The first is a mean of gradients whose squares the second holds: it can't be 0 where those were not."""
    tensors = dict(each(parts))
    lost = [
        name
        for name, tensor in tensors.items()
        if name.endswith("exp_avg_sq") and not tensor.any()
        if _is_there(tensors.get(name[: -len("_sq")]), least_squarable(tensor.dtype))
    ]
    return some("all 0 where the first moment is not", lost)


def _is_there(first: Tensor | None, least: float) -> bool:
    return first is not None and bool((first.abs() > least).any())


def least_squarable(dtype: torch.dtype) -> float:
    """A first moment below this may come from gradients whose squares this type rounds to 0.

    A step adds a share 1 - beta2 of a square, which is 1e-4 or more, and is lost where that is below the
    type's least normal number: 1e-17 for float32 and bfloat16, and 0.8 for float16, whose second moments may
    well be 0 throughout.
    """
    return (torch.finfo(dtype).tiny / 1e-4) ** 0.5 if dtype.is_floating_point else 0.0


VALUE_CHECKS: Sequence[ValueCheck] = (
    ValueCheck("finite", "A NaN that is kept comes back with every resume.", _all_finite),
    ValueCheck(
        "second_moments", "Adam takes their root: below zero makes NaN.", _second_moments_are_not_negative
    ),
    ValueCheck(
        "forgotten_moments",
        "Adam divides by their root: 0 beside a first moment moves 70 times too far.",
        _second_moments_are_there,
    ),
)


def _is_finite(tensor: Tensor) -> bool:
    """In its own dtype, in one pass without a mask: the extremes of a tensor with a NaN are NaN."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    low, high = torch.aminmax(tensor)
    return bool(torch.isfinite(low)) and bool(torch.isfinite(high))
