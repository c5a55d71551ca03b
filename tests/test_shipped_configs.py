"""Every configuration that is shipped can be read, and its two stages fit each other and the images."""

from pathlib import Path

import pytest

from trainer.config import load
from trainer.pipeline import check_shapes

CONFIGS = sorted((Path(__file__).parents[1] / "deploy/configs").glob("*.toml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_configuration_fits_itself(path: Path) -> None:
    check_shapes(load(path))


def test_the_published_configuration_has_the_published_sizes() -> None:
    config = load(CONFIGS[0].parent / "radiodiff.toml")
    diffusion, first = config.diffusion, config.first_stage
    assert (diffusion.model.unet.dim, diffusion.model.unet.swin.depths) == (128, (2, 2, 18, 2))
    assert (diffusion.model.autoencoder.base_channels, diffusion.model.scale_factor) == (128, 0.3)
    assert (diffusion.training.optimizer.lr, diffusion.training.optimizer.power) == (5e-5, 0.96)
    assert (diffusion.training.ema.start_after, diffusion.training.ema.every) == (10_000, 10)
    assert (first.training.steps, first.training.ema.decay, first.model.disc_start) == (
        150_000,
        0.995,
        50_001,
    )
