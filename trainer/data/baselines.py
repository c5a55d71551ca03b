"""What a model must beat: guesses that need no training."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from trainer.data.gray import SOURCE_SIZE
from trainer.data.radiomaps import RadioMaps
from trainer.data.variants import Variant


def mean_map(maps: RadioMaps) -> Tensor:
    """The mean of all targets of a split, untransformed: (1, H, W), values in [0, 1]."""
    return torch.stack([maps[index]["image"] for index in range(len(maps))]).mean(0) * 0.5 + 0.5


@dataclass(frozen=True)
class PathLoss:
    """Path loss over distance, nothing inside buildings: gain = outdoors * (a + b * log10(distance / 1 m)).

    ``outdoors`` is the share of a pixel that no building covers: 0 or 1 in maps of full size. Distances are
    horizontal and at least half a pixel, where the antenna stands. Gains are those of the maps, in [0, 1].
    Where the condition has measurements and no antenna, the brightest one is taken for its place.
    """

    variant: Variant
    a: float
    b: float

    @classmethod
    def fit(cls, maps: RadioMaps) -> Self:
        """Least squares over the outdoor pixels of a split. Costs one pass, in float64."""
        inner, outer = torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
        for index in range(len(maps)):
            item = maps[index]
            terms = _terms(item["cond"][None], maps.variant).double().flatten(1)
            gain = (item["image"].double().flatten() + 1) / 2
            inner += terms @ terms.T
            outer += terms @ gain
        a, b = torch.linalg.solve(inner, outer).tolist()
        return cls(maps.variant, a, b)

    def predict(self, cond: Tensor) -> Tensor:
        """Maps in [0, 1], (B, 1, H, W), for conditions (B, C, H, W) in [-1, 1]."""
        outdoors, logarithm = _terms(cond, self.variant).unbind()
        return (self.a * outdoors + self.b * logarithm).clamp(0, 1)[:, None]


def _terms(cond: Tensor, variant: Variant) -> Tensor:
    """What a and b are multiplied with: (2, B, H, W)."""
    outdoors: Tensor = (1 - cond[:, variant.channels.index("buildings")]) / 2
    where = "antenna" if "antenna" in variant.channels else "samples"
    antenna = cond[:, variant.channels.index(where)]
    height, width = antenna.shape[1:]
    place = antenna.flatten(1).argmax(1)
    row, column = place // width, place % width
    rows = torch.arange(height)[None, :, None] - row[:, None, None]
    columns = torch.arange(width)[None, None, :] - column[:, None, None]
    pixels = torch.hypot(rows.float(), columns.float()).clamp_min(0.5)
    return torch.stack([outdoors, outdoors * torch.log10(pixels * SOURCE_SIZE / height)])
