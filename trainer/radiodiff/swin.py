"""The condition encoder: a Swin transformer whose four stages give a pyramid of features."""

from functools import lru_cache
from typing import Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from trainer.section import Section

MASKED = -100.0
"""Added to the logits between regions that are neighbours only because of the cyclic shift."""


class SwinConfig(Section):
    """Sizes of the condition encoder; the defaults are Swin-B."""

    embed_dim: int = Field(
        128, ge=1, description="Width of the first stage; each later one is twice as wide."
    )
    depths: tuple[int, ...] = Field((2, 2, 18, 2), description="Blocks of each stage.")
    heads: tuple[int, ...] = Field((4, 8, 16, 32), description="Attention heads of each stage.")
    window: int = Field(7, ge=2, description="Side of an attention window, in tokens.")
    mlp_ratio: int = Field(4, ge=1, description="Width inside a block's MLP over its own width.")
    stochastic_depth: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="Chance of leaving out the last block in training; it rises linearly from 0.",
    )
    num_classes: int = Field(
        1000, ge=1, description="Rows of the classifier that the weights come with; never used."
    )

    @model_validator(mode="after")
    def _stages_agree(self) -> Self:
        if len(self.depths) != len(self.heads):
            raise ValueError(
                f"depths has {len(self.depths)} stages and heads {len(self.heads)}; give each stage both"
            )
        for width, heads in zip(self.widths, self.heads, strict=True):
            if width % heads:
                raise ValueError(f"stage width {width} can't be split among {heads} heads; choose a divisor")
        return self

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return tuple(self.embed_dim * 2**stage for stage in range(len(self.depths)))


class WindowAttention(nn.Module):
    """Softmax attention inside windows, with a learned bias for each relative position.

    Args:
        shift: side of the cyclic shift, 0 or half a window. An axis that fits into one window is not shifted;
            this is decided anew for each input.
    """

    position_index: Tensor

    def __init__(self, channels: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.position_bias = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.position_bias, std=0.02)
        self.register_buffer("position_index", relative_position_index(window), persistent=False)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the same shape."""
        height, width = x.shape[1:3]
        # the zeros that fill up the windows are projected to the bias: no need to multiply them
        qkv = F.linear(x, self.qkv.weight)
        qkv = F.pad(qkv, (0, 0, 0, -width % self.window, 0, -height % self.window))
        qkv = qkv + self.qkv.bias.to(qkv.dtype)
        shift = self._shift_for(qkv.shape[1], qkv.shape[2])
        if any(shift):
            qkv = qkv.roll((-shift[0], -shift[1]), dims=(1, 2))
        x = self._attend(qkv, shift)
        if any(shift):
            x = x.roll(shift, dims=(1, 2))
        out: Tensor = self.proj(x[:, :height, :width])
        return out

    def _shift_for(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns to shift: an axis that one window covers stays where it is."""
        return (
            0 if self.window >= height else self.shift,
            0 if self.window >= width else self.shift,
        )

    def _attend(self, qkv: Tensor, shift: tuple[int, int]) -> Tensor:
        """From (B, H, W, 3 * C), both sides multiples of the window's, to (B, H, W, C)."""
        batch, height, width, channels = *qkv.shape[:3], qkv.shape[3] // 3
        window, head_dim = self.window, channels // self.heads
        rows, columns = height // window, width // window
        qkv = qkv.reshape(batch, rows, window, columns, window, 3, self.heads, head_dim)
        qkv = qkv.permute(5, 0, 1, 3, 6, 2, 4, 7)  # the two inner sides of a window go behind the heads
        q, k, v = qkv.reshape(3, batch, rows * columns, self.heads, window**2, head_dim)
        # written out: with a bias that needs a gradient the fused function takes a slower way on a CPU
        logits = (q * head_dim**-0.5) @ k.transpose(-1, -2) + self._logit_bias(height, width, shift)
        h = (logits.softmax(dim=-1) @ v).reshape(batch, rows, columns, self.heads, window, window, head_dim)
        out: Tensor = h.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, height, width, channels)
        return out

    def _logit_bias(self, height: int, width: int, shift: tuple[int, int]) -> Tensor:
        """Position bias, (heads, tokens, tokens); after a shift (windows, heads, tokens, tokens)."""
        tokens = self.window**2
        bias = self.position_bias.index_select(0, self.position_index)
        bias = bias.reshape(tokens, tokens, self.heads).permute(2, 0, 1)
        if not any(shift):
            return bias
        return bias + shift_mask(height, width, self.window, shift, bias.device)[:, None]


