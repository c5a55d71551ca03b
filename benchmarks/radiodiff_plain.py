"""RadioDiff as a careful reader of its description writes it first: torch's ordinary operations, float32.

No fused attention, no channels_last, no fused optimizer, and each evaluation of the network encodes the
condition, as the published one does. What costs nothing to do right is done right: masks and position codes
are made once, windows are reshapes, norms and activations are torch's own.
"""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.radiodiff_reference import Reference, position_code
from trainer.radiodiff.diffusion import DiffusionConfig, LatentDiffusion
from trainer.radiodiff.swin import relative_position_index
from trainer.radiodiff.upstream_names import to_upstream

Tensors = dict[str, Tensor]


class PlainUnet(Reference):
    """The reference in torch's own operations; in training it also drops, and norms by the batch."""

    training = False
    dropout = 0.1

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(
            x, self.p(f"{name}.weight"), self.p(f"{name}.bias") if self.has(f"{name}.bias") else None
        )

    def group_norm(self, name: str, x: Tensor, groups: int) -> Tensor:
        return F.group_norm(x, groups, self.p(f"{name}.weight"), self.p(f"{name}.bias"))

    def layer_norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.p(f"{name}.weight"), self.p(f"{name}.bias"))

    def batch_norm(self, name: str, x: Tensor) -> Tensor:
        parts = (self.p(f"{name}.{part}") for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *parts, training=self.training, momentum=0.03, eps=1e-3)

    def silu(self, x: Tensor) -> Tensor:
        return F.silu(x)

    def gelu(self, x: Tensor) -> Tensor:
        return F.gelu(x)

    def twice(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0, mode="nearest")

    def pooled(self, x: Tensor, window: int) -> Tensor:
        x = F.pad(x, (0, -x.shape[3] % window, 0, -x.shape[2] % window))
        return F.avg_pool2d(x, window)

    def frequency_filter(self, x: Tensor, weight: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(x, norm="ortho") * torch.view_as_complex(weight)
        return torch.fft.irfft2(spectrum, s=x.shape[-2:], norm="ortho")

    def attention(self, name: str, x: Tensor, *, linear: bool) -> Tensor:
        batch, _, height, width = x.shape
        qkv = self.conv(f"{name}.fn.fn.to_qkv", self.channel_norm(f"{name}.fn.norm", x))
        q, k, v = qkv.reshape(batch, 3, 4, 32, -1).unbind(1)
        if linear:
            context = torch.einsum("bhdn,bhen->bhde", k.softmax(-1), v / (height * width))
            h = torch.einsum("bhde,bhdn->bhen", context, q.softmax(-2) * 32**-0.5)
            h = self.conv(f"{name}.fn.fn.to_out.0", h.reshape(batch, 128, height, width))
            return x + self.channel_norm(f"{name}.fn.fn.to_out.1", h)
        weights = torch.einsum("bhdi,bhdj->bhij", q * 32**-0.5, k).softmax(-1)
        h = torch.einsum("bhij,bhdj->bhdi", weights, v).reshape(batch, 128, height, width)
        return x + self.conv(f"{name}.fn.fn.to_out", h)

    def cross_attention(self, name: str, s: Tensor, known: Tensor) -> Tensor:
        code = _position_code(*s.shape[1:], s.device, s.dtype)
        asked, known = ((x + code).flatten(2).transpose(1, 2) for x in (s, known))
        q, k, v = (
            self.linear(f"{name}.{n}_lin", x).unflatten(-1, (8, -1)).transpose(1, 2)
            for n, x in (("q", asked), ("k", known), ("v", known))
        )
        answer = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        return answer.transpose(1, 2).flatten(2).transpose(1, 2).reshape(s.shape)

    def token_mlp(self, name: str, s: Tensor) -> Tensor:
        h = F.dropout(F.relu(self.conv(f"{name}.fc1", s)), self.dropout, self.training)
        return F.dropout(self.conv(f"{name}.fc2", h), self.dropout, self.training)

    def swin_block(self, name: str, x: Tensor, heads: int, shift: int) -> Tensor:
        normed = self.layer_norm(f"{name}.norm1", x)
        x = x + self.survivors(name, self.attend_in_windows(f"{name}.attn", normed, heads, shift))
        h = self.gelu(self.linear(f"{name}.mlp.0", self.layer_norm(f"{name}.norm2", x)))
        return x + self.survivors(name, self.linear(f"{name}.mlp.3", h))

    def survivors(self, name: str, x: Tensor) -> Tensor:
        """Stochastic depth: a sample's branch is left out with a chance that rises from block to block."""
        swin = self.config.swin
        entry, block = map(int, name.split(".")[-2:])
        chance = swin.stochastic_depth * (sum(swin.depths[: entry // 2]) + block) / (sum(swin.depths) - 1)
        if not self.training or chance == 0:
            return x
        return x * x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(1 - chance) / (1 - chance)

    def attend_in_windows(self, name: str, x: Tensor, heads: int, shift: int) -> Tensor:
        """All windows of (B, H, W, C) at once."""
        height, width, channels = x.shape[1:]
        x = F.pad(x, (0, 0, 0, -width % 7, 0, -height % 7))
        padded = x.shape
        shifts = tuple(0 if side <= 7 else shift for side in padded[1:3])
        x = torch.roll(x, (-shifts[0], -shifts[1]), (1, 2))
        x = x.unflatten(1, (-1, 7)).unflatten(3, (-1, 7)).transpose(2, 3)
        tokens = x.reshape(padded[0], -1, 49, channels)
        q, k, v = self.linear(f"{name}.qkv", tokens).unflatten(-1, (3, heads, -1)).permute(3, 0, 1, 4, 2, 5)
        bias = self.p(f"{name}.relative_position_bias_table")[_position_index(x.device)]
        logits = (q * (channels // heads) ** -0.5) @ k.transpose(-1, -2)
        logits = logits + bias.unflatten(0, (49, 49)).permute(2, 0, 1)
        if any(shifts):
            logits = logits + _mask(*padded[1:3], shifts, x.device)[:, None]
        answer = (logits.softmax(-1) @ v).transpose(2, 3).reshape(tokens.shape)
        answer = self.linear(f"{name}.proj", answer).reshape(x.shape).transpose(2, 3).reshape(padded)
        return torch.roll(answer, shifts, (1, 2))[:, :height, :width]

    def merge(self, name: str, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
        return self.linear(f"{name}.reduction", self.layer_norm(f"{name}.norm", x))


class PlainAutoencoder(PlainUnet):
    """Encoder to moments, and decoder."""

    prefix = "first_stage_model."
    groups = 32

    def norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.p(f"{name}.weight"), self.p(f"{name}.bias")
        return F.silu(F.group_norm(x, self.groups, weight, bias, eps=1e-6))

    def res_block(self, name: str, x: Tensor) -> Tensor:
        h = self.conv(f"{name}.conv1", self.norm(f"{name}.norm1", x), padding=1)
        h = self.conv(f"{name}.conv2", self.norm(f"{name}.norm2", h), padding=1)
        return h + (self.conv(f"{name}.nin_shortcut", x) if self.has(f"{name}.nin_shortcut.weight") else x)

    def middle(self, name: str, x: Tensor) -> Tensor:
        x = self.res_block(f"{name}.block_1", x)
        weight, bias = (self.p(f"{name}.attn_1.norm.{part}") for part in ("weight", "bias"))
        h = F.group_norm(x, self.groups, weight, bias, eps=1e-6)
        q, k, v = (self.conv(f"{name}.attn_1.{part}", h).flatten(2) for part in "qkv")
        weights = (q.transpose(1, 2) @ k * q.shape[1] ** -0.5).softmax(-1)
        h = (v @ weights.transpose(1, 2)).reshape(x.shape)
        return self.res_block(f"{name}.block_2", x + self.conv(f"{name}.attn_1.proj_out", h))

    def moments(self, image: Tensor) -> Tensor:
        x = self.conv("encoder.conv_in", image, padding=1)
        for level in range(3):
            for block in range(2):
                x = self.res_block(f"encoder.down.{level}.block.{block}", x)
            if level < 2:
                x = self.conv(f"encoder.down.{level}.downsample.conv", F.pad(x, (0, 1, 0, 1)), stride=2)
        x = self.norm("encoder.norm_out", self.middle("encoder.mid", x))
        return self.conv("quant_conv", self.conv("encoder.conv_out", x, padding=1))

    def decode(self, z: Tensor) -> Tensor:
        x = self.conv("decoder.conv_in", self.conv("post_quant_conv", z), padding=1)
        x = self.middle("decoder.mid", x)
        for level in (2, 1, 0):
            for block in range(3):
                x = self.res_block(f"decoder.up.{level}.block.{block}", x)
            if level:
                x = self.conv(f"decoder.up.{level}.upsample.conv", self.twice(x), padding=1)
        return self.conv("decoder.conv_out", self.norm("decoder.norm_out", x), padding=1)


class PlainDiffusion:
    """Loss and sampler over copies of a model's tensors; of the published process, at any width."""

    def __init__(self, model: LatentDiffusion) -> None:
        trained = {id(p) for p in model.parameters_of("diffusion")}
        own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self.tensors = {
            to_upstream(name, "diffusion"): tensor.detach().clone().requires_grad_(id(tensor) in trained)
            for name, tensor in own.items()
        }
        self.config: DiffusionConfig = model.config
        self.unet = PlainUnet(self.tensors, self.config.unet)
        self.autoencoder = PlainAutoencoder(self.tensors, self.config.unet)
        self.autoencoder.groups = self.config.autoencoder.num_groups

    @property
    def parameters(self) -> list[Tensor]:
        return [tensor for tensor in self.tensors.values() if tensor.requires_grad]

    def loss(self, batch: Tensors, noise: Tensor, t: Tensor, posterior_noise: Tensor) -> Tensor:
        """Of the published configuration: weighted squared and absolute errors of drift and noise."""
        self.unet.training = True
        with torch.no_grad():
            mean, logvar = self.autoencoder.moments(batch["image"]).chunk(2, dim=1)
            std = torch.exp(logvar.clamp(-30, 20) / 2)
            x0 = self.config.scale_factor * (mean + std * posterior_noise)
        time = t[:, None, None, None]
        x_t = (1 - time) * x0 + torch.sqrt(time) * noise
        drift, guess = self.unet.unet(x_t, t, batch["cond"])
        weighted = [
            weight * (((a - b) ** 2).mean((1, 2, 3)) + (a - b).abs().mean((1, 2, 3))) / 2
            for weight, a, b in ((2 * torch.exp(1 - t), drift, -x0), (torch.exp(torch.sqrt(t)), guess, noise))
        ]
        return (weighted[0] + weighted[1]).mean()

    @torch.no_grad()
    def sample(self, cond: Tensor, steps: int, noise: Tensor, step_noise: Sequence[Tensor]) -> Tensor:
        """Maps in [0, 1] after ``steps + 1`` evaluations."""
        self.unet.training = False
        eps, x, now = self.config.eps, noise, torch.tensor(1.0)
        lengths = [torch.tensor(1 / steps)] * (steps - 1) + [torch.tensor(1 / steps - eps), None]
        for length, fresh in zip(lengths, step_noise, strict=True):
            s = now if length is None else length
            drift, guess = self.unet.unet(x, now.expand(x.shape[0]).to(x), cond)
            drift = -(x - drift * now - torch.sqrt(now) * guess)
            x = x - drift * s - s / torch.sqrt(now) * guess + torch.sqrt(s * (now - s) / now) * fresh
            now = now - s
        return ((self.autoencoder.decode(x / self.config.scale_factor) + 1) / 2).clamp(0, 1)


@cache
def _position_index(device: torch.device) -> Tensor:
    return relative_position_index(7).to(device)


@cache
def _position_code(
    channels: int, height: int, width: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    return position_code(channels, height, width).to(device, dtype)


@cache
def _mask(height: int, width: int, shifts: tuple[int, int], device: torch.device) -> Tensor:
    """-100 between tokens of one window that came from different ends of the map."""
    region = torch.zeros(height, width, device=device)
    for shift, side, along in ((shifts[0], height, region), (shifts[1], width, region.T)):
        if shift:
            along[side - 7 : side - shift] += 1 if along is region else 3
            along[side - shift :] += 2 if along is region else 6
    tokens = region.unflatten(0, (-1, 7)).unflatten(2, (-1, 7)).transpose(1, 2).reshape(-1, 49)
    return (tokens[:, :, None] != tokens[:, None, :]).float() * -100
