"""Everything that must return together when a run goes back, all of it or nothing."""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer.checkpoint.layout import match
from trainer.ema import Ema, no_average
from trainer.foreign import ForeignData
from trainer.guards.base import Watched
from trainer.guards.loss_scale import LossScale
from trainer.guards.panel import Panel
from trainer.guards.vitals import Meter
from trainer.moments import Moments, Number, count_by_objective, owners_of
from trainer.per_rank import (
    memory_of_all,
    own_memory,
    own_random,
    own_random_facts,
    random_facts_of_all,
    random_of_all,
)
from trainer.random_states import RandomState, in_words, random_tensors
from trainer.ranks import Ranks
from trainer.section import Section
from trainer.sharding import part_for, whole

Parts = Mapping[str, Mapping[str, Tensor]]


class Facts(Section):
    """What of a state is not a tensor; JSON-able."""

    step: int
    iteration: int
    applied: dict[str, int]
    loss_scales: dict[str, list[float]] = Field(default_factory=dict)
    averaged: int | None = None
    """Updates that the average has taken in; a state of an earlier version does not tell."""
    host_moments: dict[str, Number] = Field(default_factory=dict)
    """What an optimizer keeps beside its tensors: a count of its own, say."""
    with_moments: dict[str, int] = Field(default_factory=dict)
    """Of how many parameters each optimizer has moments; a state of an earlier version does not tell."""
    data: dict[str, Any]
    guards: dict[str, Any]
    guards_of_others: list[dict[str, Any]] = Field(default_factory=list)
    """Of each further rank: the memories that differ from the first one's."""
    random: dict[str, Any]

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> "Facts":
        """Those among what a checkpoint tells, which is more. Raises ValidationError, a ValueError."""
        return cls.model_validate({key: value for key, value in told.items() if key in cls.model_fields})


class Positioned(Protocol):
    """A source of batches whose position can be saved and set."""

    @property
    def refused(self) -> Sequence[tuple[str, str]]:
        """Items that were left out so far, and why."""

    def take_remarks(self) -> Sequence[tuple[str, str, int]]:
        """What was odd since the last call: an item's id or "", in words, and the how manieth it is."""

    def next_batch(self) -> Mapping[str, Any]:
        """The batch at the position, which then moves on by one."""

    def skip(self, num_batches: int) -> None:
        """Move on by this many batches without loading them."""

    def quarantine(self, ids: Iterable[str]) -> None:
        """Leave these items out from now on."""

    def state_dict(self) -> dict[str, Any]:
        """The position, JSON-able."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to that position; an error, and no move, if it belongs to other data."""

    def close(self) -> None:
        """Let go of what loads; the next batch starts it anew."""


