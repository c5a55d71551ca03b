"""A condition for a place of the user's own: its buildings as an image, and where the transmitter stands."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainer.data.antenna import antenna_plane
from trainer.data.errors import BadFile, DataError
from trainer.data.gray import SOURCE_SIZE, Gray, area_mean, read_gray
from trainer.data.radiomaps import RadioMapsConfig
from trainer.data.variants import VARIANTS


def condition_for(buildings: Path, transmitter: tuple[int, int], config: RadioMapsConfig) -> Tensor:
    """What the model sees of a place, (1, C, H, W) in [-1, 1], reduced as the data set is.

    Args:
        buildings: 8-bit gray PNG, 256 x 256 pixels of 1 m: 255 inside buildings, 0 outdoors.
        transmitter: row and column in that image, from 0 on, row 0 on top.

    Raises:
        BadFile: the image is no such PNG.
        DataError: the transmitter is outside the image or inside a building, or the variant's condition has
            more than buildings and an antenna.
    """
    channels = VARIANTS[config.variant].channels
    beyond = set(channels) - {"buildings", "antenna"}
    if beyond:
        raise DataError(
            f"data.variant = {config.variant} was trained with {' and '.join(sorted(beyond))} as well; a map "
            "can be drawn by the variants whose condition is buildings and transmitter: RT, radio, IRT4"
        )
    image = _read_mask(buildings)
    _check_place(image, transmitter, buildings)
    step = SOURCE_SIZE // config.image_size
    cell = transmitter[0] // step, transmitter[1] // step
    antenna = antenna_plane(cell, config.image_size, config.antenna)
    planes = {"buildings": area_mean(image, config.image_size), "antenna": antenna}
    stack = np.stack([planes[channel] for channel in channels]).astype(np.float32)
    return torch.from_numpy(stack / 255 * 2 - 1)[None]


def _read_mask(path: Path) -> Gray:
    image = read_gray(path)
    between = np.argwhere((image != 0) & (image != 255))
    if len(between):
        row, column = between[0].tolist()
        raise BadFile(
            path,
            f"has gray level {image[row, column]} at row {row}, column {column}; a mask of buildings has 255 "
            "inside and 0 outdoors, nothing between",
        )
    return image


def _check_place(image: Gray, transmitter: tuple[int, int], path: Path) -> None:
    if not all(0 <= place < SOURCE_SIZE for place in transmitter):
        raise DataError(
            f"transmitter {transmitter[0]},{transmitter[1]} is outside the map; give row and column "
            f"from 0 to {SOURCE_SIZE - 1}"
        )
    if image[transmitter]:
        raise DataError(
            f"transmitter {transmitter[0]},{transmitter[1]} is inside a building of {path.name}; "
            "give a place outdoors, where the mask is 0"
        )
