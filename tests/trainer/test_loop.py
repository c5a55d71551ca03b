"""Six phases a step, a bad one refused with all that it touched, and exactly the updates asked for."""

import logging
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from shared.events import Finding, Severity, StepSkipped
from trainer.checkpoint import LadderConfig
from trainer.config import GuardsConfig
from trainer.drill.faults import nan_gradient
from trainer.errors import RunStopped
from trainer.guards.base import Verdict
from trainer.guards.nonfinite import Nonfinite
from trainer.guards.panel import Judgement, Panel
from trainer.guards.spike import SpikeConfig
from trainer.recovery import RecoveryConfig

HEAD = "model/head.weight"


def always_nan(phase: Any, loop: Any) -> None:
    if phase == "measure":
        loop.model.head.weight.grad[0, 0, 0, 0] = torch.nan


def test_a_step_is_six_phases_in_order(lab: Any) -> None:
    diary = lab.Diary()
    lab.loop(observers=[diary]).step()
    assert diary.phases == ["fetch", "forward", "backward", "measure", "update", "report"]


def test_two_objectives_are_done_in_turn_on_one_batch(lab: Any) -> None:
    diary = lab.Diary()
    lab.loop(model=lab.DenoiserWithCritic, observers=[diary]).step()
    turn = ["forward", "backward", "measure", "update"]
    assert diary.phases == ["fetch", *turn, *turn, "report"]


@pytest.mark.parametrize("model", ["Denoiser", "DenoiserWithCritic"])
def test_a_nan_gradient_leaves_nothing_behind(
    lab: Any, everything: Any, differences: Any, events: list[Any], model: str
) -> None:
    loop = lab.loop(config=lab.without_replay(), model=getattr(lab, model), observers=[nan_gradient(12)])
    lab.steps(loop, 12)
    before = everything(loop)
    loop.step()
    after = everything(loop)
    assert set(differences(before, after)) == {"random/torch", "iteration", "data", "guards"}
    assert after["facts"]["data"]["next_batch"] == before["facts"]["data"]["next_batch"] + 1
    assert after["facts"]["iteration"] == before["facts"]["iteration"] + 1
    skipped = next(event for event in events if isinstance(event, StepSkipped))
    assert (skipped.step, skipped.reason) == (12, "nonfinite_grad")
    assert skipped.sample_ids == tuple(loop.batch["ids"])
    loop.step()
    assert "model/inner.0.weight" in differences(after, everything(loop)), "and the next step is applied"


def test_a_nan_in_the_batch_leaves_the_running_statistics_clean(
    lab: Any, everything: Any, differences: Any
) -> None:
    def nan(phase: Any, loop: Any) -> None:
        if phase == "forward" and loop.state.iteration == 6:
            loop.batch["image"][0, 0, 0, 0] = torch.nan

    loop = lab.loop(observers=[nan])
    lab.steps(loop, 5)
    before = everything(loop)
    loop.step()
    assert not [name for name in differences(before, everything(loop)) if name.startswith(("model", "ema"))]
    assert loop.reporter.record.skips[0].reason == "nonfinite_loss"


def test_a_run_ends_after_exactly_the_updates_it_was_asked_for(lab: Any) -> None:
    loop = lab.run(config=lab.without_replay(), steps=30, observers=[nan_gradient(10)])
    assert loop.reporter.record.status == "finished"
    assert loop.reporter.record.skipped_steps == 1
    assert (loop.state.step, loop.state.iteration) == (30, 31)
    assert loop.state.facts()["applied"] == {"denoiser": 30}


@pytest.mark.usefixtures("late_numbers")
@pytest.mark.parametrize(("refused", "at"), [((), []), ((10,), [9]), ((28, 29, 30), [27, 27, 27])])
def test_late_numbers_cost_no_update_and_add_none(lab: Any, refused: tuple[int, ...], at: list[int]) -> None:
    def nan(phase: Any, loop: Any) -> None:
        if phase == "measure" and loop.state.iteration in refused:
            loop.model.head.weight.grad[0, 0, 0, 0] = torch.nan

    loop = lab.run(config=lab.without_replay(), steps=30, observers=[nan])
    assert (loop.state.step, loop.state.iteration) == (30, 30 + len(refused))
    assert loop.state.facts()["applied"] == {"denoiser": 30}
    assert [skip.step for skip in loop.reporter.record.skips] == at


@pytest.mark.usefixtures("late_numbers")
def test_a_model_is_told_the_number_of_its_update_though_numbers_come_late(lab: Any) -> None:
    told: list[int] = []

    class Listener(lab.Denoiser):
        def training_step(self, batch: Any, objective: str, step: int) -> Any:
            if self.training:
                told.append(step)
            return super().training_step(batch, objective, step)

    lab.run(steps=15, model=Listener)
    assert told == list(range(15))


def test_the_second_objective_is_refused_with_the_first(lab: Any, everything: Any, differences: Any) -> None:
    config = lab.without_replay()
    loop = lab.loop(config=config, model=lab.DenoiserWithCritic, observers=[nan_gradient(8)])
    lab.steps(loop, 8)
    before = everything(loop)
    loop.step()
    critic = [name for name in differences(before, everything(loop)) if "critic" in name]
    assert critic == []
    assert loop.last[1].refused
    assert loop.last[1].reason is None, "nothing was wrong with it itself"


