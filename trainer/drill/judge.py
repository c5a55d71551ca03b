"""What became of a fault: seen or not, where, by whom and how late; healed or not, and at what price."""

import math
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from shared.events import Finding
from trainer.record import RunRecord

Ending = Literal["finished", "stopped"]

_PLACES = {"data": "W", "spike": "L", "checkpoint": "C", "watchdog": "H", "panel": "L", "settings": "C"}


class Twin(BaseModel):
    """How the same training goes when nothing happens."""

    loss: float
    seconds: float
    findings: int
    hashes: dict[str, str]


class Expectation(NamedTuple):
    """What should become of a fault.

    ``places`` are where it may be seen first (W worker, P predicate on the device, L host after the step,
    S scan, C checkpoint, H heartbeat, M link to the monitor); ``late`` steps at most. None at all: it can do
    no harm here, so nobody may speak of it, and the run must end equal to the twin to the bit.
    """

    places: str
    late: int = 0
    recovery: str = "refused"
    ends: Ending = "finished"
    words: str = ""
    """Must be in what is told, or how it ended: the name of a tensor, say."""
    means: str = ""
    """The verdict where ``healed`` says too much: ``refused at load``, ``does no harm``."""


class Sighting(NamedTuple):
    """The first word about a fault."""

    place: str
    by: str
    step: int
    words: str


class Facts(NamedTuple):
    """A drill that has run."""

    struck_at: int | None
    record: RunRecord
    ended: list[str]
    final_loss: float
    hashes: Mapping[str, str]
    sighted: Sighting | None = None
    """What the fault itself saw where no guard speaks: a checkpoint passed over, a lie ignored."""
    broke: tuple[str, ...] = ()
    """What else did not hold, in the fault's own words."""


class Judgement(BaseModel):
    """One row of the table."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    id: str
    name: str
    what: str
    place: str = ""
    by: str = ""
    steps_late: int | None = None
    message: str = ""
    healed_by: str = ""
    ended: str = ""
    steps_lost: int = 0
    final_loss: float = math.nan
    twin_loss: float = math.nan
    is_equal_to_twin: bool = False
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    means: str = ""
    stops_by_design: bool = False
    idle: str = ""
    awaits: str = ""
    is_detected: bool = False
    is_healed: bool = False
    fell_short: list[str] = []

    @property
    def loss_difference(self) -> float:
        """Relative to the twin's."""
        return self.final_loss / self.twin_loss - 1


def judge(row: Judgement, facts: Facts, expected: Expectation, twin: Twin, tolerance: float) -> Judgement:
    """The row with its verdict; what fell short is said in words."""
    sighting = facts.sighted or first_sighting(facts)
    short = list(facts.broke)
    is_equal = dict(facts.hashes) == twin.hashes
    short += _about_detection(sighting, facts, expected)
    if not expected.places and not is_equal:
        short.append("the run did not end equal to the twin")
    is_detected = (sighting is not None or not expected.places) and not short
    lost = _about_healing(facts, expected, twin, tolerance)
    late = None if sighting is None else sighting.step - (facts.struck_at or 0)
    return row.model_copy(
        update={
            "place": sighting.place if sighting else "",
            "by": sighting.by if sighting else "",
            "steps_late": late,
            "message": sighting.words if sighting else "",
            "healed_by": healed_by(facts),
            "ended": "; ".join(facts.ended),
            "steps_lost": sum(one.steps_lost for one in facts.record.rollbacks),
            "final_loss": facts.final_loss,
            "twin_loss": twin.loss,
            "is_equal_to_twin": is_equal,
            "means": expected.means,
            "stops_by_design": expected.ends == "stopped",
            "is_detected": is_detected,
            "is_healed": expected.ends == "finished" and not lost and not facts.broke,
            "fell_short": short + lost,
        }
    )


def first_sighting(facts: Facts) -> Sighting | None:
    """The first word about the fault: a refused step comes before what guards say of it."""
    begun = facts.struck_at or 0
    skips = [Sighting("P", s.reason, s.step, s.reason) for s in facts.record.skips if s.step >= begun]
    told = [_of(one) for one in facts.record.findings if one.step >= begun]
    ordered = sorted([*skips, *told], key=lambda one: (one.step, one.place != "P"))
    return ordered[0] if ordered else None


def _of(finding: Finding) -> Sighting:
    is_scan = finding.guard == "nonfinite" or "problems" in finding.reading
    place = _PLACES.get(finding.guard, "S" if is_scan else "L")
    return Sighting(place, finding.guard, finding.step, finding.message)


def healed_by(facts: Facts) -> str:
    """In a few words: ``refused 2, snapshot 60→50``."""
    left_out = sum("left out" in one.message for one in facts.record.findings)
    parts = [f"left out {left_out}"] if left_out else []
    if facts.record.skipped_steps:
        parts.append(f"refused {facts.record.skipped_steps}")
    parts += [f"{one.source} {one.from_step}→{one.to_step}" for one in facts.record.rollbacks]
    return ", ".join(parts) or "nothing to heal"


def _about_detection(sighting: Sighting | None, facts: Facts, expected: Expectation) -> Iterator[str]:
    if facts.struck_at is None:
        yield "the fault did not strike"
        return
    if sighting is None:
        if expected.places:
            yield "nobody saw it"
        return
    if not expected.places:
        yield f"it can do no harm, but {sighting.by} says: {sighting.words}"
        return
    late = sighting.step - facts.struck_at
    if sighting.place not in expected.places:
        yield f"seen at {sighting.place} by {sighting.by}, and not at {'/'.join(expected.places)}"
    if late > expected.late:
        yield f"seen {late} steps late, {expected.late} are allowed"
    told = [*(one.message for one in facts.record.findings), *facts.ended, sighting.words]
    if not any(expected.words in one for one in told):
        yield f"nothing told names {expected.words!r}"


def _about_healing(facts: Facts, expected: Expectation, twin: Twin, tolerance: float) -> list[str]:
    ended = facts.ended[-1] if facts.ended else "nothing ran"
    if expected.ends == "stopped":
        stopped = ended.startswith(("RunStopped", "ResumeRefused"))
        return [] if stopped else [f"it should have stopped, but: {ended}"]
    if ended != "finished":
        return [f"it did not finish: {ended}"]
    difference = facts.final_loss / twin.loss - 1
    if not abs(difference) <= tolerance:
        return [f"the final loss is {facts.final_loss:.4g}, the twin's {twin.loss:.4g}"]
    return []
