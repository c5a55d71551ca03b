"""The conditional U-Net: from a noisy latent, its time and a condition image to the drift and the noise."""

from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from trainer.radiodiff.blocks import FrequencyFilter, ResnetBlock, TimeEmbedding
from trainer.radiodiff.formats import widened
from trainer.radiodiff.levels import DownLevel, Middle, Skips, UpLevel
from trainer.radiodiff.relation import Window
from trainer.radiodiff.swin import SwinConfig, SwinEncoder
from trainer.section import Section

CAR_CHANNELS = 5
"""Channels of the condition in the cars-and-K2 variant; all others have three."""


class UnetConfig(Section):
    """Sizes of the U-Net; the defaults are the published ones, for maps of 256x256."""

    dim: int = Field(128, ge=8, description="Width of the stem; the time embedding is four times as wide.")
    dim_mults: tuple[int, ...] = Field(
        (1, 2, 4, 4), min_length=2, description="Width after each level, in dims."
    )
    channels: int = Field(3, ge=1, description="Channels of the latent.")
    cond_channels: int = Field(3, description="Channels of the condition: 3, or 5 for cars with K2.")
    windows: tuple[Window, ...] = Field(
        ((8, 8), (4, 4), (2, 2), (1, 1)), description="Rows and columns averaged to a token, for each level."
    )
    fourier_scale: float = Field(
        16.0, gt=0, description="Standard deviation of the time embedding's frequencies."
    )
    input_size: tuple[int, int] = Field(
        (80, 80), description="Fixes the frequency filters; for maps of H x W: 8 (H/32 + 2), 8 (W/32 + 2)."
    )
    apply_aft: bool = Field(True, description="Use the frequency filters; the release of 2024-12 does not.")
    freeze_condition_encoder: bool = Field(False, description="Leave the Swin as it is (upstream: fix_bb).")
    swin: SwinConfig = SwinConfig()

    @model_validator(mode="after")
    def _sizes_agree(self) -> Self:
        levels, windows, stages = len(self.dim_mults), len(self.windows), len(self.swin.depths)
        if not levels == windows == stages:
            raise ValueError(
                f"dim_mults has {levels} levels, windows {windows}, swin.depths {stages}; give all the same"
            )
        if any(width % 8 for width in self.widths):
            raise ValueError(f"widths {self.widths} go through 8 groups and 8 heads; give multiples of 8")
        if self.cond_channels not in (3, CAR_CHANNELS):
            raise ValueError(f"cond_channels is {self.cond_channels}; give 3, or 5 for cars with K2")
        if min(self.filter_size) < 1:
            raise ValueError(f"input_size {self.input_size} leaves no frequency; give 24 or more each way")
        return self

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels before the first level and after each one."""
        return (self.dim, *(self.dim * mult for mult in self.dim_mults))

    @property
    def halvings(self) -> int:
        """How often the latent's side is halved on the way to the middle."""
        return len(self.dim_mults) - 1

    @property
    def filter_size(self) -> tuple[int, int]:
        """Rows and columns of the frequency filters."""
        return self.input_size[0] // 8 - 2, (self.input_size[1] // 8) // 2


