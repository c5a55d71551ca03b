"""Small pictures for the monitor's pages: square tiles side by side, as a PNG of few kilobytes."""

import base64
import io
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal

import torch
from matplotlib import colormaps
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from shared.events import MAX_PICTURE_BYTES, Picture

SIDE = 128
"""Of a tile at most, pixels: three of them fit into 64 KiB even if they are noise."""

GAP = 4
MOST_TILES = 6
_RED, _CLEAR = 254, 255
"""Places in the palette: a value that is not finite, and the gap between tiles. The others are viridis."""


def picture(
    name: str,
    kind: Literal["drawn", "sample"],
    step: int,
    title: str,
    tiles: Mapping[str, Tensor],
    *,
    incident: str | None = None,
    reading: Mapping[str, float] | None = None,
) -> Picture | None:
    """The event that carries the tiles, (H, W) each, from 0 to 1; ``None`` where they are too much."""
    content = as_png(list(tiles.values()))
    if len(content) > MAX_PICTURE_BYTES:
        return None
    return Picture(
        picture=name,
        kind=kind,
        step=step,
        title=title[:200],
        tiles=tuple(tiles),
        png=base64.b64encode(content).decode(),
        incident=incident,
        reading=dict(reading or {}),
    )


def tiles_of_sample(batch: Mapping[str, Any], place: int) -> dict[str, Tensor]:
    """What a batch holds of one sample: a tile for each channel of its tensors (B, C, H, W) in [-1, 1]."""
    tiles: dict[str, Tensor] = {}
    for key, value in batch.items():
        if isinstance(value, Tensor) and value.dim() == 4 and value.is_floating_point():
            channels = value[place].detach().float().cpu()
            for number, channel in enumerate(channels, 1):
                tiles[key if len(channels) == 1 else f"{key} {number}"] = (channel + 1) / 2
    return dict(list(tiles.items())[:MOST_TILES])


def as_png(tiles: Sequence[Tensor]) -> bytes:
    """Tiles (H, W) with values from 0 to 1 in one row; what is not finite is red, also if it is one pixel."""
    small = [_as_indices(tile) for tile in tiles]
    height, width = max(len(one) for one in small), sum(one.shape[1] + GAP for one in small) - GAP
    canvas = torch.full((height, width), _CLEAR, dtype=torch.uint8)
    left = 0
    for one in small:
        canvas[: len(one), left : left + one.shape[1]] = one
        left += one.shape[1] + GAP
    image = Image.fromarray(canvas.numpy(), mode=None).convert("P")
    image.putpalette(_palette())
    content = io.BytesIO()
    image.save(content, format="PNG", optimize=True, transparency=_CLEAR)
    return content.getvalue()


def _as_indices(tile: Tensor) -> Tensor:
    """(H, W) of any size as (h, w) of at most ``SIDE`` a side, places in the palette."""
    tile = tile.detach().float().cpu()
    size = (min(SIDE, tile.shape[0]), min(SIDE, tile.shape[1]))
    small = adaptive_avg_pool2d(tile[None, None], size)[0, 0]  # the mean over a NaN is NaN
    shade = (small.nan_to_num(0, 0, 0).clamp(0, 1) * (_RED - 1)).round()
    return torch.where(small.isfinite(), shade, float(_RED)).to(torch.uint8)


@cache
def _palette() -> list[int]:
    viridis = colormaps["viridis"]
    shades = [viridis(shade / (_RED - 1))[:3] for shade in range(_RED)]
    return [round(255 * part) for shade in [*shades, (0.85, 0.15, 0.15), (0, 0, 0)] for part in shade]
