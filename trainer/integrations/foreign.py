"""What our recovery expects of a training, for one whose data and schedule belong to a framework."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from trainer.ema import Ema, EmaConfig


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
