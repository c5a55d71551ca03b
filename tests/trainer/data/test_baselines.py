"""The path-loss model: a least-squares line over outdoor pixels, and nothing inside buildings."""

import numpy as np
import pytest
import torch

from trainer.data.baselines import PathLoss, mean_map
from trainer.data.radiomaps import RadioMaps, RadioMapsConfig


@pytest.fixture(scope="module")
def maps() -> RadioMaps:
    return RadioMaps(RadioMapsConfig(num_transmitters=1), "train")


def pixel_by_pixel(maps: RadioMaps, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Outdoor mask, decades of metres to the antenna and gain of a map of full size, the plain way."""
    item = maps[index]
    row, column = np.argwhere(item["cond"][1].numpy() == 1)[0]
    rows, columns = np.mgrid[0:256, 0:256]
    distance = np.sqrt((rows - row) ** 2.0 + (columns - column) ** 2.0)
    return (
        item["cond"][0].numpy() == -1,
        np.log10(np.maximum(distance, 0.5)),
        item["image"][0].numpy() / 2 + 0.5,
    )


def test_the_line_is_that_of_numpy_over_all_outdoor_pixels(maps: RadioMaps) -> None:
    decades, gains = [], []
    for index in range(len(maps)):
        outdoors, decade, gain = pixel_by_pixel(maps, index)
        decades.append(decade[outdoors])
        gains.append(gain[outdoors])
    b, a = np.polyfit(np.concatenate(decades), np.concatenate(gains), 1)
    line = PathLoss.fit(maps)
    assert (line.a, line.b) == (pytest.approx(a, rel=1e-4), pytest.approx(b, rel=1e-4))
    assert line.b < 0 < line.a


def test_a_guess_falls_with_distance_and_is_0_inside_buildings(maps: RadioMaps) -> None:
    line = PathLoss(maps.variant, 0.9, -0.2)
    guess = line.predict(maps[3]["cond"][None])
    outdoors, decade, _ = pixel_by_pixel(maps, 3)
    assert guess.shape == (1, 1, 256, 256)
    expected = np.where(outdoors, 0.9 - 0.2 * decade, 0)
    np.testing.assert_allclose(guess[0, 0].numpy(), expected, atol=1e-6)


def test_distances_are_metres_at_every_size() -> None:
    small = RadioMaps(RadioMapsConfig(image_size=64, num_transmitters=1), "train")
    cond = -torch.ones(1, 3, 64, 64)
    cond[0, 1, 20, 30] = 1
    guess = PathLoss(small.variant, 1.0, -0.25).predict(cond)[0, 0]
    assert float(guess[20, 55]) == pytest.approx(1 - 0.25 * 2)  # 25 pixels of 4 m are 100 m


def test_it_is_a_harder_guess_to_beat_than_the_mean_map(maps: RadioMaps) -> None:
    line, mean = PathLoss.fit(maps), mean_map(maps)
    test = RadioMaps(RadioMapsConfig(num_transmitters=1), "test")
    truth = torch.stack([test[index]["image"] for index in range(len(test))]) / 2 + 0.5
    cond = torch.stack([test[index]["cond"] for index in range(len(test))])
    assert (line.predict(cond) - truth).square().mean() < (mean - truth).square().mean()
