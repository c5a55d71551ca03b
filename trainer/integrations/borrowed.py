"""Somebody else's optimizer, borrowed for a training: refusing, clipping and easing in its ``step()``."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.optim import Optimizer

from trainer.guards.base import PlainLoss
from trainer.guards.host_meter import HostMeter
from trainer.guards.limits import Limits
from trainer.integrations.foreign import meter_for
from trainer.integrations.rates import LentRates


class Borrowed:
    """Measures each update of the optimizer, decides on it, and knows where in an update its owner is.

    Args:
        applied: called right after each ``optimizer.step()`` of a measured update, refused or not.

    Raises:
        ConfigError: the optimizer evaluates the loss by itself.
    """

    def __init__(
        self,
        objective: str,
        model: nn.Module,
        optimizer: Optimizer,
        max_norm: float,
        limits: Limits,
        applied: Callable[[], None],
    ) -> None:
        self.meter = meter_for(objective, model, optimizer, max_norm, limits)
        self._model, self._tell = model, applied
        self._rates = LentRates(optimizer)
        self.eased = self._rates.eased
        self._loss: Tensor | None = None
        self.is_amid_forward = self.is_amid_update = False
        self._hook = optimizer.register_step_post_hook(self._applied)

    def protect(self) -> None:
        """A forward pass begins: remember the buffers."""
        self._loss = None
        self.meter.protect()
        self.is_amid_forward = True

    def note(self, loss: Tensor, share: float) -> None:
        """Add up the pieces' losses, on the device."""
        part = loss.detach() * share
        self._loss = part if self._loss is None else self._loss + part

    def decide(self) -> None:
        """Arm ``optimizer.step()``; for a batch that the framework left out there is nothing to decide."""
        self.is_amid_forward = False
        if self._loss is None:
            return
        self.is_amid_update = True
        self.meter.measure(PlainLoss(self._loss))
        if isinstance(self.meter, HostMeter) and not self.meter.allows():
            for parameter in self._model.parameters():
                parameter.grad = None
        self._rates.lend()

    def is_judged(self) -> None:
        """What follows from the update is done: the state is whole until the next is decided."""
        self.is_amid_update = False

    def went_back(self) -> None:
        """The buffers are those of an earlier state, and what a forward pass had before it is no more."""
        self.is_amid_forward = False

    def undo_forward(self) -> None:
        """No update will follow a forward pass that has begun: the buffers are what they were before it."""
        if self.is_amid_forward:
            self.meter.undo_forward()

    def give_back(self) -> None:
        """It is its owner's again: own rates, no hook, and nobody refuses or clips."""
        self._rates.take_back()
        self._hook.remove()
        self.meter.release()

    def _applied(self, *_: object) -> None:
        """Right after ``optimizer.step()``, and before any scheduler looks at the learning rate."""
        if self._loss is None:
            return
        self.meter.settle(self._rates.take_back())
        self._loss = None
        self._tell()
