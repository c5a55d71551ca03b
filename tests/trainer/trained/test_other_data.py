"""Runs on other data than the default: what fits is trained and scored, the rest refused in a sentence."""

import re
import shutil
from typing import Any

import pytest

from trainer.config import load
from trainer.pipeline import train


def measured(new_run: Any, name: str, cache: str, **changes: str) -> Any:
    """A run on measurements at random places; the embedded targets stand in for those of DPM."""
    lines = f'[data]\nvariant = "RANDOM"\nsplit_rule = "listed"\ncache = "{cache}"\n'
    run = new_run(name, changes={"[data]\n": f'{lines}cache_folder = "CACHE"\n', **changes})
    text = run.config.read_text().replace("CACHE", str(run.folder.parent / "cache"))
    run.config.write_text(text)
    target = run.folder.parent / "maps/gain/DPM"
    if not target.exists():
        target.symlink_to("RT")
    return run


def test_a_model_is_trained_and_scored_on_sparse_measurements(new_run: Any) -> None:
    summary = train(load(measured(new_run, "one", "disk").config))
    assert (summary.status, summary.steps, summary.findings) == ("finished", 3, [])


def test_a_run_goes_on_with_another_cache_as_if_nothing_had_changed(new_run: Any) -> None:
    steps = {"steps = 3\n": "steps = 2\n"}
    train(load(measured(new_run, "one", "disk", **steps).config))
    summary = train(load(measured(new_run, "one", "memory", **steps).config))
    assert (summary.status, summary.attempts, summary.findings) == ("finished", 2, [])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"image_size = 32": "image_size = 48"},
            r"data\.image_size = 48: 48 does not divide the maps' side of 256; take 32, 64, 128 or 256",
        ),
        (
            {"[diffusion.model.unet]\n": "[diffusion.model.unet]\ncond_channels = 5\n"},
            r"\(2, 3, 32, 32\), this model wants \(B, 5, H, W\); set unet\.cond_channels to what the data",
        ),
    ],
)
def test_data_that_do_not_fit_the_model_are_refused(
    new_run: Any, refused: Any, changes: dict[str, str], words: str
) -> None:
    assert re.search(words, refused("check", new_run(changes=changes).config))


def test_a_first_stage_of_ours_for_another_configuration_is_refused(
    trained: Any, new_run: Any, refused: Any
) -> None:
    wider = {"base_channels = 8": "base_channels = 16", "[run]\n": '[run]\nstages = "diffusion"\n'}
    run = new_run(changes=wider)
    shutil.copytree(trained.folder / "first-stage", run.folder / "first-stage")
    words = refused("run", run.config)
    assert re.search(r"in \S+first-stage does not fit this configuration: .*give the one that it was", words)
