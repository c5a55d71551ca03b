"""The autoencoder between radio maps and their latents, a quarter of the side, with a Gaussian posterior."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from trainer.radiodiff.formats import in_float32, widened
from trainer.section import Section


class AutoencoderConfig(Section):
    """Sizes of the autoencoder; the defaults are the published ones."""

    in_channels: int = Field(1, ge=1, description="Channels of a radio map.")
    base_channels: int = Field(128, ge=1, description="Width at full resolution (upstream: ch).")
    channel_mult: tuple[int, ...] = Field(
        (1, 2, 4), min_length=1, description="Width of each level, times base."
    )
    num_res_blocks: int = Field(
        2, ge=1, description="Residual blocks of an encoder level; a decoder level has one more."
    )
    z_channels: int = Field(3, ge=1, description="Channels of the encoder's mean and of the decoder's input.")
    embed_dim: int = Field(3, ge=1, description="Channels of the latent.")
    num_groups: int = Field(
        32, ge=1, description="Groups of each GroupNorm; 32 is published, tiny nets need fewer."
    )

    @model_validator(mode="after")
    def _groups_divide_widths(self) -> Self:
        for width in self.widths:
            if width % self.num_groups:
                raise ValueError(
                    f"width {width} is no multiple of num_groups {self.num_groups}; choose fewer groups"
                )
        return self

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, from full resolution down."""
        return tuple(self.base_channels * mult for mult in self.channel_mult)

    @property
    def down_ratio(self) -> int:
        """Side of a map over side of its latent."""
        return int(2 ** (len(self.channel_mult) - 1))


@dataclass(frozen=True, slots=True)
class Posterior:
    """A diagonal Gaussian over latents, one for each sample of a batch; mean and logvar are (B, C, h, w)."""

    mean: Tensor
    logvar: Tensor

    @classmethod
    def from_moments(cls, moments: Tensor) -> Self:
        """Mean and log-variance side by side in the channels; the log-variance is kept within [-30, 20]."""
        mean, logvar = moments.chunk(2, dim=1)
        return cls(mean, logvar.clamp(-30.0, 20.0))

    @property
    def mode(self) -> Tensor:
        return self.mean

    def sample(self, noise: Tensor | None = None) -> Tensor:
        """``mean + std * noise``; the noise is standard normal unless it is handed in.

        Raises:
            ValueError: noise of another shape than the mean.
        """
        if noise is None:
            # a seed gives the same noise whatever the layout in memory
            noise = torch.randn_like(self.mean, memory_format=torch.contiguous_format)
        if noise.shape != self.mean.shape:
            raise ValueError(
                f"noise has shape {tuple(noise.shape)}; give {tuple(self.mean.shape)}, as the latents"
            )
        return self.mean + torch.exp(0.5 * self.logvar) * noise

    def kl(self) -> Tensor:
        """Divergence from the standard normal, summed over a sample's elements: (B,)."""
        terms = self.mean.square() + self.logvar.exp() - 1.0 - self.logvar
        return 0.5 * terms.sum(dim=(1, 2, 3))


class ResBlock(nn.Module):
    """Two times norm, swish, 3x3 convolution, added to the input."""

    def __init__(self, in_channels: int, out_channels: int, num_groups: int) -> None:
        super().__init__()
        self.norm1 = _norm(in_channels, num_groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = _norm(out_channels, num_groups)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut: nn.Module = (
            nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        out: Tensor = self.nin_shortcut(x) + h
        return out


class SpatialAttention(nn.Module):
    """One head of softmax attention over all positions, added to the input."""

    def __init__(self, channels: int, num_groups: int) -> None:
        super().__init__()
        self.norm = _norm(channels, num_groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (_as_tokens(project(h)) for project in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = x + self.proj_out(h.squeeze(1).transpose(1, 2).reshape(x.shape))
        return out


class Downsample(nn.Module):
    """Half the side: a strided convolution that pads right and bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out


class Upsample(nn.Module):
    """Twice the side: nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class Level(nn.Module):
    """Residual blocks at one resolution, and the way to the next one."""

    def __init__(self, widths: list[int], num_groups: int, resample: nn.Module | None) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResBlock(before, after, num_groups) for before, after in pairwise(widths))
        self.resample = resample if resample is not None else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        out: Tensor = self.resample(x)
        return out


class Middle(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, channels: int, num_groups: int) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels, num_groups)
        self.attn_1 = SpatialAttention(channels, num_groups)
        self.block_2 = ResBlock(channels, channels, num_groups)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block_2(self.attn_1(self.block_1(x)))
        return out


class Encoder(nn.Module):
    """Map (B, in_channels, H, W) to moments (B, 2 * z_channels, H / ratio, W / ratio)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths, groups = config.widths, config.num_groups
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList()
        for level, width in enumerate(widths):
            blocks = [widths[max(level - 1, 0)]] + [width] * config.num_res_blocks
            last = level == len(widths) - 1
            self.down.append(Level(blocks, groups, None if last else Downsample(width)))
        self.mid = Middle(widths[-1], groups)
        self.norm_out = _norm(widths[-1], groups)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        out: Tensor = self.conv_out(F.silu(self.norm_out(self.mid(h))))
        return out


class Decoder(nn.Module):
    """Latent (B, z_channels, h, w) to map (B, in_channels, h * ratio, w * ratio), not clamped."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths, groups = config.widths, config.num_groups
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], groups)
        self.up = nn.ModuleList()
        for level, width in enumerate(widths):
            before = widths[min(level + 1, len(widths) - 1)]
            blocks = [before] + [width] * (config.num_res_blocks + 1)
            self.up.append(Level(blocks, groups, Upsample(width) if level else None))
        self.norm_out = _norm(widths[0], groups)
        self.conv_out = nn.Conv2d(widths[0], config.in_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        h = F.silu(self.norm_out(h))
        with in_float32(h):  # the result is a map, and what the adversarial weight is measured by
            out: Tensor = self.conv_out(widened(h))
        return out


class Autoencoder(nn.Module):
    """Encoder, decoder, and the 1x1 convolutions between them and the latent."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.z_channels, 2 * config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, 1)

    def encode(self, image: Tensor) -> Posterior:
        """Posterior over the latents of ``image``, (B, in_channels, H, W) in [-1, 1].

        Raises:
            ValueError: another number of channels, or a side that is no multiple of the down ratio.
        """
        self._check(image)
        return Posterior.from_moments(widened(self.quant_conv(self.encoder(image))))

    def decode(self, z: Tensor) -> Tensor:
        """Map of a latent, (B, embed_dim, h, w), in about [-1, 1]."""
        out: Tensor = self.decoder(self.post_quant_conv(z))
        return out

    def _check(self, image: Tensor) -> None:
        ratio, channels = self.config.down_ratio, self.config.in_channels
        if image.ndim != 4 or image.shape[1] != channels:
            raise ValueError(
                f"image has shape {tuple(image.shape)}; the autoencoder wants (B, {channels}, H, W)"
            )
        if image.shape[2] % ratio or image.shape[3] % ratio:
            raise ValueError(
                f"image is {image.shape[2]}x{image.shape[3]}; give sides that are multiples of {ratio}, "
                f"because the autoencoder halves them {ratio.bit_length() - 1} times"
            )


def _norm(channels: int, num_groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(num_groups, channels, eps=1e-6)


def _as_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) to one head of H * W tokens, (B, 1, H * W, C)."""
    return x.flatten(2).transpose(1, 2).unsqueeze(1)
