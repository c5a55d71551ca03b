"""Each stage can be trained by a run of its own; the second finds what the first one left."""

import json
from typing import Any

import pytest
import torch

from trainer.config import load
from trainer.pipeline import train
from trainer.summary import StageSummary, Summary


def alone(stage: str) -> dict[str, str]:
    return {"[run]\n": f'[run]\nstages = "{stage}"\n'}


def test_two_runs_of_a_stage_each_train_what_one_run_of_both_does(trained: Any, new_run: Any) -> None:
    first = new_run(changes=alone("first_stage"))
    summary = train(load(first.config))
    assert type(summary) is StageSummary
    left = json.loads((first.folder / "first-stage/summary.json").read_text())
    assert (left["status"], left["run"]) == ("finished", "reduced-first-stage")
    assert not (first.folder / "checkpoints").exists(), "the second stage was not asked for"

    second = new_run(changes=alone("diffusion"))
    assert isinstance(train(load(second.config)), Summary)
    ours, both = second.newest()[1].parts["model"], trained.newest()[1].parts["model"]
    assert [name for name in both if not torch.equal(ours[name], both[name])] == []


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_diffusion_without_an_autoencoder_is_refused_with_what_would_do(
    new_run: Any, refused: Any, command: str
) -> None:
    run = new_run(changes=alone("diffusion"))
    message = refused(command, run.config)
    assert f"no autoencoder in {run.folder / 'first-stage'}" in message
    assert "import one" in message
