"""The command that draws a place of the user's own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.config import load
from trainer.data.antenna import AntennaForm
from trainer.data.condition import condition_for
from trainer.data.gray import read_antenna
from trainer.data.radiomaps import EMBEDDED, RadioMaps, RadioMapsConfig
from trainer.evaluation import draw
from trainer.trained import trained_diffusion

MASK = EMBEDDED / "png/buildings_complete/0.png"
ANTENNA = read_antenna(EMBEDDED / "png/antennas/0_0.png")
TRANSMITTER = f"{ANTENNA[0]},{ANTENNA[1]}"


def gray(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == "L"
        return np.asarray(image)


def save(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def sample(run: Any, out: Path, *more: str) -> list[str | Path]:
    place = ["--buildings", MASK, "--transmitter", TRANSMITTER]
    return ["sample", run.config, *place, "--out", out, *more]


@pytest.mark.parametrize("antenna", ["pixel", "distance"])
@pytest.mark.parametrize("size", [64, 256])
def test_a_place_of_the_data_set_has_its_condition(size: int, antenna: AntennaForm) -> None:
    config = RadioMapsConfig(image_size=size, num_transmitters=1, antenna=antenna)
    item = RadioMaps(config, "test")[0]
    assert item["id"] == "0_0"
    assert torch.equal(condition_for(MASK, ANTENNA, config)[0], item["cond"])


def test_the_map_is_what_the_averaged_model_draws(trained: Any, told: Any, tmp_path: Path) -> None:
    facts = told(*sample(trained, tmp_path / "map.png", "--steps", "2", "--seed", "3"))
    assert (facts["side_pixels"], facts["pixel_m"], facts["steps"], facts["seed"]) == (32, 8, 2, 3)
    config = load(trained.config)
    with trained_diffusion(config).weights() as model:
        cond = condition_for(MASK, ANTENNA, config.data)
        sampling = config.diffusion.sampling.model_copy(update={"steps": 2})
        drawn = draw(model, cond, sampling, torch.Generator().manual_seed(3))
    np.testing.assert_array_equal(gray(tmp_path / "map.png"), np.rint(drawn[0, 0].numpy() * 255))


def test_several_draws_give_their_mean(trained: Any) -> None:
    config = load(trained.config)
    one, three = (config.diffusion.sampling.model_copy(update={"draws": draws}) for draws in (1, 3))
    with trained_diffusion(config).weights() as model:
        cond = condition_for(MASK, ANTENNA, config.data)
        noise = torch.Generator().manual_seed(3)
        each = [draw(model, cond, one, noise) for _ in range(3)]
        mean = draw(model, cond, three, torch.Generator().manual_seed(3))
    torch.testing.assert_close(mean, torch.stack(each).mean(0))
    assert not torch.equal(each[0], each[1])


def test_seed_and_weights_make_the_map(trained: Any, told: Any, tmp_path: Path) -> None:
    def drawn(*words: str) -> np.ndarray:
        told(*sample(trained, tmp_path / "map.png", *words))
        return gray(tmp_path / "map.png").copy()

    first = drawn()
    assert (drawn() == first).all()
    assert (drawn("--seed", "1") != first).any()
    assert (drawn("--live") != first).any()


OPEN = np.zeros((256, 256), dtype=np.uint8)
ROUGH = OPEN.copy()
ROUGH[7, 9] = 130
CITY = OPEN.copy()
CITY[100:120, 50:90] = 255


@pytest.mark.parametrize(
    ("pixels", "transmitter", "words"),
    [
        (OPEN[:200], "3,3", "has 256 x 200 pixels; a map has 256 x 256"),
        (OPEN.astype(np.uint16), "3,3", "a map is 8-bit gray"),
        (np.stack([OPEN] * 3, axis=2), "3,3", "has Pillow mode 'RGB'; a map is 8-bit gray"),
        (ROUGH, "3,3", "has gray level 130 at row 7, column 9; a mask of buildings has 255 inside and 0"),
        (CITY, "256,3", "transmitter 256,3 is outside the map; give row and column from 0 to 255"),
        (CITY, "-1,3", "transmitter -1,3 is outside the map"),
        (CITY, "100,50", "transmitter 100,50 is inside a building of mask.png; give a place outdoors"),
        (CITY, "3", "--transmitter 3: give row and column as whole numbers, for example 120,88"),
        (CITY, "3,4.5", "--transmitter 3,4.5: give row and column as whole numbers"),
    ],
)
def test_a_place_that_will_not_do_is_refused(
    new_run: Any, refused: Any, tmp_path: Path, pixels: np.ndarray, transmitter: str, words: str
) -> None:
    mask = save(tmp_path / "mask.png", pixels)
    place = ["--buildings", mask, f"--transmitter={transmitter}", "--out", tmp_path / "map.png"]
    assert words in refused("sample", new_run().config, *place)
    assert not (tmp_path / "map.png").exists()


def test_other_things_that_will_not_do_are_refused(new_run: Any, refused: Any, tmp_path: Path) -> None:
    run, out = new_run(), tmp_path / "map.png"
    assert refused(*sample(run, out, "--steps", "0")).startswith("0 sampling steps; give 1 or more")
    assert refused(*sample(run, tmp_path / "no" / "map.png")).startswith("cannot write ")
    assert "there are no checkpoints in" in refused(*sample(run, out))
    cars = new_run("cars", changes={"[data]": '[data]\nvariant = "DPMCAR"'})
    assert "data.variant = DPMCAR was trained with cars as well" in refused(*sample(cars, out))
