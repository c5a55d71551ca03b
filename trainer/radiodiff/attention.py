"""The U-Net's self-attention: linear at every level, full in the middle."""

import torch.nn.functional as F
from torch import Tensor, nn

from trainer.radiodiff.blocks import ChannelLayerNorm
from trainer.radiodiff.formats import in_float32, widened

HEADS = 4
HEAD_DIM = 32


class LinearAttention(nn.Module):
    """Attention at a cost linear in the positions: softmax over features for q, over positions for k."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelLayerNorm(channels)
        self.to_qkv = nn.Conv2d(channels, 3 * HEADS * HEAD_DIM, 1, bias=False)
        self.to_out = nn.Conv2d(HEADS * HEAD_DIM, channels, 1)
        self.out_norm = ChannelLayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = _heads(widened(self.to_qkv(self.norm(x))))
        positions = q.shape[-1]
        with in_float32(x):  # divided by the positions, the values are too small for float16
            q = q.softmax(dim=-2) * HEAD_DIM**-0.5
            k = k.softmax(dim=-1)
            context = k @ (v / positions).transpose(-1, -2)
            h = (context.transpose(-1, -2) @ q).reshape(x.shape[0], -1, *x.shape[2:])
            out: Tensor = x + self.out_norm(self.to_out(h))
        return out


class FullAttention(nn.Module):
    """Softmax attention between all positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelLayerNorm(channels)
        self.to_qkv = nn.Conv2d(channels, 3 * HEADS * HEAD_DIM, 1, bias=False)
        self.to_out = nn.Conv2d(HEADS * HEAD_DIM, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.transpose(-1, -2) for part in _heads(self.to_qkv(self.norm(x))))
        h = F.scaled_dot_product_attention(q, k, v)
        h = h.transpose(-1, -2).reshape(x.shape[0], -1, *x.shape[2:])
        out: Tensor = x + self.to_out(h)
        return out


def _heads(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, 3 * heads * d, H, W) to three of (B, heads, d, H * W)."""
    batch, _, height, width = qkv.shape
    q, k, v = qkv.reshape(batch, 3, HEADS, HEAD_DIM, height * width).unbind(dim=1)
    return q, k, v
