"""Faults of a checkpoint that is whole, with right hashes, and holds what no run may take over."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trainer.checkpoint import Record, list_records, read, write
from trainer.checkpoint.durable import remove_folder, replace_file
from trainer.checkpoint.record import STATUS_FILE
from trainer.drill.faults import Fault, Ground, first_life, passed_over
from trainer.drill.judge import Sighting
from trainer.loop import Loop
from trainer.passes import Phase

Parts = dict[str, dict[str, Tensor]]
Change = Callable[[Parts, dict[str, Any], Parts], None]
"""Changes the newest checkpoint's parts and facts; the third are the parts of the one before it."""


@dataclass
class Forged:
    """R04 to R10 and others: the newest checkpoint is written anew with a change, as a broken tool would.

    Its hashes are right, so only what it holds can speak against it.
    """

    at_step: int
    change: Change
    struck_at: int | None = field(default=None, init=False)
    sighted: Sighting | None = field(default=None, init=False)
    broke: list[str] = field(default_factory=list, init=False)

    def inject(self, ground: Ground) -> None:
        """Forge it, and go on."""
        first_life(ground, self.at_step)
        newest, before = list_records(ground.folder / "checkpoints")[:2]
        self.struck_at = newest.step
        forge(newest, self.change, read(before.path).parts)
        ground.train([Fault(0, Phase.FETCH, self._look)])

    def _look(self, loop: Loop) -> None:
        assert self.struck_at is not None
        self.sighted = passed_over(loop, self.struck_at)
        if self.sighted is None and loop.state.step >= self.struck_at:
            self.broke.append("the forged checkpoint was taken over")


def forge(record: Record, change: Change, before: Any) -> None:
    """Write the checkpoint anew, changed, as the program itself would have sealed it."""
    stored = read(record.path)
    parts: Parts = {part: dict(tensors) for part, tensors in stored.parts.items()}
    facts = dict(stored.facts)
    change(parts, facts, before)
    remove_folder(record.path)
    about = {"step": record.step, "attempt": record.attempt, "probe_loss": record.probe_loss}
    write(record.path, parts, facts, **about)  # type: ignore[arg-type]
    replace_file(record.path / STATUS_FILE, record.seal())


def statistic_is_nan(parts: Parts, facts: dict[str, Any], before: Parts) -> None:
    """R04: one element of one BatchNorm variance, and no parameter."""
    _first(parts["model"], "running_var").view(-1)[0] = math.nan


def average_is_nan(parts: Parts, facts: dict[str, Any], before: Parts) -> None:
    """R05: the model is clean, its average is not."""
    next(iter(parts["ema"].values())).view(-1)[0] = math.nan


def average_is_old(parts: Parts, facts: dict[str, Any], before: Parts) -> None:
    """R05, the quiet kind: the average of another time."""
    parts["ema"] = dict(before["ema"])


def moment_is_nan(parts: Parts, facts: dict[str, Any], before: Parts) -> None:
    """R06: in exp_avg of one tensor."""
    _first(parts["optimizer"], "exp_avg").view(-1)[0] = math.nan


def second_moments_times(factor: float) -> Change:
    """R07: all of exp_avg_sq; 0 forgets it, -1 turns it below zero."""

    def change(parts: Parts, facts: dict[str, Any], before: Parts) -> None:
        for name, tensor in parts["optimizer"].items():
            if name.endswith("exp_avg_sq"):
                tensor.mul_(factor)

    return change


def moments_are_gone(parts: Parts, facts: dict[str, Any], before: Parts) -> None:
    """R08: a file of weights without the optimizer's part, as upstream's ``enable_resume: False`` leaves."""
    parts["optimizer"] = {}


def moments_are_shifted(parts: Parts, facts: dict[str, Any], before: Parts) -> None:
    """R08: each parameter gets the moments of the one before it, as when one was added or removed."""
    names = [name for name in parts["optimizer"] if name.endswith("exp_avg")]
    tensors = [parts["optimizer"][name] for name in names]
    parts["optimizer"] |= dict(zip(names, [tensors[-1], *tensors[:-1]], strict=True))


def a_moment_is_missing(parts: Parts, facts: dict[str, Any], before: Parts) -> None:
    """R08: one parameter fewer."""
    name = next(name for name in parts["optimizer"] if name.endswith("exp_avg"))
    del parts["optimizer"][name]


def scale_factor_is(value: float) -> Change:
    """R10: the constant that scales the latents, in the file."""

    def change(parts: Parts, facts: dict[str, Any], before: Parts) -> None:
        parts["model"]["scale_factor"] = torch.tensor(value)

    return change


def scale_factor_is_double(parts: Parts, facts: dict[str, Any], before: Parts) -> None:
    """R10: Python's number instead of the model's."""
    parts["model"]["scale_factor"] = parts["model"]["scale_factor"].double()


def scale_factor_is_absent(parts: Parts, facts: dict[str, Any], before: Parts) -> None:
    """R10."""
    del parts["model"]["scale_factor"]


def times_embedding_is_absent(parts: Parts, facts: dict[str, Any], before: Parts) -> None:
    """R20: the frequencies of the time embedding, which a lax load would draw anew."""
    name = next(name for name in parts["model"] if "time" in name)
    del parts["model"][name]


def step_is_absent(parts: Parts, facts: dict[str, Any], before: Parts) -> None:
    """R18: a file that never meant to be resumed from."""
    del facts["step"]


def weights_are_half(parts: Parts, facts: dict[str, Any], before: Parts) -> None:
    """R26: float16 copies of all weights."""
    parts["model"] = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in parts["model"].items()
    }


def _first(tensors: dict[str, Tensor], ending: str) -> Tensor:
    return next(tensor for name, tensor in tensors.items() if name.endswith(ending))
