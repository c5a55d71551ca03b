"""A refused step is replayed; what comes of it depends on who is to blame, and every change is undone."""

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest
import torch

from shared.events import Change, Finding, Incident
from trainer.checkpoint import LadderConfig
from trainer.checkpoint.container import parse
from trainer.config import GuardsConfig
from trainer.drill.faults import corrupt_weights, nan_gradient
from trainer.errors import ConfigError, RunStopped
from trainer.guards.culprit import Culprit
from trainer.guards.foresight import ForesightConfig
from trainer.guards.randomness import Randomness
from trainer.incident import IncidentConfig
from trainer.loop import Loop
from trainer.objective import OptimizerConfig
from trainer.passes import Phase
from trainer.recovery import RecoveryConfig
from trainer.reenact import reenact


def without_memory(state: dict[str, Any]) -> dict[str, Any]:
    """Guards remember when they looked last; all else must be equal to the bit."""
    return {"parts": state["parts"], "facts": {**state["facts"], "guards": None}}


def last_told(events: list[Any]) -> list[Incident]:
    latest = {event.incident: event for event in events if isinstance(event, Incident)}
    return list(latest.values())


@pytest.mark.parametrize("model", ["Denoiser", "DenoiserWithCritic"])
def test_a_transient_fault_leaves_the_run_bit_identical_to_its_twin(
    lab: Any, everything: Any, differences: Any, events: list[Any], model: str
) -> None:
    kind = {"steps": 80, "model": getattr(lab, model)}
    healed = lab.run("healed", observers=[nan_gradient(12)], **kind)
    (incident,) = last_told(events)
    twin = lab.run("twin", **kind)
    assert healed.reporter.record.skipped_steps == 1
    assert differences(without_memory(everything(healed)), without_memory(everything(twin))) == []
    assert (incident.kind, incident.outcome, incident.steps_lost) == ("transient", "healed", 0)
    assert (incident.step, incident.onset_step, incident.guard) == (12, 12, "nonfinite")


@pytest.mark.usefixtures("late_numbers")
def test_a_transient_fault_costs_no_update_though_numbers_come_late(lab: Any) -> None:
    loop = lab.run(steps=40, observers=[nan_gradient(12)])
    assert (loop.state.step, loop.state.iteration) == (40, 40)
    assert loop.state.facts()["applied"] == {"denoiser": 40}


def divides(lab: Any) -> Any:
    class Divides(lab.Denoiser):
        def training_step(self, batch: Mapping[str, Any], objective: str, step: int) -> Any:
            brightest = batch["image"].abs().amax(dim=(1, 2, 3), keepdim=True)
            return super().training_step({**batch, "image": batch["image"] / brightest}, objective, step)

    return Divides


def test_a_bad_sample_is_named_and_set_aside(lab: Any, events: list[Any]) -> None:
    source = lab.Pictures()
    source._images[7] = 0.0
    loop = lab.run(steps=60, source=source, model=divides(lab), observers=[lab.Diary()])
    assert loop.reporter.record.quarantined == ["picture_7"]
    assert loop.reporter.record.skipped_steps == 1
    (incident,) = last_told(events)
    assert (incident.kind, incident.sample_ids, incident.outcome) == ("data", ("picture_7",), "healed")
    assert incident.module == "encoder"
    (change,) = [event for event in events if isinstance(event, Change)]
    assert (change.what, change.value, change.incident) == ("quarantine", "picture_7", incident.incident)
    assert loop.reporter.record.rollbacks == []


def test_a_new_process_remembers_the_quarantine(lab: Any) -> None:
    source = lab.Pictures()
    source._images[7] = 0.0
    lab.run(steps=30, source=source, model=divides(lab))
    diary = lab.Diary()
    loop = lab.run(steps=60, source=source, model=divides(lab), observers=[diary])
    assert loop.reporter.record.skipped_steps == 1
    assert not any("picture_7" in batch for batch in diary.batches)


