"""The picture truth | drawn | error."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from trainer.data.picture import draw_maps

DEEP_RED = (103, 0, 31)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def pixels_of(path: Path, colour: tuple[int, int, int]) -> int:
    return int((pixels(path) == colour).all(-1).sum())


def test_a_picture_holds_a_panel_for_every_map_and_row(tmp_path: Path) -> None:
    one, three = tmp_path / "one.png", tmp_path / "three.png"
    for path, number in ((one, 1), (three, 3)):
        maps = torch.rand(number, 1, 32, 32, generator=torch.Generator().manual_seed(0))
        draw_maps(path, maps, maps, [f"{i}_0" for i in range(number)], [0.0] * number)
    assert pixels(three).shape[1] > 1.5 * pixels(one).shape[1]


def test_no_error_is_drawn_white_and_a_large_one_dark(tmp_path: Path) -> None:
    dark = torch.zeros(1, 1, 32, 32)
    draw_maps(tmp_path / "same.png", dark, dark, ["0_0"], [0.0])
    draw_maps(tmp_path / "other.png", dark, dark + 1, ["0_0"], [1.0])
    same, other = (pixels_of(tmp_path / name, DEEP_RED) for name in ("same.png", "other.png"))
    assert other > same + 10_000  # the panel, and not only the end of the colour bar


def test_a_nan_is_drawn_red(tmp_path: Path) -> None:
    truth = torch.zeros(1, 1, 32, 32)
    drawn = truth.clone()
    drawn[0, 0, :8] = torch.nan
    draw_maps(tmp_path / "nan.png", truth, drawn, ["0_0"], [float("nan")])
    assert pixels_of(tmp_path / "nan.png", (255, 0, 0)) > 1000


def test_a_failed_save_keeps_the_older_picture_and_leaves_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, maps = tmp_path / "maps.png", torch.rand(1, 1, 16, 16)
    path.write_bytes(b"older")

    def fail(_: Figure, target: Path, **__: object) -> None:
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        draw_maps(path, maps, maps, ["0_0"], [0.0])
    assert path.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [path]


def test_names_that_do_not_fit_the_maps_are_refused(tmp_path: Path) -> None:
    maps = torch.rand(2, 1, 16, 16)
    with pytest.raises(ValueError, match="zip"):
        draw_maps(tmp_path / "maps.png", maps, maps, ["0_0"], [0.0])
    assert list(tmp_path.iterdir()) == []
