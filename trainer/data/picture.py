"""A picture of drawn maps beside the truth: one column a map, rows truth, drawn, error."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

FLOOR_DB, TOP_DB = -147.0, -47.84
"""Path gain at values 0 and 1: RadioMapSeer's truncation, and free space at 1 m and 5.9 GHz."""

ERROR_DB = 40.0
"""Ends of the error's colours, dB; a larger error has the last colour."""

_MAP_IN = 1.9
"""Side of a map with its title, inches."""


def draw_maps(
    path: Path, truth: Tensor, drawn: Tensor, ids: Sequence[str], nmse: Sequence[float] | Tensor
) -> None:
    """Write a PNG; it replaces an older one at once, or not at all.

    Args:
        path: where; its folder exists.
        truth, drawn: (N, 1, H, W), values in [0, 1], on any device. A NaN is drawn as a red pixel.
        ids, nmse: N each, for the titles.
    """
    true_db, drawn_db = _decibels(truth), _decibels(drawn)
    size_in = (_MAP_IN * (len(ids) + 1), 3 * _MAP_IN)
    figure = Figure(figsize=size_in, dpi=110, layout="compressed")
    axes = figure.subplots(3, len(ids), squeeze=False)
    _draw_row(figure, axes[0], "truth", true_db, _GAIN)
    _draw_row(figure, axes[1], "drawn", drawn_db, _GAIN)
    _draw_row(figure, axes[2], "error", drawn_db - true_db, _ERROR)
    for column, (name, value) in enumerate(zip(ids, nmse, strict=True)):
        axes[0, column].set_title(f"map {name}", fontsize=10)
        axes[1, column].set_title(f"NMSE {float(value):.3f}", fontsize=10)
    _write(path, figure)


def _decibels(maps: Tensor) -> NDArray[np.float64]:
    """(N, 1, H, W) in [0, 1] as (N, H, W) in dB."""
    values: NDArray[np.float64] = maps.detach().cpu().double().numpy()[:, 0]
    return FLOOR_DB + (TOP_DB - FLOOR_DB) * values


class _Colours(NamedTuple):
    name: str
    low: float
    high: float
    label: str


_GAIN = _Colours("viridis", FLOOR_DB, TOP_DB, "path gain, dB")
_ERROR = _Colours("RdBu_r", -ERROR_DB, ERROR_DB, "drawn \N{MINUS SIGN} truth, dB")


def _draw_row(
    figure: Figure, row: Sequence[Axes], name: str, maps: NDArray[np.float64], colours: _Colours
) -> None:
    """A row with its name on the left and its colour bar on the right."""
    row[0].set_ylabel(name, fontsize=12)
    for axis, image in zip(row, maps, strict=True):
        shown = axis.imshow(image, cmap=colours.name, vmin=colours.low, vmax=colours.high)
        axis.set_facecolor("red")  # shines through where a pixel is NaN
        axis.set_xticks([])
        axis.set_yticks([])
    figure.colorbar(shown, ax=list(row), label=colours.label, pad=0.08 / len(row))


def _write(path: Path, figure: Figure) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        FigureCanvasAgg(figure)
        figure.savefig(unfinished, format="png")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
