"""8-bit gray PNGs of 256 x 256 pixels: read, checked, reduced."""

from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainer.data.errors import BadFile

Gray = NDArray[np.uint8]
"""Gray levels 0..255, (side, side), row 0 on top."""

SOURCE_SIZE = 256
"""Side of every image of RadioMapSeer and of the embedded set, in pixels of 1 m."""


def read_gray(path: Path) -> Gray:
    """One image, (256, 256).

    Raises:
        BadFile: missing, damaged (each chunk's CRC is checked, which plain decoding does not do),
            not 8-bit gray, or not 256 x 256.
    """
    try:
        data = path.read_bytes()
        Image.open(BytesIO(data), formats=["PNG"]).verify()
        image = Image.open(BytesIO(data), formats=["PNG"])
        image.load()
    except FileNotFoundError:
        raise BadFile(path, "there is no such file; is the data set complete?") from None
    # Pillow reports damage as OSError, SyntaxError or ValueError, depending on where it lies.
    except (OSError, SyntaxError, ValueError) as error:
        raise BadFile(path, f"not a whole PNG image ({error}); copy or download it again") from error
    _check_format(path, image)
    return np.asarray(image, dtype=np.uint8)


def _check_format(path: Path, image: Image.Image) -> None:
    if image.mode != "L":
        raise BadFile(path, f"has Pillow mode {image.mode!r}; a map is 8-bit gray, mode 'L'")
    if image.size != (SOURCE_SIZE, SOURCE_SIZE):
        width, height = image.size
        raise BadFile(path, f"has {width} x {height} pixels; a map has {SOURCE_SIZE} x {SOURCE_SIZE}")


def read_antenna(path: Path) -> tuple[int, int]:
    """Row and column of the one pixel above 0 in an antenna image.

    Raises:
        BadFile: as :func:`read_gray`, or no such pixel, or several.
    """
    cells = np.argwhere(read_gray(path))
    if len(cells) != 1:
        raise BadFile(path, f"marks {len(cells)} antennas; exactly one pixel must be above 0")
    row, column = cells[0].tolist()
    return row, column


def area_mean(image: Gray, side: int) -> Gray:
    """``image`` reduced to (side, side) by the mean over squares, rounded to whole levels.

    ``side`` divides the image's own side.
    """
    step = len(image) // side
    means: NDArray[np.float64] = image.reshape(side, step, side, step).mean(axis=(1, 3))
    return np.rint(means).astype(np.uint8)