@dataclass
class TrainState:
    """Model with buffers, moments, average, counters, random states, data position and the guards' memory.

    ``iteration`` counts batches taken, ``step`` applied updates; a refused batch moves the first only.
    Where ``ranks`` are many they hold the same but for their random states and what their guards remember, of
    which each keeps all; so ``parts`` and ``facts`` are for all ranks together.
    """

    model: nn.Module
    optimizers: Mapping[str, Optimizer]
    meters: Mapping[str, Meter]
    panel: Panel
    ema: Ema = field(default_factory=no_average)
    loader: Positioned = field(default_factory=ForeignData)
    step: int = 0
    iteration: int = 0
    ranks: Ranks = field(default_factory=Ranks)

    @cached_property
    def watched(self) -> Watched:
        """What the guards look at."""
        applied = {name: meter.applied for name, meter in self.meters.items()}
        averaged = self._averaged if self.ema.tensors else None
        return Watched(self.model, self.optimizers, self.ema.tensors, applied, averaged)

    def rebase(self) -> None:
        """It was set from outside (start, resume, rollback): guards that compare start from here."""
        self.panel.rebase(self.watched)

    def parts(self) -> dict[str, dict[str, Tensor]]:
        """The live tensors by part and name; the caller copies them."""
        own = self._own_parts()
        parts = {part: {name: whole(tensor) for name, tensor in own[part].items()} for part in own}
        return {**parts, "random": random_of_all(self.ranks, own["random"])}

    def facts(self) -> dict[str, Any]:
        """All that is not a tensor. Reads the device's counters: for save points, not for every step."""
        guards, guards_of_others = memory_of_all(self.ranks, self.panel.state_dict())
        return Facts(
            step=self.step,
            iteration=self.iteration,
            applied={name: int(meter.applied) for name, meter in self.meters.items()},
            loss_scales={name: scale.state_dict() for name, scale in self._loss_scales()},
            averaged=int(self.ema.taken),
            host_moments=self._moments.on_host(),
            with_moments=count_by_objective(self._moments.owners()),
            data=self.loader.state_dict(),
            guards=guards,
            guards_of_others=guards_of_others,
            random=random_facts_of_all(self.ranks),
        ).model_dump()

    def reset_moments(self, module: str) -> None:
        """Zero the moments of this module's own parameters, as at the first step."""
        self._moments.zero(module)

    def restore(self, parts: Parts, facts: Mapping[str, Any]) -> None:
        """Become the state that ``parts`` and ``facts`` hold.

        Names, shapes and types of all tensors are compared first, both ways; then come the data position and
        the guards' memory, which can refuse; the tensors, which can't, are last. So nothing has changed when
        an error is raised. A parameter of whose moments nothing was saved had none then: it got its first
        gradient later, and has none again. How many had some was written down, so that none can get lost. An
        optimizer that has made none yet, as in a new process, gets those that were saved.

        Raises:
            ValueError: tensors differ in name, shape or type, or position or memory belong to something else.
        """
        live = self._own_parts()
        kept = {**parts.get("optimizer", {}), **facts.get("host_moments", {})}
        with_moments = owners_of(kept)
        without = self._moments.owners() - with_moments
        live["optimizer"] = {
            name: one for name, one in live["optimizer"].items() if not owners_of([name]) & without
        }
        missing = list(self._moments.missing(kept))
        for new in missing:
            live["optimizer"].update(new.tensors())
        parts = {**parts, "random": own_random(self.ranks, parts.get("random", {}), live["random"])}
        saved = Facts.of(facts)
        self._refuse_unfit(live, parts, saved, with_moments)
        random_state = RandomState.of(parts["random"], own_random_facts(self.ranks, saved.random))
        self._restore_memory(saved)
        self._moments.forget(without)
        for new in missing:
            new.give()
        _copy(parts, live)
        self._moments.set_on_host(saved.host_moments)
        self.model.zero_grad(set_to_none=True)
        for name, meter in self.meters.items():
            meter.restore(saved.applied[name], saved.iteration)
        self.ema.taken.copy_(self._averaged()[1])
        if saved.averaged is not None:
            self.ema.taken.fill_(saved.averaged)
        for name, scale in self._loss_scales():
            if name in saved.loss_scales:  # a run that was float32 until now begins with a new one
                scale.load_state_dict(saved.loss_scales[name])
        self.step, self.iteration = saved.step, saved.iteration
        random_state.set(self._device)

    def _refuse_unfit(self, live: Parts, parts: Parts, saved: Facts, with_moments: Set[str]) -> None:
        """Raises ``ValueError``: what was saved is not all there, or not of this model."""
        difference = match(live, parts)
        if difference is not None:
            raise ValueError(f"the saved state does not fit this model: {difference}")
        if saved.applied.keys() != self.meters.keys():
            raise ValueError(
                f"it counts updates of {list(saved.applied)}, this model has {list(self.meters)}"
            )
        found = count_by_objective(with_moments)
        if saved.with_moments not in ({}, found):
            raise ValueError(f"it had moments of {saved.with_moments} parameters, and holds those of {found}")

    def held_moments(self) -> dict[str, dict[Tensor, Any]]:
        """What each optimizer holds of each parameter, not copied: for ``hold_moments``."""
        return {objective: dict(optimizer.state) for objective, optimizer in self.optimizers.items()}

    def hold_moments(self, held: Mapping[str, Mapping[Tensor, Any]]) -> None:
        """Take back what ``restore`` has let go of since, so that a state that has it fits again."""
        for objective, optimizer in self.optimizers.items():
            optimizer.state.update(held[objective])

    def _own_parts(self) -> dict[str, dict[str, Tensor]]:
        return {
            "model": dict(self.model.state_dict()),
            "ema": dict(self.ema.tensors),
            "optimizer": self._moments.tensors(),
            "random": random_tensors(self._device),
        }

    def _averaged(self) -> tuple[Tensor, Tensor]:
        """Updates that the average has taken in, and those that were due."""
        return self.ema.taken, self.ema.due_of(next(iter(self.meters.values())).applied)

    @property
    def _moments(self) -> Moments:
        return Moments(self.model, self.optimizers)

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _loss_scales(self) -> Iterator[tuple[str, LossScale]]:
        for name, meter in self.meters.items():
            if meter.loss_scale is not None:
                yield name, meter.loss_scale

    def _restore_memory(self, saved: Facts) -> None:
        position, memory = self.loader.state_dict(), self.panel.state_dict()
        try:
            self.loader.load_state_dict(saved.data)
            self.panel.load_state_dict(own_memory(self.ranks, saved.guards, saved.guards_of_others))
        except Exception as error:  # whatever a guard makes of another version's memory
            self.loader.load_state_dict(position)
            self.panel.load_state_dict(memory)
            raise ValueError(f"position or memory can't be taken over: {in_words(error)}") from error


def _copy(source: Parts, into: Parts) -> None:
    with torch.no_grad():
        for part, tensors in into.items():
            for name, tensor in tensors.items():
                tensor.copy_(part_for(tensor, source[part][name]))