def test_the_average_follows_an_update_though_the_second_objective_was_refused(lab: Any) -> None:
    def nan(phase: Any, loop: Any) -> None:
        if phase == "measure" and loop.objective.name == "critic":
            loop.model.critic[2].weight.grad[0, 0] = torch.nan

    loop = lab.run(steps=9, model=lab.DenoiserWithCritic, observers=[nan])
    assert torch.equal(loop.state.ema.tensors["head.weight"], loop.model.head.weight), "update 8 is a copy"


def test_an_objective_is_trained_by_its_own_loss_alone(lab: Any) -> None:
    """The denoiser's loss flows through the critic, whose gradients must not hold any of it."""
    seen: list[torch.Tensor] = []

    def look(phase: Any, loop: Any) -> None:
        if phase == "measure" and loop.objective.name == "critic":
            seen.append(loop.model.critic[2].weight.grad.clone())
            loop.model.critic.zero_grad()
            torch.autograd.backward(loop.model.training_step(loop.batch, "critic", 0).total)
            seen.append(loop.model.critic[2].weight.grad.clone())

    def same_draw(phase: Any, loop: Any) -> None:
        if phase == "forward" or (phase == "measure" and loop.objective.name == "critic"):
            torch.manual_seed(5)

    lab.loop(model=lab.DenoiserWithCritic, observers=[same_draw, look]).step()
    assert torch.equal(*seen)


def test_too_many_refused_in_a_row_end_the_run(lab: Any, events: list[Any]) -> None:
    diary = lab.Diary()
    config = lab.without_replay(ladder=LadderConfig(max_refused_in_row=9))
    with pytest.raises(RunStopped, match="10 updates refused in a row at step 0"):
        lab.run(config=config, observers=[always_nan, diary])
    assert diary.phases.count("fetch") == 10
    assert (events[-1].type, events[-1].status) == ("run_ended", "failed")


def test_a_guard_that_raises_never_ends_a_training(
    lab: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(guard: Nonfinite, view: Any) -> None:
        raise ZeroDivisionError("a mistake")

    monkeypatch.setattr(Nonfinite, "inspect", broken)
    with caplog.at_level(logging.CRITICAL, "trainer.guards.panel"):
        loop = lab.run(steps=12, observers=[nan_gradient(5)])
    assert loop.reporter.record.status == "finished"
    assert loop.reporter.record.skipped_steps == 1, "the device refused all the same"
    assert {finding.guard for finding in loop.reporter.record.findings} == {"panel"}


def test_a_rollback_is_explained_by_the_gravest_finding(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def judge(panel: Panel, view: Any) -> Judgement:
        if view.vitals.step != 20 or view.vitals.iteration > 20:
            return Judgement(Verdict.PROCEED, ())
        words = [(Severity.CRITICAL, "the weights are gone"), (Severity.WARNING, "it looks like rain")]
        found = tuple(Finding(step=20, guard="g", severity=grave, message=text) for grave, text in words)
        return Judgement(Verdict.ROLL_BACK, found)

    monkeypatch.setattr(Panel, "judge", judge)
    loop = lab.loop()
    while not loop.reporter.record.rollbacks:
        loop.step()
    assert loop.reporter.record.rollbacks[0].reason == "the weights are gone"


class HostReads(TorchDispatchMode):
    """Operations for which a host would wait for a GPU, and calls that bring a tensor's values to Python."""

    DEVICE = ("_local_scalar_dense", "is_nonzero", "item", "nonzero", "masked_select", "unique", "equal")
    PYTHON = ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "__array__")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in self.DEVICE:
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


class Calls(TorchFunctionMode):
    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in HostReads.PYTHON:
            self.seen.append(func.__name__)
        return func(*args, **(kwargs or {}))


KINDS = [("fp32", 1), ("fp32", 2), ("bf16", 1), ("fp16", 2)]


@pytest.mark.parametrize(("precision", "pieces"), KINDS)
@pytest.mark.parametrize("model", ["Denoiser", "DenoiserWithCritic"])
def test_a_healthy_step_reads_nothing_from_the_device(
    lab: Any, model: str, precision: str, pieces: int
) -> None:
    config = lab.config(
        recovery=RecoveryConfig(snapshot_every=15, checkpoint_every=1_000),
        guards=GuardsConfig(spike=SpikeConfig(warm_up=8)),
    )
    loop = lab.loop(config=config, model=getattr(lab, model), precision=precision, micro_batches=pieces)
    lab.steps(loop, 15)
    with HostReads() as reads, Calls(reads.seen):
        lab.steps(loop, 29)
        healthy = list(reads.seen)
        loop.step()
    assert healthy == []
    assert reads.seen != [], "a step that keeps a snapshot reads, so the counter works"


def test_the_first_items_refused_by_the_loader_are_replaced(lab: Any) -> None:
    source = lab.Pictures()
    source._images[7] = torch.nan
    loop = lab.run(steps=12, source=source)
    assert [refusal.id for refusal in loop.state.loader.refused] == ["picture_7"]
    assert loop.reporter.record.skipped_steps == 0


def test_a_sample_that_is_left_out_is_told_once(lab: Any, events: list[Any]) -> None:
    source = lab.Pictures()
    source._images[5, 0, 0, 0] = torch.nan
    lab.run(steps=20, source=source)
    told = [event for event in events if isinstance(event, Finding) and event.guard == "data"]
    assert [event.reading["sample"] for event in told] == ["picture_5"]
    assert "left out" in told[0].message