def test_an_accusation_leaves_no_trace(lab: Any, everything: Any, differences: Any) -> None:
    loop = lab.loop()
    lab.steps(loop, 5)
    batch = {**loop.batch, "image": loop.batch["image"].clone()}
    batch["image"][[1, 3]] = torch.nan
    before = everything(loop)
    culprit = Culprit(loop.state.model, partial(loop.passes.losses_of, number=0), Randomness.now(loop.device))
    accusation = culprit.accuse(batch, loop.recovery.earlier_weights())
    assert (accusation.kind, accusation.places) == ("data", (1, 3))
    assert accusation.suspect.module == "encoder"
    assert accusation.suspect.bad_input
    assert differences(before, everything(loop)) == []
    assert all(p.grad is None for p in loop.model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in loop.model.modules())


def test_bad_weights_are_told_from_bad_data(lab: Any) -> None:
    loop = lab.loop()
    lab.steps(loop, 12)
    with torch.no_grad():
        loop.model.inner[0].weight.fill_(torch.inf)
    culprit = Culprit(loop.state.model, partial(loop.passes.losses_of, number=0), Randomness.now(loop.device))
    accusation = culprit.accuse(loop.batch, loop.recovery.earlier_weights())
    assert (accusation.kind, accusation.suspect.module) == ("weights", "inner.0")


