"""One exercise: a fault, what is expected to become of it, and what it needs to be possible."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from trainer.drill.faults import Injection
from trainer.drill.judge import Expectation


@dataclass(frozen=True)
class Drill:
    """``fault`` makes the fault for the step at which it is to strike.

    ``changes`` are of the configuration, by dotted path. Without a fault the drill is listed and not run: it
    ``awaits`` something that is not built yet, which counts as falling short, or it is ``idle``, with the
    reason why it can't be made here. One that does not ``soak`` is nothing against the scatter of a long run.
    """

    id: str
    name: str
    what: str
    fault: Callable[[int], Injection] | None
    expect: Expectation
    changes: Mapping[str, Any] = field(default_factory=dict)
    awaits: str = ""
    idle: str = ""
    soaks: bool = True
