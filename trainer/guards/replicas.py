"""Replicas that are no longer equal: processes that train one model together must hold the same bits."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from shared.events import Finding, Severity
from trainer.guards.base import StepView, every, finding
from trainer.guards.invariants import fingerprint
from trainer.section import Section

_NAMED = 3


class ReplicasConfig(Section):
    compare_every: int = Field(100, ge=1, description="Compare the ranks' tensors this often, in steps.")


class Replicas:
    """Compares weights, buffers and averages between ranks by fingerprint, and names who differs in what.

    It compares on its schedule and before anything is kept, so a snapshot is the same on all ranks. What it
    finds is critical, and found by all ranks alike: of two that differ nobody can tell which one is right.

    One device read for each comparison, and one integer for each tensor and rank over the network.

    Args:
        gather: equally long int64 tensors of all ranks, (world, N); None in a run of one process.
        is_common: whether a tensor must be equal on all ranks; those that are sharded are not.
    """

    name = "replicas"
    scans = False  # all ranks must look at the same time, and an alarm to scan may be one rank's own

    def __init__(
        self,
        config: ReplicasConfig | None = None,
        gather: Callable[[Tensor], Tensor] | None = None,
        is_common: Callable[[Tensor], bool] = lambda tensor: True,
    ) -> None:
        self._due = every((config or ReplicasConfig()).compare_every)
        self._gather, self._is_common = gather, is_common
        self._compared = -1

    def inspect(self, view: StepView) -> Finding | None:
        iteration = view.vitals.iteration
        is_due = view.alarm or self._due(iteration)
        if self._gather is None or not is_due or iteration == self._compared:
            return None
        self._compared = iteration
        tensors = {name: tensor for name, tensor in _kept(view) if self._is_common(tensor)}
        prints = torch.stack([fingerprint(tensor) for tensor in tensors.values()]).cpu()
        found = self._gather(prints)
        usual = found.mode(dim=0).values if len(found) > 2 else found[0]
        differing = (found != usual).nonzero().tolist()
        if not differing:
            return None
        return self._tell(view, differing, list(tensors))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._compared = -1

    def _tell(self, view: StepView, differing: list[list[int]], names: list[str]) -> Finding:
        named = "; ".join(f"rank {rank} in {names[place]}" for rank, place in differing[:_NAMED])
        more = f"; and {len(differing) - _NAMED} more" if len(differing) > _NAMED else ""
        rank, place = differing[0]
        message = f"the ranks hold different states: {named}{more}"
        return finding(
            self.name,
            view,
            Severity.CRITICAL,
            message,
            rank=float(rank),
            tensor=names[place],
            tensors=float(len(differing)),
        )


def _kept(view: StepView) -> Iterator[tuple[str, Tensor]]:
    model = view.watched.model
    yield from model.named_parameters()
    yield from model.named_buffers()
    for name, average in (view.watched.ema or {}).items():
        yield f"EMA {name}", average
