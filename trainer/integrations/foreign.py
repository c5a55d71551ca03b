"""What our recovery expects of a training, for one whose data and schedule belong to a framework."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from trainer.ema import Ema, EmaConfig
from trainer.errors import ConfigError
from trainer.guards.host_meter import HostMeter
from trainer.guards.limits import Limits
from trainer.guards.refusal import check_refusable, running_statistics
from trainer.guards.vitals import Meter
from trainer.record import RunRecord


@dataclass(frozen=True)
class ForeignLosses:
    """A step's loss and nothing more: the framework tells neither parts nor samples."""

    total: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    per_sample: Tensor | None = None
    times: Tensor | None = None


class ForeignData:
    """Batches that the framework serves: no position of theirs is saved, so after a rollback they go on."""

    refused: Sequence[tuple[str, str]] = ()

    def take_remarks(self) -> Sequence[tuple[str, str, int]]:
        return ()

    def next_batch(self) -> Mapping[str, Any]:
        raise NotImplementedError("the framework takes its batches itself")

    def skip(self, num_batches: int) -> None:
        """Nothing: the data behind a fault have passed already."""

    def quarantine(self, ids: Iterable[str]) -> None:
        """Nothing: a companion names no samples."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing was saved."""

    def close(self) -> None:
        """Nothing is held."""


def no_average() -> Ema:
    """An average over nothing: the framework keeps its own, if any."""
    return Ema(nn.Module(), EmaConfig())


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
