"""The training step of the latent diffusion: its loss against numpy, its buffers, and what it refuses."""

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.radiodiff.autoencoder import AutoencoderConfig
from trainer.radiodiff.diffusion import DiffusionConfig, LatentDiffusion, diffuse, time_weights
from trainer.radiodiff.unet import UnetConfig

TIMES = torch.tensor([0.02, 0.7])


class HostReads(TorchDispatchMode):
    """Counts what makes the host wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


def weights_by_hand(t: np.ndarray, weighting: str) -> tuple[np.ndarray, np.ndarray]:
    if weighting == "published":
        return 2 * np.exp(1 - t), np.exp(np.sqrt(t))
    if weighting == "2024-12":
        return (t + 1) / np.sqrt(t), np.sqrt(2 - t) / np.sqrt(1 - t + 1e-4)
    return np.ones_like(t), np.ones_like(t)


@pytest.mark.parametrize("use_l1", [True, False])
@pytest.mark.parametrize("weighting", ["published", "none", "2024-12"])
@pytest.mark.parametrize("loss_type", ["l2", "l1"])
def test_the_loss_weighs_the_errors_of_drift_and_noise(
    tiny_diffusion: DiffusionConfig, batch: dict[str, Tensor], use_l1: bool, weighting: str, loss_type: str
) -> None:
    changes = {"use_l1": use_l1, "weighting": weighting, "loss_type": loss_type, "scale_factor": 0.7}
    model = LatentDiffusion(tiny_diffusion.model_copy(update=changes)).eval()
    noise, posterior_noise = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        losses = model.training_step(batch, noise=noise, times=TIMES, posterior_noise=posterior_noise)
        x0 = 0.7 * model.autoencoder.encode(batch["image"]).sample(posterior_noise)
        t = TIMES[:, None, None, None]
        guesses = model.unet((1 - t) * x0 + t.sqrt() * noise, TIMES, batch["cond"])

    errors = [(g - target).double().numpy() for g, target in zip(guesses, (-x0, noise), strict=True)]
    per_sample = np.zeros(2)
    for weight, error in zip(weights_by_hand(TIMES.double().numpy(), weighting), errors, strict=True):
        absolute, squared = np.abs(error).mean(axis=(1, 2, 3)), (error**2).mean(axis=(1, 2, 3))
        first = squared if loss_type == "l2" else absolute
        per_sample += weight * ((first + absolute) / 2 if use_l1 else first)
    np.testing.assert_allclose(losses.per_sample, per_sample, rtol=2e-5)
    np.testing.assert_allclose(losses.total, per_sample.mean(), rtol=2e-5)
    assert losses.times is not None
    assert torch.equal(losses.times, TIMES)


def test_the_published_weights_stay_between_their_bounds() -> None:
    drift, noise = time_weights(torch.linspace(1e-4, 1, 1000), "published", 1e-4)
    assert 2.0 <= float(drift.min()) < float(drift.max()) < 5.44
    assert 1.01 <= float(noise.min()) < float(noise.max()) < 2.72


def test_a_latent_fades_while_noise_grows() -> None:
    x0, noise, t = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4), torch.tensor([0.0, 0.25, 1.0])
    expected = torch.stack([x0[0], 0.75 * x0[1] + 0.5 * noise[1], noise[2]])
    torch.testing.assert_close(diffuse(x0, noise, t), expected)


def test_times_are_drawn_between_eps_and_one(model: LatentDiffusion) -> None:
    times = model.draw_times(torch.zeros(200_000, 1))
    assert 1e-4 <= float(times.min()) < 1.5e-4
    assert 0.999 < float(times.max()) < 1.0
    assert float(times.mean()) == pytest.approx(0.5, abs=0.01)


def test_the_same_noise_gives_the_same_loss_and_other_noise_another(
    model: LatentDiffusion, batch: dict[str, Tensor]
) -> None:
    model.eval()
    given = {"noise": torch.randn(2, 3, 16, 16), "times": TIMES, "posterior_noise": torch.randn(2, 3, 16, 16)}
    first, again = (model.training_step(batch, **given).total for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, model.training_step(batch).total)


def test_a_training_step_never_reads_from_the_device(
    model: LatentDiffusion, batch: dict[str, Tensor]
) -> None:
    with HostReads() as reads:
        model.training_step(batch).total.backward()
    assert reads.count == 0


def test_the_optimizer_gets_exactly_the_parameters_that_get_gradients(
    model: LatentDiffusion, batch: dict[str, Tensor]
) -> None:
    model.training_step(batch).total.backward()
    trained = {id(p) for p in model.parameters_of("diffusion")}
    assert trained == {id(p) for p in model.parameters() if p.grad is not None}


def test_the_autoencoder_stays_frozen_and_in_eval_mode(model: LatentDiffusion) -> None:
    model.train()
    assert model.unet.training
    assert not any(module.training for module in model.autoencoder.modules())
    assert not any(p.requires_grad for p in model.autoencoder.parameters())


def test_the_loss_in_bfloat16_is_near_that_in_float32(
    model: LatentDiffusion, batch: dict[str, Tensor]
) -> None:
    model.eval()
    given = {"noise": torch.randn(2, 3, 16, 16), "times": TIMES, "posterior_noise": torch.randn(2, 3, 16, 16)}
    exact = model.training_step(batch, **given).total
    with torch.autocast("cpu", torch.bfloat16):
        short = model.training_step(batch, **given).total
    short.backward()
    assert float(short.detach()) == pytest.approx(float(exact.detach()), rel=0.02)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


# -- the scale factor ---------------------------------------------------------------------------------------


def test_the_scale_factor_comes_back_with_the_weights(tiny_diffusion: DiffusionConfig) -> None:
    one = LatentDiffusion(tiny_diffusion.model_copy(update={"scale_factor": 0.25}))
    other = LatentDiffusion(tiny_diffusion)
    other.load_state_dict(one.state_dict())
    assert float(other.scale_factor) == 0.25


def test_the_first_batch_sets_the_scale_once(
    tiny_diffusion: DiffusionConfig, batch: dict[str, Tensor]
) -> None:
    model = LatentDiffusion(tiny_diffusion.model_copy(update={"scale_factor": 1.0, "default_scale": False}))
    posterior_noise = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        std = float(model.autoencoder.encode(batch["image"]).sample(posterior_noise).std())
    model.eval().training_step(batch)
    assert float(model.scale_factor) == 1.0, "a probe must not set it"
    model.train().training_step(batch, posterior_noise=posterior_noise)
    assert float(model.scale_factor) == pytest.approx(1 / std, rel=1e-5)
    model.training_step({**batch, "image": batch["image"] / 2})
    assert float(model.scale_factor) == pytest.approx(1 / std, rel=1e-5)


def test_the_scale_stays_when_training_begins_later(
    tiny_diffusion: DiffusionConfig, batch: dict[str, Tensor]
) -> None:
    model = LatentDiffusion(tiny_diffusion.model_copy(update={"scale_factor": 1.0, "default_scale": False}))
    model.training_step(batch, step=1)
    assert float(model.scale_factor) == 1.0


@pytest.mark.parametrize("changes", [{"scale_factor": 0.3}, {"scale_by_softsign": True}])
def test_decoding_undoes_the_scaling(tiny_diffusion: DiffusionConfig, changes: dict[str, object]) -> None:
    model = LatentDiffusion(tiny_diffusion.model_copy(update=changes)).eval()
    image, noise = torch.rand(1, 1, 64, 64), torch.zeros(1, 3, 16, 16)
    with torch.no_grad():
        direct = ((model.autoencoder.decode(model.autoencoder.encode(image).mode) + 1) / 2).clamp(0, 1)
    torch.testing.assert_close(model.decode(model.encode(image, noise)), direct, atol=1e-5, rtol=0)


# -- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("time", [0.0, -0.1, 1.0000001, float("nan")])
def test_a_time_outside_the_interval_is_refused(
    model: LatentDiffusion, batch: dict[str, Tensor], time: float
) -> None:
    with pytest.raises(ValueError, match=r"outside \(0, 1\]"):
        model.training_step(batch, times=torch.tensor([0.5, time]))


@pytest.mark.parametrize("shape", [(2,), (1, 1), ()])
def test_times_of_another_number_are_refused(
    model: LatentDiffusion, batch: dict[str, Tensor], shape: tuple[int, ...]
) -> None:
    one = {name: tensor[:1] for name, tensor in batch.items()}
    with pytest.raises(ValueError, match=r"times have shape .*; give one for each sample: \(1,\)"):
        model.training_step(one, times=torch.full(shape, 0.5))


@pytest.mark.parametrize("which", ["noise", "posterior_noise"])
def test_noise_of_another_shape_is_refused_and_not_broadcast(
    model: LatentDiffusion, batch: dict[str, Tensor], which: str
) -> None:
    with pytest.raises(ValueError, match=r"noise has shape \(1, 3, 16, 16\); give \(2, 3, 16, 16\)"):
        model.training_step(batch, **{which: torch.zeros(1, 3, 16, 16)})


def test_a_condition_of_another_size_than_the_map_is_refused(model: LatentDiffusion) -> None:
    with pytest.raises(ValueError, match="a quarter of its own side"):
        model.training_step({"image": torch.zeros(2, 1, 64, 64), "cond": torch.zeros(2, 3, 128, 128)})


def test_an_unknown_objective_is_refused(model: LatentDiffusion, batch: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="no objective 'autoencoder'; this model has diffusion"):
        model.training_step(batch, "autoencoder")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"autoencoder": AutoencoderConfig(embed_dim=4)}, "unet.channels is 3, autoencoder.embed_dim 4"),
        ({"autoencoder": AutoencoderConfig(channel_mult=(1, 2))}, "must be three numbers"),
        ({"default_scale": False}, "scale_factor is 0.3; give 1.0"),
        ({"unet": UnetConfig(channels=4)}, "unet.channels is 4"),
        ({"weighting": "2025"}, "weighting"),
    ],
)
def test_parts_that_do_not_fit_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DiffusionConfig.model_validate(values)
