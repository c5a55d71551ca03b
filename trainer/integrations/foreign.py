"""What a companion makes of somebody else's optimizer, and of its own folder."""

from pathlib import Path

from torch import nn
from torch.optim import LBFGS, Optimizer

from trainer.errors import ConfigError
from trainer.guards.host_meter import HostMeter
from trainer.guards.limits import Limits
from trainer.guards.refusal import check_refusable, running_statistics
from trainer.guards.vitals import Meter
from trainer.record import RunRecord


def meter_for(
    objective: str, model: nn.Module, optimizer: Optimizer, max_norm: float, limits: Limits
) -> Meter:
    """A meter that refuses on the device where the optimizer can, and on the host where it can't.

    Raises:
        ConfigError: the optimizer evaluates the loss by itself.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    buffers = list(running_statistics(model).values())
    try:
        check_refusable(optimizer, objective)
    except ValueError:
        if isinstance(optimizer, LBFGS):
            raise ConfigError(
                "LBFGS evaluates the loss by itself, so no update of it can be judged"
            ) from None
        return HostMeter(objective, optimizer, parameters, max_norm=max_norm, buffers=buffers, limits=limits)
    return Meter(objective, optimizer, parameters, max_norm=max_norm, buffers=buffers, limits=limits)


def record_in(folder: Path) -> RunRecord:
    """What the folder tells of the run so far; the folder is made if it is not there.

    Raises:
        ConfigError: it can't be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return RunRecord.take_up(folder / "record.json")
    except ValueError as error:
        raise ConfigError(str(error)) from error