def input_size_for(image_size: tuple[int, int]) -> tuple[int, int]:
    """The ``UnetConfig.input_size`` that fits maps of that size: (64, 64) gives (32, 32)."""
    return (image_size[0] // 32 + 2) * 8, (image_size[1] // 32 + 2) * 8


class OutputDecoder(nn.Module):
    """From the middle up to one of the two outputs, which first takes its share of the middle's features."""

    def __init__(self, config: UnetConfig, time_dim: int) -> None:
        super().__init__()
        widths = config.widths
        self.apply_aft = config.apply_aft
        self.decouple = nn.Sequential(
            nn.GroupNorm(8, widths[-1]),
            nn.Conv2d(widths[-1], widths[-1], 3, padding=1),
            FrequencyFilter(widths[-1], *config.filter_size),
        )
        self.levels = nn.ModuleList(
            UpLevel(widths[level], widths[level + 1], time_dim, config.windows[level], is_last=level == 0)
            for level in reversed(range(len(config.dim_mults)))
        )
        self.final_block = ResnetBlock(2 * config.dim, config.dim, time_dim)
        self.final_conv = nn.Conv2d(config.dim, config.channels, 1)

    def forward(
        self, x: Tensor, stem: Tensor, conds: list[Tensor], skips: list[Skips], time: Tensor
    ) -> Tensor:
        """(B, channels, h, w); ``conds`` and ``skips`` come in the order of the way down."""
        if self.apply_aft:
            x = x + self.decouple(x)
        for level, cond, pair in zip(self.levels, reversed(conds), reversed(skips), strict=True):
            x = level(x, cond, pair, time)
        out: Tensor = self.final_conv(self.final_block(torch.cat([x, stem], dim=1), time))
        return out


class Unet(nn.Module):
    """One encoder and two decoders: drift and noise of a latent at a time, for a condition.

    ``cars_conv`` brings five condition channels down to three. It exists in every published checkpoint, so it
    exists here; with three channels it takes no part in ``forward``.
    """

    def __init__(self, config: UnetConfig) -> None:
        super().__init__()
        self.config = config
        widths, time_dim = config.widths, 4 * config.dim
        self.condition_encoder = SwinEncoder(config.swin).requires_grad_(not config.freeze_condition_encoder)
        self.cars_conv = nn.Conv2d(CAR_CHANNELS, 3, 1)
        self.stem = nn.Sequential(
            nn.Conv2d(config.channels + config.swin.embed_dim, config.dim, 7, padding=3),
            nn.GroupNorm(min(config.dim // 4, 8), config.dim),
        )
        self.projections = nn.ModuleList(
            nn.Conv2d(width, widths[level], 1) for level, width in enumerate(config.swin.widths)
        )
        self.time_embedding = TimeEmbedding(config.dim, config.fourier_scale)
        self.levels = nn.ModuleList(
            DownLevel(before, after, time_dim, window, is_last=level == config.halvings)
            for level, (before, after, window) in enumerate(
                zip(widths, widths[1:], config.windows, strict=False)
            )
        )
        self.middle = Middle(widths[-1], time_dim)
        self.drift_decoder = OutputDecoder(config, time_dim)
        self.noise_decoder = OutputDecoder(config, time_dim)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> tuple[Tensor, Tensor]:
        """Drift and noise, both shaped like ``x``.

        Args:
            x: noisy latent, (B, channels, h, w).
            t: time in (0, 1], (B,); its values are not read here, so that no device has to wait.
            cond: condition in [-1, 1], (B, cond_channels, 4h, 4w).

        Raises:
            ValueError: a shape that does not fit; the message says which one would.
        """
        return self.denoise(x, t, self.encode_condition(cond))

    def encode_condition(self, cond: Tensor) -> list[Tensor]:
        """The pyramid of the condition. It does not depend on time: a sampler needs it once."""
        self._check_condition(cond)
        if self.config.cond_channels == CAR_CHANNELS:
            cond = self.cars_conv(cond)
        pyramid: list[Tensor] = self.condition_encoder(cond)
        return pyramid

    def denoise(self, x: Tensor, t: Tensor, pyramid: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Drift and noise, given the condition's pyramid."""
        self._check_latent(x, t, pyramid[0])
        stem = self.stem(torch.cat([x, pyramid[0]], dim=1))
        conds = [project(features) for project, features in zip(self.projections, pyramid, strict=True)]
        time = self.time_embedding(t)
        h, skips = stem, []
        for level, cond in zip(self.levels, conds, strict=True):
            h, pair = level(h, cond, time)
            skips.append(pair)
        h = self.middle(h, time)
        drift = self.drift_decoder(h, stem, conds, skips, time)
        noise = self.noise_decoder(h, stem, conds, skips, time)
        return _scale_outputs(x, t[:, None, None, None], widened(drift), widened(noise))

    def idle_parameters(self) -> list[nn.Parameter]:
        """What is kept for the checkpoints' sake, takes no part in ``forward``, and never gets a gradient."""
        encoder, config = self.condition_encoder, self.config
        idle = [*encoder.norm.parameters(), *encoder.head.parameters()]
        if config.cond_channels != CAR_CHANNELS:
            idle += self.cars_conv.parameters()
        if not config.apply_aft:
            idle += self.drift_decoder.decouple.parameters()
            idle += self.noise_decoder.decouple.parameters()
        return idle

    def _check_condition(self, cond: Tensor) -> None:
        channels, multiple = self.config.cond_channels, 4 * 2**self.config.halvings
        if cond.ndim != 4 or cond.shape[1] != channels:
            raise ValueError(
                f"condition has shape {tuple(cond.shape)}, this model wants (B, {channels}, H, W); "
                "set unet.cond_channels to what the data has: 3, or 5 for cars with K2"
            )
        height, width = cond.shape[-2:]
        if height % multiple or width % multiple:
            raise ValueError(
                f"condition is {height}x{width}; give sides that are multiples of {multiple}, because the "
                f"Swin starts at a quarter of the side and the U-Net halves {self.config.halvings} times"
            )

    def _check_latent(self, x: Tensor, t: Tensor, cond: Tensor) -> None:
        wanted = (cond.shape[0], self.config.channels, *cond.shape[-2:])
        if tuple(x.shape) != wanted or t.shape != x.shape[:1]:
            raise ValueError(
                f"latent has shape {tuple(x.shape)} and t {tuple(t.shape)}; "
                f"this condition wants {wanted} and ({wanted[0]},), a quarter of its own side"
            )
        height, width = (side // 2**self.config.halvings for side in x.shape[-2:])
        if self.config.apply_aft and (height, width // 2 + 1) != self.config.filter_size:
            raise ValueError(
                f"map is {4 * x.shape[2]}x{4 * x.shape[3]}, which the frequency filters of unet.input_size "
                f"{self.config.input_size} do not fit; set it to {((height + 2) * 8, (width + 2) * 8)}"
            )


def _scale_outputs(x: Tensor, t: Tensor, drift: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Add to each head what is right at its end of time; ``t`` is (B, 1, 1, 1)."""
    length = (t.square() + 1).sqrt()
    return (1 - t) * x + t / length * drift, t.sqrt() * x + (1 - t).sqrt() / length * noise
