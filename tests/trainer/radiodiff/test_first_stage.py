"""The first stage's losses against numpy, and who trains on which of them."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.radiodiff.discriminator import PatchDiscriminator, discriminator_loss
from trainer.radiodiff.first_stage import FirstStage, FirstStageConfig
from trainer.radiodiff.perceptual import Lpips
from trainer.radiodiff.upstream_names import to_upstream

BEFORE, AFTER = 9, 10
"""Steps around the fixture's ``disc_start``."""


@pytest.fixture
def stage(tiny_first_stage: FirstStageConfig) -> FirstStage:
    return FirstStage(tiny_first_stage)


@pytest.fixture
def noise() -> Tensor:
    return torch.randn(2, 3, 16, 16)


def test_the_loss_is_the_sum_over_pixels_plus_a_little_divergence(
    stage: FirstStage, batch: dict[str, Tensor], noise: Tensor
) -> None:
    losses = stage.training_step(batch, "autoencoder", BEFORE, posterior_noise=noise)
    with torch.no_grad():
        posterior = stage.autoencoder.encode(batch["image"])
        drawn = stage.autoencoder.decode(posterior.sample(noise)).double().numpy()
    mean, logvar = posterior.mean.double().numpy(), posterior.logvar.double().numpy()
    error = np.abs(batch["image"].numpy() - drawn) + (batch["image"].numpy() - drawn) ** 2
    divergence = 0.5 * (mean**2 + np.exp(logvar) - 1 - logvar)
    per_sample = error.sum(axis=(1, 2, 3)) + 1e-6 * divergence.sum(axis=(1, 2, 3))
    np.testing.assert_allclose(losses.per_sample, per_sample, rtol=1e-5)
    np.testing.assert_allclose(losses.total.detach(), per_sample.mean(), rtol=1e-5)
    np.testing.assert_allclose(losses.parts["reconstruction"], error.mean(), rtol=1e-5)
    np.testing.assert_allclose(losses.parts["kl"], divergence.sum() / 2, rtol=1e-5)
    assert float(losses.parts["adversarial_weight"]) == 0.0


def test_the_adversarial_loss_is_weighted_by_the_gradients_at_the_last_layer(
    stage: FirstStage, batch: dict[str, Tensor], noise: Tensor
) -> None:
    losses = stage.training_step(batch, "autoencoder", AFTER, posterior_noise=noise)
    last = stage.autoencoder.decoder.conv_out.weight
    drawn = stage.autoencoder.decode(stage.autoencoder.encode(batch["image"]).sample(noise))
    difference = batch["image"] - drawn
    nll = (difference.abs() + difference**2).sum() / 2
    adversarial = -stage.discriminator(drawn).mean()
    norms = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (nll, adversarial)]
    weight = min(max(float(norms[0] / (norms[1] + 1e-4)), 0.0), 1e4) * 0.5
    assert float(losses.parts["adversarial_weight"]) == pytest.approx(weight, rel=1e-4)
    assert losses.per_sample is not None
    expected = float(losses.per_sample.mean()) + weight * float(adversarial.detach())
    assert float(losses.total.detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["hinge", "vanilla"])
def test_the_discriminator_s_loss_is_the_textbook_s(kind: str) -> None:
    real, fake = torch.randn(5, 1, 2, 2), torch.randn(5, 1, 2, 2)
    r, f = real.double().numpy(), fake.double().numpy()
    if kind == "hinge":
        expected = 0.5 * (np.maximum(0, 1 - r).mean() + np.maximum(0, 1 + f).mean())
    else:
        expected = 0.5 * (np.log1p(np.exp(-r)).mean() + np.log1p(np.exp(f)).mean())
    assert float(discriminator_loss(real, fake, kind)) == pytest.approx(expected, rel=1e-5)


def test_the_discriminator_learns_nothing_before_its_start(
    stage: FirstStage, batch: dict[str, Tensor]
) -> None:
    losses = stage.training_step(batch, "discriminator", BEFORE)
    losses.total.backward()
    assert float(losses.total.detach()) == 0.0
    assert float(losses.parts["discriminator"]) > 0.0
    assert not any(p.grad is not None and p.grad.any() for p in stage.parameters())


@pytest.mark.parametrize("objective", FirstStage.objectives)
def test_an_objective_reaches_its_own_parameters_and_no_others(
    stage: FirstStage, batch: dict[str, Tensor], objective: str
) -> None:
    stage.training_step(batch, objective, AFTER).total.backward()
    own = {id(p) for p in stage.parameters_of(objective)}
    for name, parameter in stage.named_parameters():
        assert (parameter.grad is not None) == (id(parameter) in own), name


def test_an_unknown_objective_is_refused(stage: FirstStage, batch: dict[str, Tensor]) -> None:
    with pytest.raises(
        ValueError, match="no objective 'diffusion'; the first stage has autoencoder, discriminator"
    ):
        stage.training_step(batch, "diffusion")


