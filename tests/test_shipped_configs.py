"""Every configuration that is shipped can be read, and its two stages fit each other and the images."""

from pathlib import Path

import pytest
import torch

from trainer.config import load
from trainer.data.radiomaps import RadioMaps
from trainer.objective import fused_adamw
from trainer.pipeline import check_shapes
from trainer.probe import Trainee
from trainer.stage import diffusion_of, first_stage_of, probe_batch

CONFIGS = sorted((Path(__file__).parents[1] / "deploy/configs").glob("*.toml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_configuration_fits_itself(path: Path) -> None:
    check_shapes(load(path))


def test_the_published_configuration_has_the_published_sizes() -> None:
    config = load(CONFIGS[0].parent / "radiodiff.toml")
    first_config = load(CONFIGS[0].parent / "radiodiff-first-stage.toml")
    diffusion, first = config.diffusion, first_config.first_stage
    assert (first_config.run.stages, config.run.stages) == ("first_stage", "diffusion")
    assert (first_config.run.folder, first_config.data) == (config.run.folder, config.data)
    assert first.model == config.first_stage.model, "one finds what the other left"
    assert (first.training.loading.batch_size, first.training.micro_batches) == (2, 1)
    assert (diffusion.model.unet.dim, diffusion.model.unet.swin.depths) == (128, (2, 2, 18, 2))
    assert (diffusion.model.autoencoder.base_channels, diffusion.model.scale_factor) == (128, 0.3)
    assert (diffusion.training.optimizer.lr, diffusion.training.optimizer.power) == (5e-5, 0.96)
    training = diffusion.training
    assert (training.loading.batch_size, training.micro_batches, training.precision) == (8 * 66, 8, "fp32")
    assert (diffusion.training.ema.start_after, diffusion.training.ema.every) == (10_000, 10)
    assert (first.training.steps, first.training.ema.decay, first.model.disc_start) == (
        150_000,
        0.995,
        50_001,
    )


def test_the_small_configuration_takes_two_steps_of_each_stage() -> None:
    torch.set_num_threads(1)
    config = load(CONFIGS[0].parent / "small.toml")
    maps = RadioMaps(config.data, "train")
    for stage in (first_stage_of(config, maps), diffusion_of(config, maps)):
        model, settings = stage.model, stage.training.optimizer
        assert isinstance(model, Trainee)
        objective = model.objectives[0]
        parameters = model.parameters_of(objective)
        before = [parameter.detach().clone() for parameter in parameters]
        optimizer = fused_adamw(parameters, settings, torch.tensor(settings.lr))
        optimizer.found_inf = torch.zeros(())  # type: ignore[attr-defined]
        batch = probe_batch(stage, torch.device("cpu"), size=stage.training.loading.batch_size)
        for step in range(2):
            losses = model.training_step(batch, objective, step)
            losses.total.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            assert bool(losses.total.isfinite())
        moved = [not torch.equal(*pair) for pair in zip(before, parameters, strict=True)]
        assert sum(moved) > 0.9 * len(moved)
