"""An exponential moving average of a model's weights that a refused step cannot touch."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from pydantic import Field
from torch import Tensor, nn

from trainer.guards.base import own_part
from trainer.guards.refusal import ema_update
from trainer.section import Section


class EmaConfig(Section):
    """Horizon of the average. Updates are numbered from 0 on here, as in SPEC §9."""

    decay: float = Field(0.999, gt=0, lt=1, description="Largest weight of the past in one update.")
    start_after: int = Field(10_000, ge=0, description="Up to this update it is a plain copy.")
    every: int = Field(10, ge=1, description="Averaged at update 0, and at every so many from there.")


class Ema:
    """The average of all trainable parameters and floating buffers of ``model``.

    ``tensors`` maps their names in the model to the averages, each of its model tensor's shape and dtype.
    What the model never changes (frozen parameters) is left out: it equals its own average.
    """

    def __init__(self, model: nn.Module, config: EmaConfig) -> None:
        self.config = config
        self._live = averaged_tensors(model)
        self.tensors = {name: tensor.detach().clone() for name, tensor in self._live.items()}
        averaged = next(iter(self.tensors.values()), torch.empty(0))  # nothing may be averaged
        self.taken = torch.zeros((), dtype=torch.int64, device=averaged.device)
        """Updates taken in so far, counted where they are: on the device."""

    def due_of(self, applied: Tensor) -> Tensor:
        """How many of the first ``applied`` updates an average takes in that misses none."""
        return (applied + self.config.every - 1) // self.config.every

    def update(self, possible: range, number: Tensor, refused: Tensor) -> None:
        """Take in the model as it is after update ``number``, unless it is not due or was ``refused``.

        Decides on the device: no host read, and a NaN in a refused model never reaches the average.

        Args:
            possible: what ``number`` can be. The host does not know it while earlier updates are under way,
                since each of them may have been refused; but if none of these is due, nothing is launched.
            number: updates applied before this one, a whole number on the device.
            refused: a bool on the device.
        """
        if any(one % self.config.every == 0 for one in possible):
            skipped = refused | (number % self.config.every != 0)
            share = self.share_at(number)
            averages, live = ([own_part(one) for one in ts.values()] for ts in (self.tensors, self._live))
            ema_update(averages, live, share, skipped)
            self.taken.add_(~skipped)

    def share_at(self, number: Tensor) -> Tensor:
        """Weight of the live model at update ``number``: 1 copies. SPEC §9's 1 - decay, float32.

        decay = min(beta, 1 - (1 + e)^(-2/3)), e updates after ``start_after``; the first one due there copies
        as well.
        """
        after, every = self.config.start_after, self.config.every
        last_copy = (after // every + 1) * every
        elapsed = (number - after).clamp_min(0).double()
        share = (1 + elapsed).pow(-2 / 3).clamp_min(1 - self.config.decay)
        return torch.where(number <= last_copy, torch.ones_like(share), share).float()

    @contextmanager
    def in_place_of(self, model: nn.Module) -> Iterator[None]:
        """The model carries the average within this block, and its own weights again after it."""
        live = averaged_tensors(model)
        own = {name: tensor.detach().clone() for name, tensor in live.items()}
        _copy(live, self.tensors)
        try:
            yield
        finally:
            _copy(live, own)


def no_average() -> Ema:
    """An average over nothing."""
    return Ema(nn.Module(), EmaConfig())


def averaged_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of ``model`` that an average follows, by name."""
    return {
        name: tensor
        for name, tensor in model.state_dict(keep_vars=True).items()
        if tensor.is_floating_point() and (tensor.requires_grad or not isinstance(tensor, nn.Parameter))
    }


def _copy(into: dict[str, Tensor], source: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in into.items():
            tensor.copy_(source[name])
