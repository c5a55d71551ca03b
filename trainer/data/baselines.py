"""What a model must beat: guesses that need no training."""

import torch
from torch import Tensor

from trainer.data.radiomaps import RadioMaps


def mean_map(maps: RadioMaps) -> Tensor:
    """The mean of all targets of a split, untransformed: (1, H, W), values in [0, 1]."""
    return torch.stack([maps[index]["image"] for index in range(len(maps))]).mean(0) * 0.5 + 0.5
