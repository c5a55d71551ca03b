"""What a companion meets: processes, optimizer and folder, to use or to refuse, and the last error."""

from typing import Literal

import torch
from torch import nn
from torch.optim import LBFGS, Optimizer

from shared.base import utc_now
from shared.exchange import RunSpec
from trainer.errors import ConfigError
from trainer.guards.host_meter import HostMeter
from trainer.guards.limits import Limits
from trainer.guards.refusal import check_refusable, running_statistics
from trainer.guards.vitals import Meter
from trainer.integrations.settings import CompanionConfig
from trainer.link.client import Link
from trainer.record import RunRecord
from trainer.reporting import Reporter

Ending = Literal["finished", "stopped", "failed"]


def refuse_several_processes() -> None:
    """Raises ``ConfigError`` if others train along with this one."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        world = distributed.get_world_size()
        if world > 1:
            raise ConfigError(
                f"{world} processes train together, and a companion decides for one alone; "
                "several ranks are guarded by python -m trainer only"
            )


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


def reporter_of(config: CompanionConfig, framework: str, total_steps: int | None) -> Reporter:
    """What the run reports through, on the record in its folder, which is made if it is not there.

    Raises:
        ConfigError: the record can't be read.
    """
    config.folder.mkdir(parents=True, exist_ok=True)
    path = config.folder / "record.json"
    try:
        record = RunRecord.take_up(path)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    spec = RunSpec(
        project=config.project,
        config={"framework": framework, **config.model_dump(mode="json")},
        total_steps=total_steps,
        checkpoint_interval_steps=config.recovery.checkpoint_every,
        started_at=utc_now(),
        identity=record.identity,
    )
    link = Link(config.link, config.run, spec, config.folder / "spool")
    return Reporter(config.run, link, record, path)


def ended_by(error: BaseException) -> tuple[Ending, str]:
    """How a training ends by this error, and in which words."""
    if isinstance(error, KeyboardInterrupt):
        return "stopped", "interrupted, as by Ctrl-C"
    return "failed", str(error) or type(error).__name__
