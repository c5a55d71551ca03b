"""LPIPS: how different two maps look to a VGG16, with weights that come from a file."""

from itertools import pairwise
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from trainer.radiodiff.upstream_names import to_upstream

VGG_SLICES = ((0, 2, 64), (5, 2, 128), (10, 3, 256), (17, 3, 512), (24, 3, 512))
"""Each part of VGG16: the number of its first convolution, how many there are, their width."""


class Scaling(nn.Module):
    """From [-1, 1] to the range that VGG16 was trained on; one channel becomes three."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).reshape(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).reshape(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.shift) / self.scale


class Lpips(nn.Module):
    """Learned perceptual distance. Frozen, and in eval mode whatever ``train()`` is told."""

    def __init__(self) -> None:
        super().__init__()
        widths = [3, *(width for _, _, width in VGG_SLICES)]
        self.scaling = Scaling()
        self.slices = nn.ModuleList(
            _slice(first, [before] + [after] * count)
            for (first, count, _), (before, after) in zip(VGG_SLICES, pairwise(widths), strict=True)
        )
        self.linear = nn.ModuleList(nn.Conv2d(width, 1, 1, bias=False) for width in widths[1:])
        self.requires_grad_(False).eval()

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Read an upstream first-stage checkpoint, or a file that holds its ``perceptual_loss`` alone.

        Raises:
            ValueError: the file lacks tensors; the message names them.
        """
        content = torch.load(path, map_location="cpu", weights_only=True)
        tensors = content.get("model", content)
        found = {name.rpartition("perceptual_loss.")[2]: tensor for name, tensor in tensors.items()}
        model = cls()
        upstream = {name: _upstream_name(name) for name in model.state_dict()}
        missing = sorted(upstream.values() - found.keys())
        if missing:
            raise ValueError(
                f"{path} lacks LPIPS tensors: {', '.join(missing)}; "
                "give an upstream first-stage checkpoint, or no perceptual_weights to train without LPIPS"
            )
        model.load_state_dict({name: found[theirs] for name, theirs in upstream.items()})
        return model

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distance of maps (B, 1, H, W) in [-1, 1], one for each sample: (B, 1, 1, 1)."""
        x, y = self.scaling(x), self.scaling(y)
        distances = []
        for part, linear in zip(self.slices, self.linear, strict=True):
            x, y = part(x), part(y)
            difference = (_unit_length(x) - _unit_length(y)).square()
            distances.append(linear(difference).mean(dim=(2, 3), keepdim=True))
        return torch.stack(distances).sum(dim=0)


def _upstream_name(name: str) -> str:
    return to_upstream(f"perceptual.{name}", "first_stage").removeprefix("loss.perceptual_loss.")


def _slice(first: int, widths: list[int]) -> nn.Sequential:
    """Convolutions with ReLU, numbered as in VGG16; all slices but the first begin with pooling."""
    part = nn.Sequential()
    if first:
        part.add_module(str(first - 1), nn.MaxPool2d(2))
    for index, (before, after) in enumerate(pairwise(widths)):
        part.add_module(str(first + 2 * index), nn.Conv2d(before, after, 3, padding=1))
        part.add_module(str(first + 2 * index + 1), nn.ReLU())
    return part


def _unit_length(x: Tensor) -> Tensor:
    """Divide the channels of each position by their norm."""
    return x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)
