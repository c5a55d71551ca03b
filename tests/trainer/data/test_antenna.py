"""The antenna's channel: the published pixel, or the logarithm of the distance to it."""

import math

import numpy as np
import torch

from trainer.data.antenna import antenna_plane
from trainer.data.baselines import PathLoss
from trainer.data.radiomaps import RadioMaps, RadioMapsConfig

PIXEL = RadioMapsConfig(image_size=64)
DISTANCE = PIXEL.model_copy(update={"antenna": "distance"})


def test_a_pixel_is_all_there_is_in_the_published_form() -> None:
    plane = antenna_plane((3, 5), 8, "pixel")
    assert plane[3, 5] == 255
    assert plane.sum() == 255


def test_the_distance_form_falls_with_the_logarithm_of_the_distance() -> None:
    plane = antenna_plane((3, 5), 8, "distance")
    for row in range(8):
        for column in range(8):
            away = max(math.hypot(row - 3, column - 5), 0.5)
            expected = 255 * (1 - math.log(away / 0.5) / math.log(8 * math.sqrt(2) / 0.5))
            assert abs(float(plane[row, column]) - expected) <= 0.5


def test_training_turns_the_distance_with_the_map() -> None:
    pixel, distance = RadioMaps(PIXEL, "train"), RadioMaps(DISTANCE, "train")
    for seed in range(8):
        one, other = (maps.example(0, np.random.default_rng(seed))["cond"] for maps in (pixel, distance))
        assert int(one[1].argmax()) == int(other[1].argmax())
        assert torch.equal(one[0], other[0])


def test_the_path_loss_model_is_the_same_for_both_forms() -> None:
    assert PathLoss.fit(RadioMaps(PIXEL, "val")) == PathLoss.fit(RadioMaps(DISTANCE, "val"))


def test_the_forms_are_different_data() -> None:
    assert RadioMaps(PIXEL, "val").fingerprint != RadioMaps(DISTANCE, "val").fingerprint
