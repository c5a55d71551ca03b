"""The PatchGAN discriminator of the first stage, and its two losses."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

AdversarialLoss = Literal["hinge", "vanilla"]


class PatchDiscriminator(nn.Module):
    """Map (B, in_channels, H, W) to logits for overlapping patches: high where it looks real.

    The numbers of the layers are those of the published keys: LeakyReLU and norms sit between convolutions.
    """

    def __init__(self, in_channels: int, base_channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(in_channels, base_channels, 4, 2, 1), nn.LeakyReLU(0.2)]
        for width, stride in ((1, 2), (2, 2), (4, 1)):
            before, after = width * base_channels, 2 * width * base_channels
            layers += [
                nn.Conv2d(before, after, 4, stride, 1, bias=False),
                nn.BatchNorm2d(after),
                nn.LeakyReLU(0.2),
            ]
        layers.append(nn.Conv2d(8 * base_channels, 1, 4, 1, 1))
        self.main = nn.Sequential(*layers)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.main(x)
        return logits


def discriminator_loss(real: Tensor, fake: Tensor, kind: AdversarialLoss) -> Tensor:
    """Scalar loss of the logits for real maps and for reconstructions."""
    if kind == "hinge":
        return 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean())
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
