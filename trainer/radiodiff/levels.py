"""The U-Net's levels: one step down, the middle, one step up."""

import torch
from torch import Tensor, nn

from trainer.radiodiff.attention import FullAttention, LinearAttention
from trainer.radiodiff.blocks import ResnetBlock
from trainer.radiodiff.relation import RelationNet, Window

Skips = tuple[Tensor, Tensor]
"""What a level on the way down leaves for the way up, in the order in which it was made."""


class DownLevel(nn.Module):
    """Residual block, relation to the condition, residual block, linear attention; then half the side."""

    def __init__(self, dim_in: int, dim_out: int, time_dim: int, window: Window, *, is_last: bool) -> None:
        super().__init__()
        self.block1 = ResnetBlock(dim_in, dim_in, time_dim)
        self.relation = RelationNet(dim_in, dim_in, dim_in, window, window)
        self.block2 = ResnetBlock(dim_in, dim_in, time_dim)
        self.attention = LinearAttention(dim_in)
        self.resample = (
            nn.Conv2d(dim_in, dim_out, 3, padding=1)
            if is_last
            else nn.Conv2d(dim_in, dim_out, 4, stride=2, padding=1)
        )

    def forward(self, x: Tensor, cond: Tensor, time: Tensor) -> tuple[Tensor, Skips]:
        """From (B, dim_in, h, w) to (B, dim_out, h / 2, w / 2), the last level to (B, dim_out, h, w).

        ``cond`` is the level's condition (B, dim_in, h, w), ``time`` the embedding (B, time_dim).
        """
        first = self.block1(x, time)
        second = self.attention(self.block2(self.relation(cond, first), time))
        return self.resample(second), (first, second)


class Middle(nn.Module):
    """Residual block, full attention, residual block."""

    def __init__(self, channels: int, time_dim: int) -> None:
        super().__init__()
        self.block1 = ResnetBlock(channels, channels, time_dim)
        self.attention = FullAttention(channels)
        self.block2 = ResnetBlock(channels, channels, time_dim)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        out: Tensor = self.block2(self.attention(self.block1(x, time)), time)
        return out


class UpLevel(nn.Module):
    """The way back of a ``DownLevel`` with the same widths; its residual blocks take up what that left."""

    def __init__(self, dim_in: int, dim_out: int, time_dim: int, window: Window, *, is_last: bool) -> None:
        super().__init__()
        self.block1 = ResnetBlock(dim_out + dim_in, dim_out, time_dim)
        self.relation = RelationNet(dim_in, dim_out, dim_out, window, window)
        self.block2 = ResnetBlock(dim_out + dim_in, dim_out, time_dim)
        self.attention = LinearAttention(dim_out)
        convolution = nn.Conv2d(dim_out, dim_in, 3, padding=1)
        self.resample: nn.Module = (
            convolution if is_last else nn.Sequential(nn.Upsample(scale_factor=2), convolution)
        )

    def forward(self, x: Tensor, cond: Tensor, skips: Skips, time: Tensor) -> Tensor:
        """From (B, dim_out, h, w) to (B, dim_in, 2h, 2w), the last level to (B, dim_in, h, w)."""
        first, second = skips
        x = self.block1(torch.cat([x, second], dim=1), time)
        x = self.relation(cond, x)
        x = self.attention(self.block2(torch.cat([x, first], dim=1), time))
        out: Tensor = self.resample(x)
        return out
