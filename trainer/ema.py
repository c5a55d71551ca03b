"""An exponential moving average of a model's weights that a refused step cannot touch."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from pydantic import Field
from torch import Tensor, nn

from trainer.guards.refusal import ema_update
from trainer.section import Section


class EmaConfig(Section):
    """Horizon of the average (RadioDiff: SPEC §9)."""

    decay: float = Field(0.999, gt=0, lt=1, description="Largest weight of the past in one update.")
    start_after: int = Field(
        10_000, ge=0, description="Until this many updates it is a plain copy, in steps."
    )
    every: int = Field(10, ge=1, description="Averaged every so many steps.")


class Ema:
    """The average of all trainable parameters and floating buffers of ``model``.

    ``tensors`` maps their names in the model to the averages, each of its model tensor's shape and dtype.
    What the model never changes (frozen parameters) is left out: it equals its own average.
    """

    def __init__(self, model: nn.Module, config: EmaConfig) -> None:
        self.config = config
        self._live = averaged_tensors(model)
        self.tensors = {name: tensor.detach().clone() for name, tensor in self._live.items()}

    def update(self, step: int, refused: Tensor) -> None:
        """Take in the model as it is after the update numbered ``step``, unless ``refused`` (a device bool).

        Decides on the device: no host read, and a NaN in a refused model never reaches the average.
        """
        if step % self.config.every == 0:
            share = 1.0 - self.decay_at(step)
            ema_update(list(self.tensors.values()), list(self._live.values()), share, refused)

    def decay_at(self, step: int) -> float:
        """Weight of the past: min(decay, 1 - (1 + e)^(-2/3)), e steps after the start; 0 copies."""
        elapsed = step - self.config.start_after - 1
        if elapsed <= 0:
            return 0.0
        return float(min(self.config.decay, 1 - (1 + elapsed) ** (-2 / 3)))

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
