"""Small pictures: what is not finite is red, and a sample at fault is shown with its incident."""

import base64
import io
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from shared.events import MAX_PICTURE_BYTES, Finding, Picture
from trainer import pictures
from trainer.pictures import GAP, SIDE, as_png, picture, tiles_of_sample

RED = (217, 38, 38)


def pixels(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png)).convert("RGBA")


def with_a_hole(side: int) -> Tensor:
    tile = torch.linspace(0, 1, side * side).reshape(side, side)
    tile[side // 2, side // 2] = torch.nan
    return tile


@pytest.mark.parametrize("side", [16, 4 * SIDE])
def test_one_pixel_that_is_not_finite_is_seen_at_any_size(side: int) -> None:
    image = pixels(as_png([with_a_hole(side), torch.zeros(side, side)]))
    shown = min(side, SIDE)
    assert image.size == (2 * shown + GAP, shown)
    red = [colour for _, colour in image.getcolors() or [] if colour[:3] == RED]
    assert len(red) == 1
    assert image.getpixel((shown // 2, shown // 2))[:3] == RED  # type: ignore[index]
    assert image.getpixel((shown + 1, 0))[3] == 0, "tiles are kept apart"  # type: ignore[index]


def test_low_is_dark_and_high_is_bright() -> None:
    image = pixels(as_png([torch.tensor([[0.0, 1.0], [-9.0, 9.0]])]))
    dark, bright = image.getpixel((0, 0)), image.getpixel((1, 0))
    assert sum(dark[:3]) < sum(bright[:3])  # type: ignore[index]
    assert (image.getpixel((0, 1)), image.getpixel((1, 1))) == (dark, bright), "and beyond is clipped"


def test_the_worst_case_fits_into_an_event_and_what_does_not_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    noise = {f"tile {number}": torch.rand(SIDE, SIDE) for number in range(3)}
    event = picture("drawn-1", "drawn", 1, "noise", noise)
    assert event is not None
    assert 40_000 < len(base64.b64decode(event.png)) <= MAX_PICTURE_BYTES
    monkeypatch.setattr(pictures, "MAX_PICTURE_BYTES", 10_000)
    assert picture("drawn-1", "drawn", 1, "noise", noise) is None


def test_a_sample_shows_each_channel_of_what_the_batch_holds_of_it() -> None:
    batch = {"image": torch.zeros(2, 1, 8, 8), "cond": torch.ones(2, 2, 8, 8), "ids": ["a", "b"]}
    tiles = tiles_of_sample(batch, 1)
    assert list(tiles) == ["image", "cond 1", "cond 2"]
    assert (float(tiles["image"].mean()), float(tiles["cond 2"].mean())) == (0.5, 1.0)


def spoil(phase: Any, loop: Any) -> None:
    """A bad sample that nobody could see in the loading process."""
    if phase == "forward" and loop.state.step == 5 and not loop.reporter.record.skips:
        loop.batch["image"][1, 0, 3, 3] = torch.nan


def test_a_sample_at_fault_is_shown_with_its_incident(lab: Any, events: list[Any]) -> None:
    loop = lab.run(steps=10, observers=[spoil])
    (incident,) = loop.reporter.record.incidents
    (shown,) = [event for event in events if isinstance(event, Picture)]
    assert (shown.kind, shown.incident) == ("sample", incident.incident)
    assert shown.title == f"sample {incident.sample_ids[0]}"
    colours = [colour[:3] for _, colour in pixels(base64.b64decode(shown.png)).getcolors() or []]
    assert RED in colours


def test_a_sample_that_can_t_be_shown_is_set_aside_all_the_same_and_that_is_told_once(
    lab: Any, events: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise IndexError("no such channel")

    def spoil_two(phase: Any, loop: Any) -> None:
        if phase == "forward" and loop.state.step in (5, 8) and len(loop.reporter.record.skips) < 2:
            loop.batch["image"][1, 0, 3, 3] = torch.nan

    monkeypatch.setattr("trainer.refusals.tiles_of_sample", fail)
    loop = lab.run(steps=12, observers=[spoil_two])
    assert loop.state.step == 12
    assert loop.reporter.record.quarantined
    (told,) = [event for event in events if isinstance(event, Finding) and event.guard == "pictures"]
    assert "no pictures of samples from now on: IndexError: no such channel" in told.message
