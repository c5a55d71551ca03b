"""The U-Net written down a second time, slowly, by upstream's names.

Plain functions of a dict of tensors: windows are gathered one by one, masks compare coordinates, attention is
a softmax spelled out, the frequency filter is a product with numpy's Fourier matrices. The tests hold the
model against it; ``radiodiff_plain`` says the same in torch's own operations, to time the model against.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.radiodiff.unet import UnetConfig


class Reference:
    """The U-Net over a dict of tensors by upstream's names, in eval mode."""

    prefix = "model."

    def __init__(self, tensors: dict[str, Tensor], config: UnetConfig) -> None:
        self.tensors, self.config = tensors, config

    def p(self, name: str) -> Tensor:
        return self.tensors[self.prefix + name]

    def has(self, name: str) -> bool:
        return self.prefix + name in self.tensors

    def linear(self, name: str, x: Tensor) -> Tensor:
        out = x @ self.p(f"{name}.weight").T
        return out + self.p(f"{name}.bias") if self.has(f"{name}.bias") else out

    def conv(self, name: str, x: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
        bias = self.p(f"{name}.bias") if self.has(f"{name}.bias") else None
        return F.conv2d(x, self.p(f"{name}.weight"), bias, stride=stride, padding=padding)

    def group_norm(self, name: str, x: Tensor, groups: int) -> Tensor:
        parts = x.reshape(x.shape[0], groups, -1)
        mean, var = parts.mean(-1, keepdim=True), parts.var(-1, unbiased=False, keepdim=True)
        normed = ((parts - mean) / (var + 1e-5).sqrt()).reshape(x.shape)
        return normed * self.p(f"{name}.weight")[:, None, None] + self.p(f"{name}.bias")[:, None, None]

    def layer_norm(self, name: str, x: Tensor) -> Tensor:
        mean, var = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
        return (x - mean) / (var + 1e-5).sqrt() * self.p(f"{name}.weight") + self.p(f"{name}.bias")

    def batch_norm(self, name: str, x: Tensor) -> Tensor:
        def column(part: str) -> Tensor:
            return self.p(f"{name}.{part}")[:, None, None]

        normed = (x - column("running_mean")) / (column("running_var") + 1e-3).sqrt()
        return normed * column("weight") + column("bias")

    def channel_norm(self, name: str, x: Tensor) -> Tensor:
        eps = 1e-5 if x.dtype == torch.float32 else 1e-3
        mean, var = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
        return (x - mean) / (var + eps).sqrt() * self.p(f"{name}.g")

    def silu(self, x: Tensor) -> Tensor:
        return x / (1 + torch.exp(-x))

    def gelu(self, x: Tensor) -> Tensor:
        return x * 0.5 * (1 + torch.erf(x / 2**0.5))

    def twice(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)

    def pooled(self, x: Tensor, window: int) -> Tensor:
        """Mean of each window; what is missing at the right and at the bottom counts as zeros."""
        rows, columns = math.ceil(x.shape[2] / window), math.ceil(x.shape[3] / window)
        means = [
            x[:, :, r * window : (r + 1) * window, c * window : (c + 1) * window].sum(dim=(2, 3)) / window**2
            for r in range(rows)
            for c in range(columns)
        ]
        return torch.stack(means, dim=-1).reshape(*x.shape[:2], rows, columns)

    def frequency_filter(self, x: Tensor, weight: Tensor) -> Tensor:
        return fourier_filter(x, weight)

    # -- the condition encoder -------------------------------------------------------------------------------

    def window_attention(self, name: str, x: Tensor, heads: int, shift: int) -> Tensor:
        """One image (H, W, C) at a time, one window at a time, one head at a time."""
        height, width, channels = x.shape
        rows, columns = math.ceil(height / 7) * 7, math.ceil(width / 7) * 7
        shift_r, shift_c = (shift if rows > 7 else 0), (shift if columns > 7 else 0)
        padded = F.pad(x, (0, 0, 0, columns - width, 0, rows - height))
        table = self.p(f"{name}.relative_position_bias_table")
        out: dict[tuple[int, int], Tensor] = {}
        for top in range(0, rows, 7):
            for left in range(0, columns, 7):
                places = [(top + i, left + j) for i in range(7) for j in range(7)]
                sources = [((r + shift_r) % rows, (c + shift_c) % columns) for r, c in places]
                tokens = torch.stack([padded[r, c] for r, c in sources])
                q, k, v = self.linear(f"{name}.qkv", tokens).chunk(3, dim=-1)
                # neighbours through the shift alone: one of two tokens came around the edge
                around = torch.tensor([[r + shift_r >= rows, c + shift_c >= columns] for r, c in places])
                apart = (around[:, None] != around[None, :]).any(-1)
                offset = torch.tensor(
                    [[(a[0] - b[0] + 6) * 13 + (a[1] - b[1] + 6) for b in places] for a in places]
                )
                parts = []
                for head in range(heads):
                    own = slice(head * channels // heads, (head + 1) * channels // heads)
                    logits = q[:, own] * (channels // heads) ** -0.5 @ k[:, own].T + table[offset, head]
                    parts.append(torch.softmax(logits - 100.0 * apart, dim=-1) @ v[:, own])
                answer = self.linear(f"{name}.proj", torch.cat(parts, dim=-1))
                out |= dict(zip(sources, answer, strict=True))
        return torch.stack([torch.stack([out[r, c] for c in range(width)]) for r in range(height)])

    def swin_block(self, name: str, x: Tensor, heads: int, shift: int) -> Tensor:
        normed = self.layer_norm(f"{name}.norm1", x)
        x = x + torch.stack([self.window_attention(f"{name}.attn", one, heads, shift) for one in normed])
        h = self.gelu(self.linear(f"{name}.mlp.0", self.layer_norm(f"{name}.norm2", x)))
        return x + self.linear(f"{name}.mlp.3", h)

    def merge(self, name: str, x: Tensor) -> Tensor:
        rows = [
            torch.stack(
                [
                    torch.cat(
                        [
                            x[:, 2 * r, 2 * c],
                            x[:, 2 * r + 1, 2 * c],
                            x[:, 2 * r, 2 * c + 1],
                            x[:, 2 * r + 1, 2 * c + 1],
                        ],
                        -1,
                    )
                    for c in range(x.shape[2] // 2)
                ],
                dim=1,
            )
            for r in range(x.shape[1] // 2)
        ]
        return self.linear(f"{name}.reduction", self.layer_norm(f"{name}.norm", torch.stack(rows, dim=1)))

    def pyramid(self, cond: Tensor) -> list[Tensor]:
        name = "init_conv_mask"
        x = self.conv(f"{name}.first_coonv.0", cond, stride=4).permute(0, 2, 3, 1)
        x = self.layer_norm(f"{name}.first_coonv.2", x)
        levels = []
        for stage, depth in enumerate(self.config.swin.depths):
            for block in range(depth):
                heads = self.config.swin.heads[stage]
                x = self.swin_block(f"{name}.features.{2 * stage}.{block}", x, heads, 3 if block % 2 else 0)
            levels.append(x.permute(0, 3, 1, 2))
            if stage < 3:
                x = self.merge(f"{name}.features.{2 * stage + 1}", x)
        return levels

    # -- the U-Net's parts -----------------------------------------------------------------------------------

    def time_embedding(self, t: Tensor) -> Tensor:
        phase = (torch.log(t) / 4)[:, None] * self.p("time_mlp.0.W") * 2 * math.pi
        h = self.linear("time_mlp.1", torch.cat([torch.sin(phase), torch.cos(phase)], -1))
        return self.linear("time_mlp.3", self.gelu(h))

    def block(self, name: str, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        eps = 1e-5 if x.dtype == torch.float32 else 1e-3
        weight = self.p(f"{name}.proj.weight")
        mean = weight.mean(dim=(1, 2, 3), keepdim=True)
        var = ((weight - mean) ** 2).mean(dim=(1, 2, 3), keepdim=True)
        x = F.conv2d(x, (weight - mean) / (var + eps).sqrt(), self.p(f"{name}.proj.bias"), padding=1)
        x = self.group_norm(f"{name}.norm", x, 8)
        if scale is not None and shift is not None:
            x = x * (scale[:, :, None, None] + 1) + shift[:, :, None, None]
        return self.silu(x)

    def resnet(self, name: str, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.linear(f"{name}.mlp.1", self.silu(time)).chunk(2, dim=1)
        h = self.block(f"{name}.block2", self.block(f"{name}.block1", x, scale, shift))
        has_shortcut = self.has(f"{name}.res_conv.weight")
        return h + (self.conv(f"{name}.res_conv", x) if has_shortcut else x)

    def attention(self, name: str, x: Tensor, *, linear: bool) -> Tensor:
        batch, _, height, width = x.shape
        normed = self.channel_norm(f"{name}.fn.norm", x)
        qkv = self.conv(f"{name}.fn.fn.to_qkv", normed).reshape(batch, 3, 4, 32, -1)
        answers = []
        for q, k, v in ((qkv[b, 0, h], qkv[b, 1, h], qkv[b, 2, h]) for b in range(batch) for h in range(4)):
            if linear:
                context = torch.softmax(k, dim=1) @ (v / (height * width)).T
                answers.append(context.T @ (torch.softmax(q, dim=0) * 32**-0.5))
            else:
                answers.append(v @ torch.softmax(q.T @ k * 32**-0.5, dim=-1).T)
        h = torch.stack(answers).reshape(batch, 128, height, width)
        if not linear:
            return x + self.conv(f"{name}.fn.fn.to_out", h)
        return x + self.channel_norm(f"{name}.fn.fn.to_out.1", self.conv(f"{name}.fn.fn.to_out.0", h))

    def relation(self, name: str, cond: Tensor, feature: Tensor, window: int) -> Tensor:
        cond = self.batch_norm(f"{name}.input_conv1.1", self.conv(f"{name}.input_conv1.0", cond))
        feature = self.batch_norm(f"{name}.input_conv2.1", self.conv(f"{name}.input_conv2.0", feature))
        name, size = f"{name}.attentions.0", feature.shape[-2:]
        resized = F.interpolate(cond, size=size, mode="bilinear", align_corners=True)
        merged = self.conv(f"{name}.concat_conv", torch.cat([resized, feature], dim=1))
        shortcut = self.group_norm(f"{name}.gn", feature + merged, 8)
        s, known = self.pooled(cond, window), self.pooled(feature, window)
        s = s + self.cross_attention(name, s, known)
        s = s + self.token_mlp(f"{name}.mlp", s)
        s = F.interpolate(s, size=size, mode="bilinear", align_corners=True)
        return shortcut + self.conv(f"{name}.out_conv", s)

    def cross_attention(self, name: str, s: Tensor, known: Tensor) -> Tensor:
        channels, code = s.shape[1], position_code(*s.shape[1:]).to(s.dtype)
        asked, known = ((x + code).flatten(2).transpose(1, 2) for x in (s, known))
        q, k, v = (self.linear(f"{name}.{n}_lin", x) for n, x in (("q", asked), ("k", known), ("v", known)))
        own = [slice(h * channels // 8, (h + 1) * channels // 8) for h in range(8)]
        answer = torch.cat(
            [torch.softmax(q[..., part] @ k[..., part].transpose(1, 2), -1) @ v[..., part] for part in own],
            -1,
        )
        return answer.transpose(1, 2).reshape(s.shape)

    def token_mlp(self, name: str, s: Tensor) -> Tensor:
        return self.conv(f"{name}.fc2", F.relu(self.conv(f"{name}.fc1", s)))

    def decouple(self, name: str, x: Tensor) -> Tensor:
        h = self.conv(f"{name}.1", self.group_norm(f"{name}.0", x, 8), padding=1)
        return x + self.frequency_filter(h, self.p(f"{name}.2.complex_weight"))

    # -- the whole -------------------------------------------------------------------------------------------

    def unet(self, x: Tensor, t: Tensor, cond: Tensor) -> tuple[Tensor, Tensor]:
        x_in, levels, time = x, self.pyramid(cond), self.time_embedding(t)
        x = self.conv("init_conv.0", torch.cat([x, levels[0]], dim=1), padding=3)
        x = r = self.group_norm("init_conv.1", x, min(self.config.dim // 4, 8))
        hm = [self.conv(f"projects.{i}", level) for i, level in enumerate(levels)]
        stack = []
        for i, window in enumerate((8, 4, 2, 1)):
            x = self.resnet(f"downs.{i}.0", x, time)
            stack.append(x)
            x = self.relation(f"relation_layers_down.{i}", hm[i], x, window)
            x = self.attention(f"downs.{i}.2", self.resnet(f"downs.{i}.1", x, time), linear=True)
            stack.append(x)
            x = self.conv(f"downs.{i}.3", x, *((2, 1) if i < 3 else (1, 1)))
        x = self.resnet("mid_block1", x, time)
        x = self.resnet("mid_block2", self.attention("mid_attn", x, linear=False), time)
        f1 = self.decoder("", "decouple1", x, r, list(hm), list(stack), time)
        f2 = self.decoder("2", "decouple2", x, r, list(hm), list(stack), time)
        t = t[:, None, None, None]
        return (1 - t) * x_in + t / torch.sqrt(t**2 + 1) * f1, (
            torch.sqrt(t) * x_in + torch.sqrt(1 - t) / torch.sqrt(t**2 + 1) * f2
        )

    def decoder(
        self, n: str, decouple: str, x: Tensor, r: Tensor, hm: list[Tensor], stack: list[Tensor], time: Tensor
    ) -> Tensor:
        x = self.decouple(decouple, x)
        for i, window in enumerate((1, 2, 4, 8)):
            x = self.resnet(f"ups{n}.{i}.0", torch.cat([x, stack.pop()], dim=1), time)
            x = self.relation(f"relation_layers_up{n}.{i}", hm.pop(), x, window)
            x = self.resnet(f"ups{n}.{i}.1", torch.cat([x, stack.pop()], dim=1), time)
            x = self.attention(f"ups{n}.{i}.2", x, linear=True)
            if i < 3:
                x = self.conv(f"ups{n}.{i}.3.1", self.twice(x), padding=1)
            else:
                x = self.conv(f"ups{n}.{i}.3", x, padding=1)
        x = self.resnet(f"final_res_block{n}", torch.cat([x, r], dim=1), time)
        return self.conv(f"final_conv{n}", x)


def position_code(channels: int, height: int, width: int) -> Tensor:
    """Entry by entry, in Python's own floats."""
    half = channels // 2
    code = torch.zeros(channels, height, width, dtype=torch.float64)
    for i in range(half):
        wave = math.cos if i % 2 else math.sin
        for place in range(max(height, width)):
            value = wave((place + 1) / 10000 ** (2 * (i // 2) / half))
            if place < height:
                code[i, place, :] = value
            if place < width:
                code[half + i, :, place] = value
    return code


def fourier_filter(x: Tensor, weight: Tensor) -> Tensor:
    """The filter as products with Fourier matrices; frequencies that rfft leaves out follow by symmetry."""
    height, width = x.shape[-2:]
    rows = torch.from_numpy(np.fft.fft(np.eye(height), norm="ortho"))
    columns = torch.from_numpy(np.fft.fft(np.eye(width), norm="ortho"))
    spectrum = rows @ x.to(torch.complex128) @ columns.T
    half = spectrum[..., : width // 2 + 1] * torch.view_as_complex(weight.double())
    back = torch.einsum("kr,bcrs->bcks", rows.conj(), half)
    out = torch.zeros(x.shape, dtype=torch.float64)
    for s in range(half.shape[-1]):
        # the columns that are left out are the others' mirror images, so those count twice
        mirrors_itself = s == 0 or 2 * s == width
        column, wave = back[..., s : s + 1], columns.conj()[s]
        out += column.real * wave.real if mirrors_itself else 2 * (column * wave).real
    return out.to(x.dtype)
