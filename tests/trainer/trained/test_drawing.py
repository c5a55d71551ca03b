"""Maps drawn on the way: seen by people, and without a trace in the training."""

import base64
import io
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from shared.events import CheckpointChanged, CheckpointState, Finding, Picture, Severity
from trainer.config import load
from trainer.data.radiomaps import RadioMaps
from trainer.drawing import Drawer
from trainer.pipeline import prepare, run_stage
from trainer.stage import diffusion_of

EVERY_TWO_STEPS = {
    "steps = 3\n": "steps = 5\n",
    "[first_stage.model]\n": "[recovery]\ncheckpoint_every = 2\n\n[first_stage.model]\n",
}


@pytest.fixture
def train(new_run: Callable[..., Any]) -> Callable[..., Any]:
    """Train the reduced diffusion model, with maps drawn or without."""

    def run(name: str, num_maps: int) -> Any:
        config = load(new_run(name, changes=EVERY_TWO_STEPS).config)
        prepare(config)
        drawer = Drawer(RadioMaps(config.data, "test"), config.diffusion.sampling, num_maps)
        return run_stage(config, diffusion_of(config, RadioMaps(config.data, "train")), [drawer])

    return run


def test_maps_are_drawn_at_each_checkpoint_and_the_run_ends_with_the_same_bits(
    train: Callable[..., Any], events: list[Any], everything: Any, differences: Any
) -> None:
    plain = train("plain", 0)
    assert not [event for event in events if isinstance(event, Picture)]
    events.clear()
    watched = train("watched", 2)
    assert differences(everything(plain), everything(watched)) == []

    told = [event for event in events if isinstance(event, Picture)]
    assert [(one.step, one.kind) for one in told] == [(2, "drawn"), (2, "drawn"), (4, "drawn"), (4, "drawn")]
    sealed = {
        event.step
        for event in events
        if isinstance(event, CheckpointChanged) and event.state is CheckpointState.SEALED
    }
    assert {2, 4} <= sealed
    assert len({one.picture for one in told}) == 4
    assert told[0].tiles == ("truth", "drawn", "difference")
    assert float(told[0].reading["nmse"]) > 0
    image = Image.open(io.BytesIO(base64.b64decode(told[0].png)))
    assert image.size == (3 * 32 + 2 * 4, 32)


def test_what_goes_wrong_costs_the_pictures_not_the_run_and_is_told_once(
    train: Callable[..., Any], events: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError("no such map")

    monkeypatch.setattr("trainer.drawing.draw", fail)
    assert train("unlucky", 2).state.step == 5
    assert not [event for event in events if isinstance(event, Picture)]
    (told,) = [event for event in events if isinstance(event, Finding) and "no maps drawn" in event.message]
    assert (told.severity, told.guard) == (Severity.INFO, "pictures")
    assert "OSError: no such map" in told.message
