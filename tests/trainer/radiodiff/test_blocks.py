"""The U-Net's small parts against numpy."""

import math

import numpy as np
import pytest
import torch

from trainer.radiodiff.attention import FullAttention, LinearAttention
from trainer.radiodiff.blocks import (
    ChannelLayerNorm,
    FrequencyFilter,
    ResnetBlock,
    StandardizedConv2d,
    TimeEmbedding,
)


@pytest.mark.parametrize(("dtype", "eps"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-3)])
def test_channel_norm_has_an_epsilon_for_each_precision(dtype: torch.dtype, eps: float) -> None:
    x = (torch.randn(2, 8, 3, 5) * 0.01).to(dtype)
    norm = ChannelLayerNorm(8).to(dtype)
    values = x.double().numpy()
    mean, var = values.mean(axis=1, keepdims=True), values.var(axis=1, keepdims=True)
    # bfloat16 has 8 bits, float32 24
    np.testing.assert_allclose(
        norm(x).detach().double(),
        (values - mean) / np.sqrt(var + eps),
        atol=1e-4 if dtype == torch.float32 else 0.05,
    )


@pytest.mark.parametrize(("dtype", "eps"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-3)])
def test_a_standardised_weight_has_mean_0_and_variance_1_for_each_output(
    dtype: torch.dtype, eps: float
) -> None:
    layer = StandardizedConv2d(4, 6).to(dtype)
    impulse = torch.zeros(4, 4, 3, 3, dtype=dtype)
    impulse[torch.arange(4), torch.arange(4), 1, 1] = 1.0
    # the answer to an impulse is the weight, turned by half a circle
    answer = (layer(impulse) - layer.bias[:, None, None]).flip(2, 3).transpose(0, 1).detach().double().numpy()
    weight = layer.weight.detach().double().numpy()
    mean, var = weight.mean(axis=(1, 2, 3), keepdims=True), weight.var(axis=(1, 2, 3), keepdims=True)
    np.testing.assert_allclose(
        answer, (weight - mean) / np.sqrt(var + eps), atol=1e-5 if dtype == torch.float32 else 0.05
    )


@pytest.mark.parametrize("shape", [(4, 4), (4, 3), (3, 8), (5, 2)])
def test_the_frequency_filter_multiplies_numpy_s_spectrum(shape: tuple[int, int]) -> None:
    height, width = shape
    layer, x = FrequencyFilter(6, height, width // 2 + 1), torch.randn(2, 6, height, width)
    weight = layer.complex_weight.detach().double().numpy()
    spectrum = np.fft.rfft2(x.double().numpy(), norm="ortho") * (weight[..., 0] + 1j * weight[..., 1])
    expected = np.fft.irfft2(spectrum, s=shape, norm="ortho")
    np.testing.assert_allclose(layer(x).detach(), expected, atol=1e-7)


def test_the_frequency_filter_works_below_float32() -> None:
    layer, x = FrequencyFilter(2, 4, 3), torch.randn(1, 2, 4, 4)
    torch.testing.assert_close(layer(x.bfloat16()).float(), layer(x), atol=1e-2, rtol=0.05)


def test_time_is_embedded_as_fourier_features_of_a_quarter_of_its_logarithm() -> None:
    layer, t = TimeEmbedding(8, 16.0), torch.tensor([1e-4, 0.5, 1.0])
    frequencies = layer.frequencies.double().numpy()
    phase = np.log(t.double().numpy())[:, None] / 4 * frequencies * 2 * np.pi
    features = torch.from_numpy(np.concatenate([np.sin(phase), np.cos(phase)], axis=1))
    hidden = features @ layer.hidden.weight.double().T + layer.hidden.bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    expected = hidden @ layer.out.weight.double().T + layer.out.bias
    # phases reach 200, where float32 is exact to 1e-5
    torch.testing.assert_close(layer(t).double(), expected, atol=2e-5, rtol=0)
    assert not layer.frequencies.requires_grad


def test_the_frequencies_spread_as_configured() -> None:
    assert float(TimeEmbedding(512, 16.0).frequencies.std()) == pytest.approx(16.0, rel=0.15)


def test_a_residual_block_projects_its_input_only_to_another_width() -> None:
    assert isinstance(ResnetBlock(8, 8, 4).shortcut, torch.nn.Identity)
    assert isinstance(ResnetBlock(8, 16, 4).shortcut, torch.nn.Conv2d)


@pytest.mark.parametrize("kind", [LinearAttention, FullAttention])
def test_attention_has_no_favourite_position(kind: type[torch.nn.Module]) -> None:
    """Shuffled positions in, the same answers shuffled out."""
    layer, x, order = kind(8), torch.randn(1, 8, 3, 4), torch.randperm(12)

    def shuffled(y: torch.Tensor) -> torch.Tensor:
        return y.flatten(2)[:, :, order].reshape(y.shape)

    torch.testing.assert_close(layer(shuffled(x)), shuffled(layer(x)), atol=1e-5, rtol=1e-5)