def test_a_loss_can_be_computed_without_gradients(stage: FirstStage, batch: dict[str, Tensor]) -> None:
    with torch.no_grad():
        losses = stage.training_step(batch, "autoencoder", AFTER)
    assert float(losses.parts["adversarial_weight"]) == 0.0


def test_the_discriminator_judges_overlapping_patches() -> None:
    layers = [
        (type(layer).__name__, getattr(layer, "stride", None), getattr(layer, "bias", None) is not None)
        for layer in PatchDiscriminator(1, 8).main
    ]
    convolutions = [(stride, has_bias) for kind, stride, has_bias in layers if kind == "Conv2d"]
    assert convolutions == [((2, 2), True), ((2, 2), False), ((2, 2), False), ((1, 1), False), ((1, 1), True)]
    assert PatchDiscriminator(1, 8)(torch.zeros(2, 1, 64, 64)).shape == (2, 1, 6, 6)


def test_without_a_weights_file_lpips_is_off_and_says_so(
    tiny_first_stage: FirstStageConfig, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert FirstStage(tiny_first_stage).perceptual is None
    assert "LPIPS is off" in caplog.text


@pytest.fixture(scope="module")
def lpips() -> Lpips:
    torch.manual_seed(3)
    model = Lpips()
    for linear in model.linear:
        torch.nn.init.uniform_(linear.weight)
    return model


def upstream_lpips(model: Lpips, prefix: str) -> dict[str, Tensor]:
    names = {name: to_upstream(f"perceptual.{name}", "first_stage") for name in model.state_dict()}
    return {prefix + names[name].removeprefix("loss."): tensor for name, tensor in model.state_dict().items()}


def test_lpips_is_a_weighted_distance_of_unit_features(lpips: Lpips) -> None:
    x, y = torch.rand(2, 1, 32, 32) * 2 - 1, torch.rand(2, 1, 32, 32) * 2 - 1
    p = upstream_lpips(lpips, "")

    def features(image: Tensor) -> list[Tensor]:
        shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
        h = (image.repeat(1, 3, 1, 1) - shift[:, None, None]) / scale[:, None, None]
        taps = []
        for part, convolutions in enumerate(
            ([0, 2], [5, 7], [10, 12, 14], [17, 19, 21], [24, 26, 28]), start=1
        ):
            h = F.max_pool2d(h, 2, 2) if part > 1 else h
            for number in convolutions:
                name = f"perceptual_loss.net.slice{part}.{number}"
                h = F.relu(F.conv2d(h, p[f"{name}.weight"], p[f"{name}.bias"], padding=1))
            taps.append(h / (torch.sqrt((h**2).sum(1, keepdim=True)) + 1e-10))
        return taps

    expected = torch.zeros(2)
    for index, (a, b) in enumerate(zip(features(x), features(y), strict=True)):
        weight = p[f"perceptual_loss.lin{index}.model.1.weight"][0, :, 0, 0]
        expected += torch.einsum("bchw,c->bhw", (a - b) ** 2, weight).mean(dim=(1, 2))
    torch.testing.assert_close(lpips(x, y).reshape(2), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("prefix", ["", "loss."])
def test_lpips_comes_from_a_file_and_counts_on_every_pixel(
    lpips: Lpips,
    prefix: str,
    tiny_first_stage: FirstStageConfig,
    batch: dict[str, Tensor],
    noise: Tensor,
    tmp_path: Path,
) -> None:
    torch.save({"model": upstream_lpips(lpips, prefix)}, tmp_path / "lpips.pt")
    torch.manual_seed(5)
    plain = FirstStage(tiny_first_stage)
    config = tiny_first_stage.model_copy(
        update={"perceptual_weights": tmp_path / "lpips.pt", "perceptual_weight": 2.0}
    )
    stage = FirstStage(config)
    stage.load_state_dict(plain.state_dict(), strict=False)
    with torch.no_grad():
        one = stage.training_step(batch, posterior_noise=noise).per_sample
        other = plain.training_step(batch, posterior_noise=noise).per_sample
        drawn, _ = plain.reconstruct(batch["image"], noise)
        distance = lpips(batch["image"], drawn).reshape(2)
    assert one is not None
    assert other is not None
    torch.testing.assert_close(one - other, 2.0 * distance * 64 * 64, rtol=1e-3, atol=0.01)
    assert not any(p.requires_grad for p in stage.train().perceptual.parameters())
    assert not any(module.training for module in stage.perceptual.modules())


def test_a_file_without_lpips_is_refused_by_name(tmp_path: Path, lpips: Lpips) -> None:
    tensors = upstream_lpips(lpips, "")
    del tensors["perceptual_loss.lin3.model.1.weight"]
    torch.save(tensors, tmp_path / "lpips.pt")
    with pytest.raises(ValueError, match=r"lacks LPIPS tensors: lin3\.model\.1\.weight; give"):
        Lpips.from_file(tmp_path / "lpips.pt")
