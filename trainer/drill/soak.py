"""The soak: one long training with a random fault every so often, against a twin that nothing happens to.

    python -m trainer drill soak --steps 5000 --every 500 [--seed N]

Faults are drawn from the catalogue's that heal and need nothing but a running loop. The ladder's budget is
for a run that goes wrong by itself, eight rollbacks in all; here it is raised to what is injected, or the
soak would end by design. For the same reason its memory is no longer than two faults.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from trainer.config import Config
from trainer.drill.catalogue import CATALOGUE
from trainer.drill.exercise import Drill
from trainer.drill.faults import Fault
from trainer.drill.ground import Arena, autoencoder_of, changed, clear, inside, lay
from trainer.drill.judge import Facts, first_sighting, healed_by
from trainer.errors import ConfigError
from trainer.record import RunRecord

TOLERANCE = 0.02
"""Of the final loss, relative to the twin's."""
_LEAST_EVERY = 20
_LEARNED = 64
"""Steps in which guards learn what is usual."""


class Wave(BaseModel):
    """One fault of a soak, and what became of it."""

    id: str
    name: str
    struck_at: int | None
    by: str = ""
    steps_late: int | None = None
    healed_by: str = ""


class Soaked(BaseModel):
    """How a soak ended."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    steps: int
    waves: list[Wave]
    ended: str
    final_loss: float
    twin_loss: float
    fell_short: list[str]

    def in_words(self) -> str:
        """A line for each fault, and the end."""
        lines = [
            f"step {one.struck_at:>6}  {one.id} {one.name:<26}{one.by or 'unseen':<14}{one.healed_by}"
            for one in self.waves
        ]
        difference = self.final_loss / self.twin_loss - 1
        end = f"{len(self.waves)} faults in {self.steps} steps: {self.ended}, final loss {difference:+.2%} "
        return "\n".join([*lines, f"{end}of the twin's", *(f"fell short: {one}" for one in self.fell_short)])


class _Planned(NamedTuple):
    drill: Drill
    fault: Fault


def soak(config: Config, steps: int, every: int, seed: int) -> Soaked:
    """Train both, inject, and judge.

    Args:
        config: what is trained; its folder is emptied of an earlier soak.
        every: steps between two faults.

    Raises:
        ConfigError: the faults would not fit between the first steps, in which guards learn, and the last.
    """
    config = changed(config, {"diffusion.training.steps": steps})
    plan = planned(steps, every, seed)
    window = min(config.recovery.ladder.window, 2 * every)
    budget = {
        "recovery.ladder.max_rollbacks": 2 * len(plan) + 8,
        "recovery.ladder.window": window,
    }
    clear(config.run.folder)
    twin = lay(config)
    arena = Arena.at(inside(changed(config, budget), "soaked"), autoencoder_of(config.run.folder))
    arena.train([one.fault for one in plan])
    record = RunRecord.load(arena.folder / "record.json")
    finished = arena.ended[-1] == "finished"
    loss = arena.final_loss() if finished else float("nan")
    waves = _waves(plan, record)
    short = [f"{one.id} {one.name} was not seen" for one in waves if not one.by]
    if not abs(loss / twin.loss - 1) <= TOLERANCE:
        short.append(f"the final loss is {loss:.5g}, the twin's {twin.loss:.5g}")
    return Soaked(
        steps=steps,
        waves=waves,
        ended=arena.ended[-1],
        final_loss=loss,
        twin_loss=twin.loss,
        fell_short=short,
    )


def candidates() -> list[Drill]:
    """Faults that heal, strike a running loop once, and need no configuration of their own."""
    return [
        one
        for one in CATALOGUE
        if one.fault is not None
        and one.soaks
        and not (one.changes or one.awaits or one.expect.means)
        and one.expect.ends == "finished"
        and isinstance(one.fault(0), Fault)
    ]


def planned(steps: int, every: int, seed: int) -> list[_Planned]:
    """Which fault strikes when: every ``every`` steps, a little off, so that no schedule is met each time."""
    chance, drills = random.Random(seed), candidates()
    if every < _LEAST_EVERY:
        raise ConfigError(f"--every {every}: a fault needs {_LEAST_EVERY} steps or more to heal")
    moments = [
        at + chance.randrange(every // 4) for at in range(max(every, _LEARNED), steps - every // 2, every)
    ]
    if not moments:
        raise ConfigError(f"--steps {steps} is too short for a fault every {every} steps; give twice as many")
    plan = []
    for at in moments:
        drill = chance.choice(drills)
        assert drill.fault is not None
        fault = drill.fault(at)
        assert isinstance(fault, Fault)
        plan.append(_Planned(drill, fault))
    return plan


def _waves(plan: Sequence[_Planned], record: RunRecord) -> list[Wave]:
    ends = [one.fault.struck_at for one in plan[1:]] + [None]
    return [_wave(one, end, record) for one, end in zip(plan, ends, strict=True)]


def _wave(planned: _Planned, end: int | None, record: RunRecord) -> Wave:
    """What was told between this strike and the next."""
    begun = planned.fault.struck_at
    if begun is None:
        return Wave(id=planned.drill.id, name=planned.drill.name, struck_at=None)

    def within(step: int) -> bool:
        return begun <= step and (end is None or step < end)

    skips = [one for one in record.skips if within(one.step)]
    between = record.model_copy(
        update={
            "skips": skips,
            "skipped_steps": len(skips),
            "findings": [one for one in record.findings if within(one.step)],
            "rollbacks": [one for one in record.rollbacks if within(one.from_step)],
        }
    )
    facts = Facts(begun, between, [], float("nan"), {})
    sighting = first_sighting(facts)
    return Wave(
        id=planned.drill.id,
        name=planned.drill.name,
        struck_at=begun,
        by=f"{sighting.place} {sighting.by}" if sighting else "",
        steps_late=sighting.step - begun if sighting else None,
        healed_by=healed_by(facts),
    )
