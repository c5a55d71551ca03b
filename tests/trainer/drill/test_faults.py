"""Weights that break are found and taken back, and the run ends as if nothing had broken."""

from contextlib import suppress
from typing import Any

import pytest
import torch

from trainer.checkpoint import LadderConfig, NoValidCheckpoint
from trainer.drill.faults import Fault, corrupt_weights, largest_parameter, nan_gradient, nan_weight
from trainer.errors import RunStopped
from trainer.passes import Phase
from trainer.recovery import RecoveryConfig


def break_unheard(loop: Any) -> None:
    """No loss depends on the scale of weights before a normalisation: only a look at the state can tell."""
    with torch.no_grad():
        loop.model.inner[0].weight.mul_(1000)
        loop.model.inner[0].bias.mul_(1000)
        loop.model.inner[1].running_mean.mul_(1000)
        loop.model.inner[1].running_var.mul_(1e6)


def without_memory(state: dict[str, Any]) -> dict[str, Any]:
    """Guards remember when they looked last, and that differs after a rollback; all else must not."""
    return {"parts": state["parts"], "facts": {**state["facts"], "guards": None}}


@pytest.mark.parametrize(
    ("fault", "model", "late"),
    [
        (corrupt_weights, "Denoiser", False),
        (corrupt_weights, "DenoiserWithCritic", True),
        (nan_weight, "Denoiser", True),
        (nan_weight, "DenoiserWithCritic", False),
    ],
)
def test_broken_weights_cost_nothing_but_time(
    lab: Any,
    everything: Any,
    differences: Any,
    request: pytest.FixtureRequest,
    fault: Any,
    model: str,
    late: bool,
) -> None:
    if late:
        request.getfixturevalue("late_numbers")
    kind = {"steps": 50, "model": getattr(lab, model)}
    healed = lab.run("healed", observers=[fault(33)], **kind)
    (rollback,) = healed.reporter.record.rollbacks
    assert healed.reporter.record.status == "finished"
    ahead = 2 if late else 0  # updates that the host has not heard of yet, here as at the snapshot
    assert (rollback.source, rollback.trigger, rollback.to_step) == ("snapshot", "guard", 25 + ahead)
    assert rollback.from_step <= 34 + ahead
    assert healed.reporter.record.attempt == 2
    twin = lab.run("twin", **kind)
    assert not twin.reporter.record.findings
    assert differences(without_memory(everything(healed)), without_memory(everything(twin))) == []


def test_a_weight_that_breaks_unheard_is_found_before_it_is_kept(
    lab: Any, everything: Any, differences: Any
) -> None:
    healed = lab.run("healed", observers=[Fault(31, Phase.FETCH, break_unheard)], steps=50)
    (rollback,) = healed.reporter.record.rollbacks
    assert (rollback.from_step, rollback.to_step) == (32, 25)
    twin = lab.run("twin", steps=50)
    assert differences(without_memory(everything(healed)), without_memory(everything(twin))) == []


@pytest.mark.parametrize("trigger", ["guard", "command"])
def test_after_a_return_weights_are_compared_with_those_returned_to(lab: Any, trigger: str) -> None:
    """An order finds no checkpoint yet, so there the state was taken away and put back."""
    loop = lab.loop(observers=[Fault(15, Phase.FETCH, break_unheard)])
    lab.steps(loop, 12)
    with suppress(NoValidCheckpoint):
        loop.go_back("no reason", trigger)
    while loop.state.step < 22 and len(loop.reporter.record.findings) == 0:
        loop.step()
    findings = loop.reporter.record.findings
    assert any(one.step == 15 and "moved further than Adam can" in one.message for one in findings)


def test_a_fault_that_comes_again_and_again_climbs_the_ladder_and_ends_the_run(
    lab: Any, events: list[Any]
) -> None:
    def strike(phase: Phase, loop: Any) -> None:
        if phase is Phase.FETCH and loop.state.step >= 33:
            with torch.no_grad():
                largest_parameter(loop).view(-1)[0] = torch.nan

    diary = lab.Diary()
    recovery = RecoveryConfig(snapshot_every=10, checkpoint_every=25, ladder=LadderConfig(max_rollbacks=8))
    with pytest.raises(RunStopped, match="4 times within 1000 steps"):
        lab.run(config=lab.config(recovery=recovery), steps=50, observers=[strike, diary])
    record = diary.loop.reporter.record
    sources = [(one.source, one.to_step) for one in record.rollbacks]
    # with the snapshot of step 20 the checkpoint of 25 was abandoned, so step 21 made another
    assert sources == [("snapshot", 25), ("snapshot", 20), ("checkpoint", 21)]
    assert record.status == "failed"
    assert record.attempt == 4
    assert diary.phases.count("fetch") == 34 + 9 + 14 + 13
    assert (events[-1].type, events[-1].status) == ("run_ended", "failed")


def test_a_second_life_remembers_what_the_first_one_spent(lab: Any) -> None:
    def strike(phase: Phase, loop: Any) -> None:
        if phase is Phase.FETCH and loop.state.step >= 33:
            with torch.no_grad():
                largest_parameter(loop).view(-1)[0] = torch.nan

    recovery = RecoveryConfig(snapshot_every=10, checkpoint_every=25, ladder=LadderConfig(max_rollbacks=2))
    config = lab.config(recovery=recovery)
    for rollbacks in (2, 2):
        diary = lab.Diary()
        with pytest.raises(RunStopped, match="after 2 rollbacks"):
            lab.run(config=config, steps=50, observers=[strike, diary])
        assert len(diary.loop.reporter.record.rollbacks) == rollbacks


def test_a_fault_strikes_once_even_if_the_run_comes_by_again(lab: Any) -> None:
    fault = corrupt_weights(33)
    loop = lab.run(steps=40, observers=[fault])
    assert fault.struck
    assert len(loop.reporter.record.rollbacks) == 1


def test_a_nan_gradient_is_one_element_of_one_gradient(lab: Any) -> None:
    seen: list[int] = []

    def count(phase: Phase, loop: Any) -> None:
        if phase is Phase.UPDATE:
            seen.append(sum(int(p.grad.isnan().sum()) for p in loop.model.parameters() if p.grad is not None))

    lab.steps(lab.loop(observers=[nan_gradient(2), count]), 4)
    assert seen == [0, 0, 1, 0, 0]


def test_the_largest_weight_is_one_that_is_trained(lab: Any) -> None:
    loop = lab.loop(model=lab.DenoiserWithCritic)
    assert largest_parameter(loop) is loop.model.head.weight
