"""The factor on a float16 loss: on the device, with a floor, and part of what returns with the run.

Gradients below 6e-8 are 0 in float16, so the loss is multiplied before backward and the gradient divided
after it. torch's GradScaler has no floor: 166 overflows in a row take its scale to 0, and then the next
healthy step divides by it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

GROWTH, BACKOFF = 2.0, 0.5
ZEROS_EVERY = 100
"""Steps between counts of the zeros in the gradients."""
LARGEST = 2.0**24  # float32 norms of so scaled gradients are far from overflowing


class LossScale:
    """Halved by an overflow, doubled after ``growth_every`` clean steps, never below ``floor``.

    An overflow is a gradient that is not finite though the loss is: by its scale, as long as that is above
    the floor. Such a step is skipped and nobody's fault. At the floor the scale is not to blame any more, and
    the gradient is a finding like any other.

        losses.total.backward(gradient=loss_scale.scale)  # seeds backward: the loss itself can't overflow
        meter.measure(losses)                             # Meter(..., loss_scale=loss_scale) does the rest

    ``scale`` (float32) and ``clean`` (int32, clean steps since the last change) are scalars on the device;
    nothing here reads them but ``state_dict``. Every ``zeros_every`` steps a meter counts the zeros, too.

    Raises:
        ValueError: a floor below 1 (at less the scale makes underflow worse), or a start outside floor and
            2^24.
    """

    def __init__(
        self,
        device: torch.device | str = "cpu",
        *,
        start: float = 65536.0,
        growth_every: int = 2000,
        floor: float = 1.0,
        zeros_every: int = ZEROS_EVERY,
    ) -> None:
        if not 1 <= floor <= start <= LARGEST:
            raise ValueError(
                f"a loss scale from {start} with floor {floor}; give 1 <= floor <= start <= {LARGEST:.0f}"
            )
        self.floor, self.growth_every, self.zeros_every = floor, growth_every, zeros_every
        self.scale = torch.tensor(start, device=device)
        self.clean = torch.zeros((), dtype=torch.int32, device=device)

    def is_overflow(self, loss: Tensor, norm: Tensor) -> Tensor:
        """Whether the scale is to blame for a norm that is not finite: a bool on the device."""
        return torch.isfinite(loss) & ~torch.isfinite(norm) & (self.scale > self.floor)

    def update(self, overflow: Tensor, norm: Tensor) -> None:
        """After the step: halve or, in time, double. What was not finite for another reason is not clean."""
        torch._amp_update_scale_(
            self.scale, self.clean, overflow.to(torch.float32), GROWTH, BACKOFF, self.growth_every
        )
        self.scale.clamp_(self.floor, LARGEST)
        self.clean.mul_(torch.isfinite(norm))

    def state_dict(self) -> list[float]:
        """Scale and clean steps, JSON-able. Reads the device: for save points."""
        return [float(self.scale), int(self.clean)]

    def load_state_dict(self, state: Sequence[float]) -> None:
        """Become that of a saved run."""
        scale, clean = state
        self.scale.fill_(scale)
        self.clean.fill_(int(clean))


def share_of_zeros(grads: Sequence[Tensor]) -> Tensor:
    """Elements that are exactly 0, of all in those gradients that are not 0 throughout; on the device.

    A tensor of zeros took no part in the step (a branch that was left out, say); zeros among other numbers
    are what float16 makes of the small ones. One pass over the gradients: for every so many steps.
    """
    counts = torch.stack([torch.count_nonzero(grad) for grad in grads])
    sizes = torch.stack([counts.new_full((), grad.numel()) for grad in grads])
    return 1 - counts.sum() / (sizes * (counts > 0)).sum()