def test_a_backward_that_breaks_names_its_module(lab: Any) -> None:
    class Cliff(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, x: Any) -> Any:
            return x.clone()

        @staticmethod
        def backward(context: Any, grad: Any) -> Any:
            return grad * torch.nan

    class Edge(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return Cliff.apply(x)

    loop = lab.loop()
    loop.step()
    loop.model.inner.append(Edge())
    suspect = Culprit(loop.model, partial(loop.passes.losses_of, number=0), Randomness.now(loop.device)).find(
        loop.batch
    )
    assert (suspect.phase, suspect.module, suspect.kind) == ("backward", "inner.3", "Edge")


def test_a_fault_that_every_replay_repeats_goes_back_once_and_then_stops(lab: Any, events: list[Any]) -> None:
    def strike(phase: Any, loop: Any) -> None:
        if phase == "measure" and loop.state.step >= 30:
            loop.model.head.weight.grad[0, 0, 0, 0] = torch.nan

    with pytest.raises(RunStopped, match="stays bad though the run went back"):
        lab.run(steps=60, observers=[strike])
    changes = [event for event in events if isinstance(event, Change)]
    assert {(one.what, one.value) for one in changes if one.what == "lr_factor"} == {("lr_factor", 0.7)}
    assert [one.value for one in changes if one.what == "data_window"] == ["25..229"]
    (incident,) = last_told(events)
    assert incident.outcome == "stopped"
    report = (lab.root / "run/stopped.txt").read_text()
    assert "Why: step 30 stays bad though the run went back" in report
    assert f"{incident.incident}: unknown, stopped" in report
    assert "data_window 25..229" in report


def test_moments_that_start_anew_after_a_rollback_are_no_corruption_and_stay(lab: Any) -> None:
    class Astray(lab.Denoiser):
        """One layer's gradient is NaN for a while, whatever the sample."""

        def __init__(self) -> None:
            super().__init__()
            self.is_astray = False
            self.head.weight.register_hook(lambda grad: grad * torch.nan if self.is_astray else grad)

    found: dict[int, float] = {}

    def look(phase: Any, loop: Any) -> None:
        loop.model.is_astray = loop.state.iteration >= 30 and not loop.reporter.record.rollbacks
        if phase == "fetch" and loop.reporter.record.rollbacks:
            moments = loop.state.optimizers["denoiser"].state[loop.model.head.weight]
            found.setdefault(loop.state.step, float(moments["exp_avg_sq"].sum()))

    loop = lab.run(steps=120, model=Astray, observers=[look])
    (rollback,) = loop.reporter.record.rollbacks
    told = {one.guard for one in loop.reporter.record.findings if one.severity == "critical"}
    assert found[rollback.to_step] == 0
    assert found[rollback.to_step + 1] > 0
    assert "invariants" not in told


def test_a_lowered_rate_comes_back_in_five_told_stages(lab: Any, events: list[Any]) -> None:
    config = lab.config(recovery=RecoveryConfig(snapshot_every=10, checkpoint_every=25, returns_over=25))
    loop = lab.loop(config=config, steps=100)
    lab.steps(loop, 20)
    lr = loop.last[0].lr
    loop.recovery.ease(20, "divergence is predicted")
    loop.recovery.ease(20, "and again, which changes nothing")
    lab.steps(loop, 22)
    assert loop.last[0].lr / lr == pytest.approx(0.7, rel=0.05)
    lab.steps(loop, 60)
    changes = [(one.value, one.is_undo) for one in events if isinstance(one, Change)]
    assert [value for value, _ in changes] == pytest.approx([0.7, 0.76, 0.82, 0.88, 0.94, 1.0])
    assert [undo for _, undo in changes] == [False, True, True, True, True, True]
    assert loop.reporter.record.rollbacks == []
    assert float(loop.objectives[0].schedule.eased) == 1.0


def test_a_resumed_run_has_the_factors_of_the_one_that_was_killed(
    lab: Any, everything: Any, differences: Any
) -> None:
    def strike_twice(*at: int) -> list[Any]:
        return [corrupt_weights(step) for step in at]

    kind = {"steps": 90}
    whole = lab.run("whole", observers=strike_twice(33, 36), **kind)
    with pytest.raises(lab.Killed):
        lab.run("killed", observers=[*strike_twice(33, 36), lab.wait_for_disk, lab.kill_at(70)], **kind)
    resumed = lab.run("killed", seed=None, **kind)
    assert whole.recovery.remedies.lowered.lr == 0.7
    assert resumed.recovery.remedies.lowered == whole.recovery.remedies.lowered
    assert differences(without_memory(everything(whole)), without_memory(everything(resumed))) == []


def rising_rate(begin: int, end: int) -> Any:
    """The schedule itself goes astray: the rate grows tenfold every 20 steps, and is as planned again."""

    def raise_it(phase: Phase, loop: Loop) -> None:
        if phase is Phase.UPDATE:
            schedule = loop.objective.schedule
            is_astray = begin <= loop.state.step < end
            lr = 1e-3 * (10 ** ((loop.state.step - begin) / 20) if is_astray else 1.0)
            schedule.config = schedule.config.model_copy(update={"lr": lr})

    return raise_it


def test_a_prediction_lowers_the_rate_keeps_a_snapshot_and_goes_nowhere(lab: Any, events: list[Any]) -> None:
    config = lab.config(
        guards=GuardsConfig(foresight=ForesightConfig(warm_up=16, window=64)),
        recovery=RecoveryConfig(snapshot_every=10, checkpoint_every=25, returns_over=50),
    )
    kind = {"steps": 200, "optimizer": OptimizerConfig(lr=1e-3, schedule="constant")}
    loop = lab.loop(config=config, observers=[rising_rate(100, 135)], **kind)
    lab.steps(loop, 150)
    (told,) = [one for one in events if isinstance(one, Finding) and "predicts" in one.reading]
    assert 100 < told.step < 135
    assert any(0 <= kept - told.step <= 3 for kept in loop.recovery._snapshots.steps()), "and it is protected"
    lab.steps(loop, 200)
    changes = [one for one in events if isinstance(one, Change)]
    assert changes[0].value == 0.7
    assert changes[0].reason == told.message
    assert [one.value for one in changes] == pytest.approx([0.7, 0.76, 0.82, 0.88, 0.94, 1.0])
    assert loop.last[0].lr == pytest.approx(1e-3)
    assert loop.reporter.record.rollbacks == []


def test_an_incident_leaves_a_folder_and_folders_are_bounded(lab: Any) -> None:
    loop = lab.run(steps=80, observers=[nan_gradient(12)])
    (incident,) = loop.reporter.record.incidents
    folder = lab.root / "run" / str(incident.evidence)
    assert {path.name for path in folder.iterdir()} == {
        *("incident.json", "origin.json", "batch.safetensors", "random.safetensors", "model.safetensors"),
        *("vitals-before.jsonl", "vitals-after.jsonl"),
    }
    assert json.loads((folder / "incident.json").read_text())["outcome"] == "healed"
    assert len((folder / "vitals-before.jsonl").read_text().splitlines()) == 12


def test_three_transient_faults_in_a_day_suspect_the_hardware(lab: Any, events: list[Any]) -> None:
    lab.run(steps=60, observers=[nan_gradient(12), nan_gradient(25), nan_gradient(40)])
    told = [event.message for event in events if isinstance(event, Finding) and event.guard == "culprit"]
    assert len(told) == 1
    assert "suspect hardware" in told[0]


def test_the_shipped_budget_is_that_of_the_table() -> None:
    config = LadderConfig()
    assert (config.max_rollbacks, config.max_refused_in_row, config.window, config.cluster) == (
        8,
        32,
        1000,
        100,
    )


def test_an_incident_comes_out_the_same_from_its_folder(lab: Any) -> None:
    source = lab.Pictures()
    source._images[7] = 0.0
    loop = lab.run(steps=30, source=source, model=divides(lab))
    (incident,) = loop.reporter.record.incidents
    again = reenact(lab.root / "run" / str(incident.evidence), lambda origin: divides(lab)())
    assert again.is_as_recorded
    assert again.suspect is not None
    assert (again.suspect.module, again.bad_samples) == ("encoder", ("picture_7",))


def test_the_search_needs_no_more_memory_and_no_other_format_than_the_step(lab: Any) -> None:
    seen: list[tuple[int, bool]] = []

    class Counts(divides(lab)):  # type: ignore[misc]
        def training_step(self, batch: Mapping[str, Any], objective: str, step: int) -> Any:
            seen.append((len(batch["image"]), torch.is_autocast_enabled("cpu")))
            return super().training_step(batch, objective, step)

    source = lab.Pictures()
    source._images[7] = 0.0
    loop = lab.run(steps=30, source=source, model=Counts, micro_batches=2, precision="bf16")
    assert loop.reporter.record.quarantined == ["picture_7"]
    (incident,) = loop.reporter.record.incidents
    assert set(seen) == {(2, True), (4, False)}, "pieces in bf16, and the probe"
    seen.clear()
    again = reenact(lab.root / "run" / str(incident.evidence), lambda origin: Counts())
    assert (again.is_as_recorded, again.bad_samples) == (True, ("picture_7",))
    assert set(seen) == {(2, True)}


def test_a_transient_incident_comes_out_clean(lab: Any) -> None:
    weights: list[torch.Tensor] = []

    def look(phase: Any, loop: Any) -> None:
        if phase == "fetch" and loop.state.step == 12:
            weights.append(loop.model.head.weight.detach().clone())

    loop = lab.run(steps=30, observers=[nan_gradient(12), look])
    folder = lab.root / "run" / str(loop.reporter.record.incidents[0].evidence)
    kept = parse((folder / "model.safetensors").read_bytes())
    assert torch.equal(kept["head.weight"], weights[0]), "as they were before the replay was applied"
    assert reenact(folder, lambda origin: lab.Denoiser()).in_words().endswith("as recorded")


def test_a_large_model_is_not_kept_and_a_checkpoint_takes_its_place(lab: Any) -> None:
    config = lab.config()
    small = config.recovery.model_copy(update={"incidents": IncidentConfig(model_mb=0, keep=1)})
    config = config.model_copy(update={"recovery": small})
    loop = lab.run(steps=60, config=config, observers=[nan_gradient(12), nan_gradient(40), lab.wait_for_disk])
    first, second = (lab.root / "run" / str(one.evidence) for one in loop.reporter.record.incidents)
    assert not first.exists(), "one is kept"
    assert "step-00000025-attempt-1" in reenact(second, lambda origin: lab.Denoiser()).weights
    with pytest.raises(ConfigError, match="is no incident"):
        reenact(first)


def test_corrupt_weights_are_an_incident_that_names_what_it_cost(lab: Any, events: list[Any]) -> None:
    lab.run(steps=90, observers=[corrupt_weights(33)])
    (incident,) = last_told(events)
    assert (incident.kind, incident.outcome, incident.guard) == ("weights", "healed", "at_rest")
    assert incident.steps_lost > 0
    assert incident.seconds_lost > 0
    assert "went back from step 3" in incident.action
