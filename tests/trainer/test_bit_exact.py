"""A run that was interrupted or went back ends with the very bits of one that was not."""

import threading
from typing import Any

import pytest
import torch

from trainer.watchdog import WatchdogConfig

MODELS = ["Denoiser", "DenoiserWithCritic"]


@pytest.mark.parametrize("model", MODELS)
def test_a_killed_run_goes_on_from_its_checkpoint_to_the_same_bits(
    lab: Any, everything: Any, differences: Any, model: str
) -> None:
    kind = {"steps": 50, "model": getattr(lab, model)}
    before, after, whole = lab.Diary(), lab.Diary(), lab.Diary()
    with pytest.raises(lab.Killed):
        lab.run("killed", observers=[before, lab.kill_at(37)], **kind)
    resumed = lab.run("killed", observers=[after], seed=None, **kind)
    twin = lab.run("twin", observers=[whole], **kind)
    assert len(after.batches) == 25, "it went on from the checkpoint of step 25"
    assert before.batches[:25] + after.batches == whole.batches
    assert differences(everything(resumed), everything(twin)) == []


def test_a_run_that_begins_elsewhere_does_not_end_there(lab: Any, everything: Any, differences: Any) -> None:
    one, other = lab.run("one", steps=5), lab.run("other", steps=5, seed=1)
    assert "model/head.weight" in differences(everything(one), everything(other))


@pytest.mark.parametrize("model", MODELS)
def test_going_back_without_a_reason_changes_nothing(
    lab: Any, everything: Any, differences: Any, model: str
) -> None:
    loop = lab.loop(model=getattr(lab, model))
    lab.steps(loop, 33)
    there = everything(loop)
    loop.go_back("no reason", "guard")
    assert loop.state.step == 25
    lab.steps(loop, 33)
    assert differences(there, everything(loop)) == []


def test_a_stopped_run_goes_on_to_the_same_bits(lab: Any, everything: Any, differences: Any) -> None:
    loop = lab.loop(
        "stopped", steps=30, observers=[lambda phase, loop: loop.state.step == 17 and loop.stop("a pause")]
    )
    assert loop.run() == "stopped"
    resumed, twin = lab.run("stopped", steps=30, seed=None), lab.run("twin", steps=30)
    compared = [everything(resumed), everything(twin)]
    for state in compared:
        del state["facts"]["guards"]  # the two were scanned at other steps, and remember when
    assert differences(*compared) == []


def test_a_refused_step_is_part_of_what_is_repeated(lab: Any, everything: Any, differences: Any) -> None:
    def nan(phase: Any, loop: Any) -> None:
        if phase == "measure" and loop.state.iteration in (15, 30):
            loop.model.head.weight.grad[0, 0, 0, 0] = torch.nan

    with pytest.raises(lab.Killed):
        lab.run("killed", steps=40, observers=[nan, lab.kill_at(33)])
    resumed = lab.run("killed", steps=40, observers=[nan], seed=None)
    twin = lab.run("twin", steps=40, observers=[nan])
    assert resumed.state.iteration == 42
    assert differences(everything(resumed), everything(twin)) == []


def test_a_step_that_hangs_is_cut_short_and_leaves_no_trace(
    lab: Any, everything: Any, differences: Any, events: list[Any]
) -> None:
    config = lab.config("hung", watchdog=WatchdogConfig(least_s=0.3, first_s=0.3))
    hung = []

    def hang(phase: Any, loop: Any) -> None:
        if phase == "update" and loop.state.step == 33 and not hung:
            hung.append(phase)
            threading.Event().wait(60)

    resumed = lab.run("hung", steps=40, config=config, observers=[lab.wait_for_disk, hang])
    told = [event for event in events if getattr(event, "guard", None) == "watchdog"]
    twin = lab.run("twin", steps=40, observers=[lab.wait_for_disk])
    assert "update has not ended" in told[0].message
    assert "in hang" in told[0].reading["stacks"]
    assert [event.to_step for event in events if event.type == "rollback"] == [25]
    assert differences(everything(resumed), everything(twin)) == []
