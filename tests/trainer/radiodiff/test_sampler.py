"""The sampler, step by step with numbers written down, and the maps it draws."""

import math
import random

import numpy as np
import pytest
import torch
from torch import Tensor

from trainer.radiodiff.diffusion import DiffusionConfig, LatentDiffusion
from trainer.radiodiff.sampler import sample_latent, schedule


def made_up(x: np.ndarray, t: float) -> tuple[np.ndarray, np.ndarray]:
    """Some smooth function in the network's place: drift and noise."""
    return np.sin(x) - t, 0.5 * x + t**2


def follow_by_hand(x: np.ndarray, steps: int, noises: list[np.ndarray]) -> tuple[np.ndarray, list[float]]:
    """SPEC §6 in float64, but with times in float32 as there."""
    lengths = [1 / steps] * (steps - 1) + [1 / steps - 1e-4, 1e-4]
    cur, times = np.float32(1.0), []
    for index, length in enumerate(lengths):
        s = np.float32(length) if index < len(lengths) - 1 else cur
        t, s64 = float(cur), float(s)
        times.append(t)
        drift, noise = made_up(x, t)
        x0 = x - drift * t - math.sqrt(t) * noise
        fresh = math.sqrt(s64 * float(cur - s) / t) * noises[index]
        x = x - (-x0) * s64 - s64 / math.sqrt(t) * noise + fresh
        cur = np.float32(cur - s)
    return x, times


@pytest.mark.parametrize("steps", [1, 2, 5, 50])
def test_a_latent_follows_the_steps_written_down(steps: int) -> None:
    start = torch.randn(2, 3, 4, 4)
    noises = [torch.randn(2, 3, 4, 4) for _ in range(steps + 1)]
    seen: list[float] = []

    def predict(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        assert t.shape == (2,)
        seen.append(float(t[0]))
        drift, noise = made_up(x.double().numpy(), seen[-1])
        return torch.from_numpy(drift).to(x), torch.from_numpy(noise).to(x)

    ours = sample_latent(predict, start, schedule(steps, 1e-4), step_noise=noises)
    expected, times = follow_by_hand(start.double().numpy(), steps, [n.double().numpy() for n in noises])
    assert seen == times
    assert len(seen) == steps + 1
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-5 * expected.std())


def test_one_step_evaluates_at_one_and_just_above_eps() -> None:
    first, last = schedule(1, 1e-4)
    assert first.t == 1.0
    assert last.t == pytest.approx(1.0002e-4, rel=1e-4)
    assert last.length == last.t
    assert last.renewal == 0.0


@pytest.mark.parametrize("steps", [1, 5, 50, 500, 1199])
def test_every_step_is_possible(steps: int) -> None:
    for step in schedule(steps, 1e-4):
        assert 0 < step.length <= step.t <= 1
        assert math.isfinite(step.renewal)


@pytest.mark.parametrize("steps", [0, -1, 10_000])
def test_an_impossible_number_of_steps_is_refused(steps: int) -> None:
    with pytest.raises(ValueError, match="give 1 or more, and fewer than 1/eps = 10000"):
        schedule(steps, 1e-4)


def test_a_true_denoiser_is_followed_to_the_latent() -> None:
    """If drift and noise are predicted exactly, the end is x0, whatever is renewed on the way."""
    x0 = torch.randn(2, 3, 4, 4)

    def predict(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        t = t[:, None, None, None]
        return -x0, (x - (1 - t) * x0) / t.sqrt()

    torch.testing.assert_close(
        sample_latent(predict, torch.randn_like(x0), schedule(7, 1e-4)), x0, atol=1e-4, rtol=0
    )


def test_a_drawn_map_lies_between_0_and_1(model: LatentDiffusion, batch: dict[str, Tensor]) -> None:
    maps = model.sample(batch["cond"], 2)
    assert maps.shape == (2, 1, 64, 64)
    assert 0 <= float(maps.min()) <= float(maps.max()) <= 1


def test_a_map_is_the_decoded_latent(model: LatentDiffusion, batch: dict[str, Tensor]) -> None:
    given = {"noise": torch.randn(2, 3, 16, 16), "step_noise": [torch.randn(2, 3, 16, 16) for _ in range(3)]}
    z = model.sample_latent(batch["cond"], 2, **given) / 0.3
    expected = ((model.autoencoder.decode(z) + 1) / 2).clamp(0, 1)
    torch.testing.assert_close(model.sample(batch["cond"], 2, **given), expected)


def test_sampling_seeds_nothing(model: LatentDiffusion, batch: dict[str, Tensor]) -> None:
    """Upstream seeds every generator with 0 here, and so repeats its data order after each sample."""
    states = random.getstate(), np.random.get_state()[1].copy()
    first, second = model.sample(batch["cond"], 1), model.sample(batch["cond"], 1)
    assert not torch.equal(first, second)
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()


def test_step_noise_that_does_not_fit_is_refused(model: LatentDiffusion, batch: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"give 3 tensors of shape \(2, 3, 16, 16\)"):
        model.sample(batch["cond"], 2, step_noise=[torch.zeros(2, 3, 16, 16)] * 2)


def test_a_generator_repeats_a_map_and_leaves_the_global_one_alone(
    model: LatentDiffusion, batch: dict[str, Tensor]
) -> None:
    state = torch.get_rng_state()
    first, second = (
        model.sample(batch["cond"], 2, generator=torch.Generator().manual_seed(7)) for _ in range(2)
    )
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("training", [True, False])
def test_sampling_works_in_eval_mode_and_leaves_the_mode_as_it_was(
    model: LatentDiffusion, batch: dict[str, Tensor], training: bool
) -> None:
    model.train(training)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.sample(batch["cond"], 1)
    assert model.unet.training == training
    assert not model.autoencoder.training
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_a_uniform_start_lies_between_minus_one_and_one(
    tiny_diffusion: DiffusionConfig, batch: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = LatentDiffusion(tiny_diffusion.model_copy(update={"start": "uniform"}))
    starts: list[Tensor] = []

    def first_call(x: Tensor, t: Tensor, pyramid: list[Tensor]) -> tuple[Tensor, Tensor]:
        starts.append(x)
        return x, x

    monkeypatch.setattr(model.unet, "denoise", first_call)
    model.sample_latent(batch["cond"], 1)
    assert starts[0].shape == (2, 3, 16, 16)
    assert -1 <= float(starts[0].min()) < -0.9
    assert 0.9 < float(starts[0].max()) <= 1
