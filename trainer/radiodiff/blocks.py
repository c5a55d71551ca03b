"""The U-Net's small parts: residual block, time embedding, frequency filter."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ChannelLayerNorm(nn.Module):
    """Layer norm over the channels of (B, C, H, W), with a gain and no bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, self.gain.dtype))  # under autocast x is shorter
        variance, mean = torch.var_mean(wide, dim=1, correction=0, keepdim=True)
        normed = (wide - mean) * (variance + epsilon_for(self.gain)).rsqrt() * self.gain
        return normed.to(x.dtype)


class StandardizedConv2d(nn.Conv2d):
    """3x3 convolution whose weight has mean 0 and variance 1 for each output channel."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        # a layer norm over each output channel's weights: one pass instead of five
        weight = F.layer_norm(self.weight, self.weight.shape[1:], eps=epsilon_for(self.weight))
        return F.conv2d(x, weight, self.bias, padding=1)


class ConvBlock(nn.Module):
    """Standardised convolution, group norm, optional scale and shift, SiLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.proj = StandardizedConv2d(in_channels, out_channels)
        self.norm = nn.GroupNorm(8, out_channels)

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        x = self.norm(self.proj(x))
        if scale is not None and shift is not None:
            x = x * (scale + 1) + shift
        return F.silu(x)


class ResnetBlock(nn.Module):
    """Two convolution blocks, the first modulated by the time embedding, added to the (projected) input."""

    def __init__(self, in_channels: int, out_channels: int, time_dim: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(time_dim, 2 * out_channels)
        self.block1 = ConvBlock(in_channels, out_channels)
        self.block2 = ConvBlock(out_channels, out_channels)
        self.shortcut: nn.Module = (
            nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)
        )

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """``x`` is (B, C, H, W), ``time`` the embedding (B, time_dim)."""
        scale, shift = self.modulation(F.silu(time))[:, :, None, None].chunk(2, dim=1)
        h = self.block2(self.block1(x, scale, shift))
        out: Tensor = h + self.shortcut(x)
        return out


class TimeEmbedding(nn.Module):
    """Random Fourier features of log(t) / 4, then two linear layers.

    The frequencies are drawn once, N(0, scale^2), and never trained: they must come back with a checkpoint.
    """

    def __init__(self, dim: int, fourier_scale: float) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(torch.randn(dim // 2) * fourier_scale, requires_grad=False)
        self.hidden = nn.Linear(dim, 4 * dim)
        self.out = nn.Linear(4 * dim, 4 * dim)

    def forward(self, t: Tensor) -> Tensor:
        """``t`` is (B,) in (0, 1]; answers (B, 4 * dim)."""
        phase = (t.log() / 4)[:, None] * self.frequencies[None, :] * 2 * math.pi
        features = torch.cat([phase.sin(), phase.cos()], dim=1)
        out: Tensor = self.out(F.gelu(self.hidden(features)))
        return out


class FrequencyFilter(nn.Module):
    """The adaptive FFT filter: a learned complex factor for each channel and frequency (upstream: BlockFFT).

    Its weight is (C, rows, columns, 2), so it fits features of one size only: rows x (2 * columns - 2).
    """

    def __init__(self, channels: int, rows: int, columns: int) -> None:
        super().__init__()
        self.complex_weight = nn.Parameter(0.02 * torch.randn(channels, rows, columns, 2))

    def forward(self, x: Tensor) -> Tensor:
        # the transform knows no shorter format than float32
        spectrum = torch.fft.rfft2(x.to(torch.promote_types(x.dtype, torch.float32)), norm="ortho")
        spectrum = spectrum * torch.view_as_complex(self.complex_weight)
        filtered: Tensor = torch.fft.irfft2(spectrum, s=x.shape[-2:], norm="ortho")
        return filtered.to(x.dtype)


def epsilon_for(parameter: Tensor) -> float:
    """What keeps a variance from 0: 1e-5 for float32, else 1e-3, as in the published model.

    Of the parameter and not of the input: autocast, which leaves weights in float32, must not turn a model
    into another one.
    """
    return 1e-5 if parameter.dtype == torch.float32 else 1e-3