class StochasticDepth(nn.Module):
    """In training leaves out a whole sample's branch with the given chance and scales up the others."""

    def __init__(self, chance: float) -> None:
        super().__init__()
        self.chance = chance

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.chance == 0:
            return x
        keep = 1.0 - self.chance
        kept = torch.empty((x.shape[0], *(1,) * (x.ndim - 1)), dtype=x.dtype, device=x.device).bernoulli_(
            keep
        )
        return x * kept.div_(keep)


class SwinBlock(nn.Module):
    """Window attention and an MLP, each normed before and added after."""

    def __init__(self, config: SwinConfig, stage: int, shift: int, chance: float) -> None:
        super().__init__()
        channels = config.widths[stage]
        self.norm1 = nn.LayerNorm(channels)
        self.attention = WindowAttention(channels, config.heads[stage], config.window, shift)
        self.norm2 = nn.LayerNorm(channels)
        self.widen = nn.Linear(channels, config.mlp_ratio * channels)
        self.narrow = nn.Linear(config.mlp_ratio * channels, channels)
        self.stochastic_depth = StochasticDepth(chance)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.stochastic_depth(self.attention(self.norm1(x)))
        out: Tensor = x + self.stochastic_depth(self.narrow(F.gelu(self.widen(self.norm2(x)))))
        return out


class PatchMerging(nn.Module):
    """Half the side and twice the channels: four neighbours side by side, normed, projected."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, ceil(H / 2), ceil(W / 2), 2 * C); rows come first."""
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        x = torch.cat([x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], dim=-1)
        out: Tensor = self.reduction(self.norm(x))
        return out


class SwinEncoder(nn.Module):
    """Image (B, 3, H, W) to a map of each stage i: (B, embed_dim * 2^i, H / 2^(i + 2), W / 2^(i + 2)).

    ``norm`` and ``head`` end the classifier that the published weights were trained as. They are kept so that
    checkpoints stay whole, take no part in ``forward``, and never get a gradient.
    """

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_conv = nn.Conv2d(3, config.embed_dim, 4, stride=4)
        self.patch_norm = nn.LayerNorm(config.embed_dim)
        self.stages = nn.ModuleList(_stage(config, stage) for stage in range(len(config.depths)))
        self.merges = nn.ModuleList(PatchMerging(width) for width in config.widths[:-1])
        self.norm = nn.LayerNorm(config.widths[-1])
        self.head = nn.Linear(config.widths[-1], config.num_classes)
        self.apply(_initialise)

    def forward(self, image: Tensor) -> list[Tensor]:
        x = self.patch_norm(self.patch_conv(image).permute(0, 2, 3, 1))
        pyramid = []
        for stage, merge in zip(self.stages, [*self.merges, None], strict=True):
            x = stage(x)
            pyramid.append(x.permute(0, 3, 1, 2))
            x = merge(x) if merge is not None else x
        return pyramid


@lru_cache(maxsize=64)
def shift_mask(height: int, width: int, window: int, shift: tuple[int, int], device: torch.device) -> Tensor:
    """What to add to the logits of each window, (windows, tokens, tokens): -100 between regions, else 0.

    After the cyclic shift the last window of an axis holds tokens from both ends: those are two regions.
    """
    with torch.inference_mode(False), torch.no_grad():
        rows = _regions(height, window, shift[0], device)
        columns = _regions(width, window, shift[1], device)
        region = rows[:, None] * 3 + columns[None, :]
        region = region.reshape(height // window, window, width // window, window)
        region = region.permute(0, 2, 1, 3).reshape(-1, window**2)
        return (region[:, :, None] != region[:, None, :]).float() * MASKED


def relative_position_index(window: int) -> Tensor:
    """Row of the bias table for each pair of tokens in a window, flat: (window^4,)."""
    position = torch.arange(window)
    apart = position[:, None] - position[None, :] + window - 1
    rows = apart[:, None, :, None].expand(-1, window, -1, window)
    columns = apart[None, :, None, :].expand(window, -1, window, -1)
    return (rows * (2 * window - 1) + columns).flatten()


def _regions(length: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Region of each position along an axis: 0, then 1 in the last window, then 2 for what came around."""
    position = torch.arange(length, device=device)
    if shift == 0:
        return torch.zeros_like(position)
    return (position >= length - window).int() + (position >= length - shift).int()


def _stage(config: SwinConfig, stage: int) -> nn.Sequential:
    """The blocks of one stage; every second one is shifted by half a window."""
    before = sum(config.depths[:stage])
    steps = max(sum(config.depths) - 1, 1)
    return nn.Sequential(
        *(
            SwinBlock(
                config,
                stage,
                shift=config.window // 2 if block % 2 else 0,
                chance=config.stochastic_depth * (before + block) / steps,
            )
            for block in range(config.depths[stage])
        )
    )


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
