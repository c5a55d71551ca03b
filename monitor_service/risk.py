"""The risk of divergence: what the guards' predictions and the monitor's own rules say about it now."""

from monitor_service.concerns import Risk, RiskLevel, Rule
from monitor_service.facts import ALARMING, Facts
from monitor_service.health import RunStatus, is_recent
from monitor_service.settings import HealthConfig

_BY_RULE = {
    Rule.LOSS_DIVERGED: RiskLevel.HIGH,
    Rule.LOSS_RISEN: RiskLevel.HIGH,
    Rule.ROLLBACK_LOOP: RiskLevel.RAISED,
}
_ORDER = list(RiskLevel)
_NO_RISK = Risk()


def risk_of(facts: Facts, status: RunStatus, config: HealthConfig) -> Risk:
    """The highest level that anything speaks for, with all that does."""
    speaks: list[tuple[RiskLevel, str]] = []
    if status is RunStatus.DIVERGED:
        speaks.append((RiskLevel.HIGH, "it has diverged"))
    elif facts.nonfinite_losses:
        speaks.append((RiskLevel.RAISED, f"the last {facts.nonfinite_losses} losses are not finite"))
    predicted = facts.prediction
    if predicted is not None and is_recent(facts, predicted.attempt, predicted.step, config):
        level = RiskLevel.HIGH if predicted.severity in ALARMING else RiskLevel.RAISED
        speaks.append((level, f"predicted by {predicted.words}"))
    judged = facts.judged
    speaks += [(_BY_RULE[one.rule], one.words) for one in judged.concerns if one.rule in _BY_RULE]
    if Rule.LOSS_RISEN in judged.pending and not _speaks(facts, Rule.LOSS_RISEN):
        speaks.append((RiskLevel.RAISED, "the smoothed loss has begun to rise above its low"))
    if not speaks:
        return _NO_RISK
    level = max((level for level, _ in speaks), key=_ORDER.index)
    return Risk(level=level, reasons=[words for _, words in speaks])


def _speaks(facts: Facts, rule: Rule) -> bool:
    return any(concern.rule == rule for concern in facts.judged.concerns)
