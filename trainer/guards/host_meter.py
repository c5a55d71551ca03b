"""A meter for every optimizer: where the kernel can't refuse, the host reads the verdict."""

import torch
from torch.optim import Optimizer

from trainer.guards.vitals import Meter


class HostMeter(Meter):
    """Like ``Meter``, for optimizers that are not fused (foreach, RMSprop, Adafactor, Muon, your own).

    The price is one host read a step. A refused update is never called for, so nothing has to be put back
    but the buffers; an applied one gets gradients that are divided by clip and loss scale already. Call
    ``step`` in place of ``optimizer.step()``, which nothing would stop. An optimizer that wants a closure
    (LBFGS) evaluates the loss itself, so no meter can speak for it.
    """

    def _take_over(self, optimizer: Optimizer) -> None:
        """Nothing: the kernels are left alone."""

    def allows(self) -> bool:
        """Whether the update may be applied; then its gradients are ready for it. Waits for the device."""
        refused, scale = torch.stack((self._found_inf, self._grad_scale)).tolist()
        if not refused and scale != 1:
            torch._foreach_div_([p.grad for p in self._parameters if p.grad is not None], scale)
        return not refused

    def step(self) -> None:
        """Apply the update, unless it is refused: in place of ``optimizer.step()``. Waits for the device."""
        if self.allows():
            super().step()
