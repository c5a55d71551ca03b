"""An incident of a real training is done once more from its folder alone, by the command."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from trainer.config import load
from trainer.data.radiomaps import RadioMaps
from trainer.pipeline import prepare, run_stage
from trainer.stage import diffusion_of


def spoil(phase: Any, loop: Any) -> None:
    """A bad sample that nobody could see in the loading process."""
    if phase == "forward" and loop.state.step == 2 and not loop.reporter.record.skips:
        loop.batch["image"][1, 0, 0, 0] = torch.nan


def test_a_bad_sample_is_found_again_by_the_command(
    new_run: Callable[..., Any], told: Callable[..., dict[str, Any]]
) -> None:
    config = load(new_run().config)
    prepare(config)
    loop = run_stage(config, diffusion_of(config, RadioMaps(config.data, "train")), [spoil])
    (incident,) = loop.reporter.record.incidents
    assert incident.kind == "data"
    again = told("replay", config.run.folder / str(incident.evidence))
    assert again["is_as_recorded"]
    assert again["module"] == incident.module
    assert again["bad_samples"] == list(incident.sample_ids)


def test_a_folder_that_is_no_incident_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "name a folder under RUN_FOLDER/incidents" in refused("replay", tmp_path)
