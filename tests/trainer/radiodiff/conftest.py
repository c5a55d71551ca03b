"""Reduced sizes of every part of the model, and upstream's list of tensors."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from trainer.radiodiff.autoencoder import AutoencoderConfig
from trainer.radiodiff.diffusion import DiffusionConfig, LatentDiffusion
from trainer.radiodiff.first_stage import FirstStageConfig
from trainer.radiodiff.swin import SwinConfig
from trainer.radiodiff.unet import UnetConfig, input_size_for


@dataclass(frozen=True)
class UpstreamTensor:
    """A line of ``upstream_keys.txt``: what one tensor of a published checkpoint looks like."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def upstream_tensors() -> list[UpstreamTensor]:
    """All 1536 tensors of a published latent diffusion checkpoint."""
    lines = Path(__file__).with_name("upstream_keys.txt").read_text().splitlines()
    tensors = []
    for name, dtype, shape, _ in map(str.split, lines):
        sides = () if shape == "scalar" else tuple(map(int, shape.split("x")))
        tensors.append(UpstreamTensor(name, getattr(torch, dtype), sides))
    return tensors


@pytest.fixture
def tiny_autoencoder() -> AutoencoderConfig:
    return AutoencoderConfig(base_channels=8, num_groups=4)


@pytest.fixture
def tiny_first_stage(tiny_autoencoder: AutoencoderConfig) -> FirstStageConfig:
    return FirstStageConfig(autoencoder=tiny_autoencoder, disc_channels=4, disc_start=10)


@pytest.fixture
def tiny_unet() -> UnetConfig:
    """For maps of 64x64."""
    swin = SwinConfig(embed_dim=16, depths=(1, 2, 1, 1), heads=(1, 2, 4, 8), num_classes=10)
    return UnetConfig(dim=16, input_size=input_size_for((64, 64)), swin=swin)


@pytest.fixture
def tiny_diffusion(tiny_autoencoder: AutoencoderConfig, tiny_unet: UnetConfig) -> DiffusionConfig:
    return DiffusionConfig(autoencoder=tiny_autoencoder, unet=tiny_unet)


@pytest.fixture
def model(tiny_diffusion: DiffusionConfig) -> LatentDiffusion:
    return LatentDiffusion(tiny_diffusion)


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Two maps with their conditions, in [-1, 1]."""
    return {"image": torch.rand(2, 1, 64, 64) * 2 - 1, "cond": torch.rand(2, 3, 64, 64) * 2 - 1}
