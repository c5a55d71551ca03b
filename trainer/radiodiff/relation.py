"""Cross attention between the condition and a feature map, on windows that are averaged to single tokens."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.radiodiff.formats import in_float32, widened

HEADS = 8
Window = tuple[int, int]


class RelationNet(nn.Module):
    """Projects condition and feature to one width, then one layer of cross attention.

    Args:
        cond_channels, feature_channels: widths of the two inputs.
        channels: width E of the result, a multiple of 8.
        cond_window, feature_window: (rows, columns) averaged to one token.
    """

    def __init__(
        self,
        cond_channels: int,
        feature_channels: int,
        channels: int,
        cond_window: Window,
        feature_window: Window,
    ) -> None:
        super().__init__()
        self.cond_in = _projection(cond_channels, channels)
        self.feature_in = _projection(feature_channels, channels)
        self.attention = WindowCrossAttention(channels, cond_window, feature_window)
        self.apply(_initialise)

    def forward(self, cond: Tensor, feature: Tensor) -> Tensor:
        """``cond`` (B, C1, h1, w1) and ``feature`` (B, C2, h, w) to (B, E, h, w)."""
        out: Tensor = self.attention(self.cond_in(cond), self.feature_in(feature))
        return out


class WindowCrossAttention(nn.Module):
    """Window averages of the condition ask, those of the feature answer.

    The attention's logits are *not* divided by the root of the head's width, as in the published model.
    """

    def __init__(self, channels: int, cond_window: Window, feature_window: Window) -> None:
        super().__init__()
        self.cond_window, self.feature_window = cond_window, feature_window
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.mlp = TokenMlp(channels)
        self.merge = nn.Conv2d(2 * channels, channels, 1)
        self.merge_norm = nn.GroupNorm(8, channels)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, cond: Tensor, feature: Tensor) -> Tensor:
        size = feature.shape[-2:]
        shortcut = self.merge_norm(feature + self.merge(torch.cat([_resize(cond, size), feature], dim=1)))
        tokens = _window_means(cond, self.cond_window)
        tokens = tokens + self._attend(tokens, _window_means(feature, self.feature_window))
        tokens = tokens + self.mlp(tokens)
        out: Tensor = shortcut + self.out(_resize(tokens, size))
        return out

    def _attend(self, cond: Tensor, feature: Tensor) -> Tensor:
        asked, known = _with_positions(cond), _with_positions(feature)
        q, k, v = (
            _heads(widened(layer(x)))
            for layer, x in ((self.query, asked), (self.key, known), (self.value, known))
        )
        with in_float32(q):  # logits without a scale outgrow float16 first of all
            h = F.scaled_dot_product_attention(q, k, v, scale=1.0)
        return h.transpose(-1, -2).reshape(cond.shape)


class TokenMlp(nn.Module):
    """Two 1x1 convolutions with ReLU and dropout, twice as wide inside."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.widen = nn.Conv2d(channels, 2 * channels, 1)
        self.narrow = nn.Conv2d(2 * channels, channels, 1)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.dropout(F.relu(self.widen(x)))
        out: Tensor = self.dropout(self.narrow(h))
        return out


@lru_cache(maxsize=64)
def sine_positions(channels: int, height: int, width: int, device: torch.device) -> Tensor:
    """Position code, (channels, height, width) in float32: rows in the first half, columns in the second.

    Coordinates run from 1 to n; channel i of a half is the sine (i even) or cosine (i odd) of
    coordinate / 10000^(2 * (i // 2) / half).
    """
    with torch.inference_mode(False), torch.no_grad():
        half = channels // 2
        index = torch.arange(half, dtype=torch.float32, device=device)
        period = 10000.0 ** (2 * torch.div(index, 2, rounding_mode="floor") / half)
        rows = _sine_code(height, period)[:, :, None].expand(-1, -1, width)
        columns = _sine_code(width, period)[:, None, :].expand(-1, height, -1)
        return torch.cat([rows, columns])


def _sine_code(length: int, period: Tensor) -> Tensor:
    """(half, length) codes of the coordinates 1 to ``length``."""
    coordinate = torch.arange(1, length + 1, dtype=torch.float32, device=period.device)
    angle = coordinate[None, :] / period[:, None]
    return torch.stack([angle[0::2].sin(), angle[1::2].cos()], dim=1).flatten(0, 1)


def _projection(in_channels: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 1), nn.BatchNorm2d(channels, eps=1e-3, momentum=0.03)
    )


def _with_positions(x: Tensor) -> Tensor:
    """(B, E, h, w) to tokens (B, h * w, E) that know where they are."""
    return (x + sine_positions(*x.shape[1:], x.device)).flatten(2).transpose(1, 2)


def _heads(x: Tensor) -> Tensor:
    """(B, tokens, E) to (B, heads, tokens, E / heads)."""
    return x.reshape(*x.shape[:2], HEADS, -1).transpose(1, 2)


def _window_means(x: Tensor, window: Window) -> Tensor:
    """Average of each window; the last ones are filled up with zeros."""
    if window == (1, 1):
        return x
    bottom, right = -x.shape[-2] % window[0], -x.shape[-1] % window[1]
    return F.avg_pool2d(F.pad(x, (0, right, 0, bottom)), window)


def _resize(x: Tensor, size: torch.Size) -> Tensor:
    """Bilinear with aligned corners, which leaves a map of that size as it is."""
    if x.shape[-2:] == size:
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


def _initialise(module: nn.Module) -> None:
    """Convolutions Kaiming normal, linear layers Xavier normal, biases 0."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight)
    elif isinstance(module, nn.Linear):
        nn.init.xavier_normal_(module.weight)
    if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
