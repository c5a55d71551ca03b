"""What the guards say of one step, all its objectives together."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from shared.events import Finding, Severity
from trainer.guards.base import StepView, Verdict, Vitals
from trainer.guards.panel import Panel
from trainer.judging import Judging


class Corrupt:
    """Finds the state corrupt at each objective, and counts how often it was asked."""

    name, scans = "corrupt", False

    def __init__(self) -> None:
        self.asked: list[str] = []

    def inspect(self, view: StepView) -> Finding | None:
        self.asked.append(view.vitals.objective)
        return Finding(step=1, guard=self.name, severity=Severity.CRITICAL, message=self.asked[-1])

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None:
        pass


def test_each_objective_is_judged_on_every_rank_and_only_the_first_corruption_is_told(
    vitals: Callable[..., Vitals], new_training: Any
) -> None:
    """A guard may compare ranks: one that left early would leave the others waiting for it."""
    guard = Corrupt()
    ranks = SimpleNamespace(pool=lambda own: [own])
    state = SimpleNamespace(step=1, panel=Panel([guard]), ranks=ranks, watched=new_training().watched)
    training: Any = SimpleNamespace(state=state)
    recovery: Any = SimpleNamespace(is_due=lambda step: False)
    reporter: Any = None
    incidents: Any = None
    judging = Judging(training, recovery, reporter, incidents)
    judgement = judging.ask([vitals(objective="autoencoder"), vitals(objective="discriminator")])
    assert guard.asked == ["autoencoder", "discriminator"]
    assert [finding.message for finding in judgement.findings] == ["autoencoder"]
    assert judgement.verdict is Verdict.ROLL_BACK
