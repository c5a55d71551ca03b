"""The autoencoder: its posterior, its layers, and the sizes that it takes."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from trainer.radiodiff.autoencoder import (
    Autoencoder,
    AutoencoderConfig,
    Downsample,
    Posterior,
    SpatialAttention,
    Upsample,
)


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor) -> Tensor:
    parts = x.reshape(x.shape[0], groups, -1)
    var = parts.var(-1, unbiased=False, keepdim=True)
    normed = (parts - parts.mean(-1, keepdim=True)) / (var + 1e-6).sqrt()
    return normed.reshape(x.shape) * weight[:, None, None] + bias[:, None, None]


class Reference:
    """SPEC §2 over a state dict: encoder and decoder as two lists of layers."""

    def __init__(self, model: Autoencoder) -> None:
        self.p = {name: tensor.detach() for name, tensor in model.state_dict().items()}
        self.groups = model.config.num_groups

    def conv(self, name: str, x: Tensor, padding: int = 1, stride: int = 1) -> Tensor:
        return F.conv2d(x, self.p[f"{name}.weight"], self.p[f"{name}.bias"], stride, padding)

    def norm(self, name: str, x: Tensor) -> Tensor:
        return group_norm(x, self.groups, self.p[f"{name}.weight"], self.p[f"{name}.bias"])

    def res(self, name: str, x: Tensor) -> Tensor:
        h = x
        for i in (1, 2):
            h = self.norm(f"{name}.norm{i}", h)
            h = self.conv(f"{name}.conv{i}", h * torch.sigmoid(h))
        return h + (self.conv(f"{name}.nin_shortcut", x, 0) if f"{name}.nin_shortcut.weight" in self.p else x)

    def attn(self, name: str, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        h = self.norm(f"{name}.norm", x)
        q, k, v = (self.conv(f"{name}.{n}", h, 0).reshape(batch, channels, -1) for n in "qkv")
        weights = torch.softmax(torch.einsum("bci,bcj->bij", q, k) / channels**0.5, dim=2)
        h = torch.einsum("bcj,bij->bci", v, weights).reshape(batch, channels, height, width)
        return x + self.conv(f"{name}.proj_out", h, 0)

    def mid(self, side: str, x: Tensor) -> Tensor:
        return self.res(
            f"{side}.mid.block_2", self.attn(f"{side}.mid.attn_1", self.res(f"{side}.mid.block_1", x))
        )

    def out(self, side: str, x: Tensor) -> Tensor:
        h = self.norm(f"{side}.norm_out", x)
        return self.conv(f"{side}.conv_out", h * torch.sigmoid(h))

    def moments(self, x: Tensor) -> Tensor:
        h = self.conv("encoder.conv_in", x)
        for level in range(3):
            for block in range(2):
                h = self.res(f"encoder.down.{level}.block.{block}", h)
            if level < 2:
                larger = torch.zeros(*h.shape[:2], h.shape[2] + 1, h.shape[3] + 1, dtype=h.dtype)
                larger[:, :, :-1, :-1] = h
                h = self.conv(f"encoder.down.{level}.resample.conv", larger, padding=0, stride=2)
        return self.conv("quant_conv", self.out("encoder", self.mid("encoder", h)), 0)

    def decode(self, z: Tensor) -> Tensor:
        h = self.mid("decoder", self.conv("decoder.conv_in", self.conv("post_quant_conv", z, 0)))
        for level in (2, 1, 0):
            for block in range(3):
                h = self.res(f"decoder.up.{level}.block.{block}", h)
            if level:
                h = h.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
                h = self.conv(f"decoder.up.{level}.resample.conv", h)
        return self.out("decoder", h)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_moments_and_maps_agree_with_the_specification(
    tiny_autoencoder: AutoencoderConfig, dtype: torch.dtype, tolerance: float
) -> None:
    model = Autoencoder(tiny_autoencoder).to(dtype)
    for tensor in model.state_dict().values():
        tensor.add_(0.1 * torch.randn_like(tensor))
    reference, image = Reference(model), torch.rand(2, 1, 24, 16, dtype=dtype)
    with torch.no_grad():
        posterior, moments = model.encode(image), reference.moments(image)
        mean, logvar = moments[:, :3], moments[:, 3:].clamp(-30, 20)
        decoded, expected = model.decode(mean), reference.decode(mean)
    for one, other in ((posterior.mean, mean), (posterior.logvar, logvar), (decoded, expected)):
        assert (one - other).abs().max() < tolerance * other.std()


def test_a_latent_is_mean_plus_deviation_times_noise() -> None:
    moments = torch.randn(2, 6, 4, 4)
    posterior, noise = Posterior.from_moments(moments), torch.randn(2, 3, 4, 4)
    mean, logvar = moments.double().numpy()[:, :3], moments.double().numpy()[:, 3:]
    np.testing.assert_allclose(
        posterior.sample(noise), mean + np.exp(logvar / 2) * noise.numpy(), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(posterior.mode, moments[:, :3])


def test_drawn_latents_have_the_posterior_s_mean_and_deviation() -> None:
    moments = torch.cat(
        [torch.full((1, 1, 100, 100), 3.0), torch.full((1, 1, 100, 100), 2 * np.log(0.5))], dim=1
    )
    drawn = Posterior.from_moments(moments).sample()
    assert float(drawn.mean()) == pytest.approx(3.0, abs=0.02)
    assert float(drawn.std()) == pytest.approx(0.5, abs=0.02)


def test_the_log_variance_stays_within_its_bounds() -> None:
    moments = torch.tensor([0.0, 0.0, -1000.0, 1000.0]).reshape(1, 4, 1, 1)
    assert Posterior.from_moments(moments).logvar.flatten().tolist() == [-30.0, 20.0]


def test_the_divergence_is_the_textbook_s() -> None:
    posterior = Posterior(torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4))
    own = torch.distributions.Normal(posterior.mean, (posterior.logvar / 2).exp())
    expected = torch.distributions.kl_divergence(own, torch.distributions.Normal(0.0, 1.0)).sum(dim=(1, 2, 3))
    torch.testing.assert_close(posterior.kl(), expected)


def test_halving_pads_right_and_below_only() -> None:
    layer = Downsample(1)
    torch.nn.init.ones_(layer.conv.weight)
    torch.nn.init.zeros_(layer.conv.bias)
    assert layer(torch.ones(1, 1, 4, 4)).flatten().tolist() == [9.0, 6.0, 6.0, 4.0]


def test_doubling_repeats_the_nearest_pixel() -> None:
    layer = Upsample(1)
    torch.nn.init.dirac_(layer.conv.weight)
    torch.nn.init.zeros_(layer.conv.bias)
    assert layer(torch.tensor([[[[1.0, 2.0]]]])).tolist() == [[[[1.0, 1.0, 2.0, 2.0], [1.0, 1.0, 2.0, 2.0]]]]


def test_attention_leaves_its_input_when_it_projects_to_nothing() -> None:
    layer = SpatialAttention(8, 4)
    torch.nn.init.zeros_(layer.proj_out.weight)
    torch.nn.init.zeros_(layer.proj_out.bias)
    x = torch.randn(1, 8, 3, 5)
    torch.testing.assert_close(layer(x), x)


def test_every_parameter_gets_a_gradient(tiny_autoencoder: AutoencoderConfig) -> None:
    model = Autoencoder(tiny_autoencoder)
    posterior = model.encode(torch.randn(2, 1, 16, 24))
    (model.decode(posterior.sample()).square().sum() + posterior.kl().sum()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 1, 66, 64), "66x64; give sides that are multiples of 4"),
        ((1, 3, 64, 64), r"wants \(B, 1, H, W\)"),
        ((1, 64, 64), r"wants \(B, 1, H, W\)"),
    ],
)
def test_an_image_that_does_not_fit_is_refused_with_what_would(
    tiny_autoencoder: AutoencoderConfig, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Autoencoder(tiny_autoencoder).encode(torch.zeros(shape))


def test_groups_that_do_not_divide_a_width_are_refused() -> None:
    with pytest.raises(ValidationError, match="width 48 is no multiple of num_groups 32"):
        AutoencoderConfig(base_channels=48)
