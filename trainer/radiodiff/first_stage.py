"""The first stage's training: reconstruction, KL, perceptual distance, and an adversarial loss."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn

from trainer.radiodiff.autoencoder import Autoencoder, AutoencoderConfig, Posterior
from trainer.radiodiff.discriminator import AdversarialLoss, PatchDiscriminator, discriminator_loss
from trainer.radiodiff.formats import in_float32
from trainer.radiodiff.losses import Losses
from trainer.radiodiff.perceptual import Lpips
from trainer.section import Section

log = logging.getLogger(__name__)


class FirstStageConfig(Section):
    """Autoencoder, discriminator and the weights of the losses; the defaults are the published ones."""

    autoencoder: AutoencoderConfig = AutoencoderConfig()
    kl_weight: float = Field(1e-6, ge=0, description="Weight of the divergence from the standard normal.")
    disc_start: int = Field(50_001, ge=0, description="Step from which on the discriminator takes part.")
    disc_weight: float = Field(
        0.5, ge=0, description="Factor on the adaptive weight of the adversarial loss."
    )
    disc_loss: AdversarialLoss = Field("hinge", description="Loss of the discriminator.")
    disc_channels: int = Field(64, ge=1, description="Width of the discriminator's first layer.")
    perceptual_weight: float = Field(1.0, ge=0, description="Weight of LPIPS, where its weights are given.")
    perceptual_weights: Path | None = Field(
        None,
        description="File with LPIPS's tensors, as an upstream first-stage checkpoint; none: LPIPS is off.",
    )


class FirstStage(nn.Module):
    """The autoencoder with what it is trained by; each step is done for one of two objectives in turn."""

    objectives = ("autoencoder", "discriminator")

    def __init__(self, config: FirstStageConfig) -> None:
        super().__init__()
        self.config = config
        self.autoencoder = Autoencoder(config.autoencoder)
        self.discriminator = PatchDiscriminator(config.autoencoder.in_channels, config.disc_channels)
        # the published loss divides by exp(logvar), but no optimizer holds it: it stays 0
        self.logvar = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.perceptual = _perceptual(config)

    def parameters_of(self, objective: str) -> list[nn.Parameter]:
        """What the optimizer of ``objective`` trains."""
        part = {"autoencoder": self.autoencoder, "discriminator": self.discriminator}.get(objective)
        if part is None:
            raise ValueError(f"no objective {objective!r}; the first stage has {', '.join(self.objectives)}")
        return list(part.parameters())

    def training_step(
        self,
        batch: Mapping[str, Tensor],
        objective: str = "autoencoder",
        step: int = 0,
        *,
        posterior_noise: Tensor | None = None,
    ) -> Losses:
        """The loss of ``batch["image"]``, (B, 1, H, W) in [-1, 1], for one objective.

        Args:
            step: applied updates so far; the adversarial loss is 0 before ``disc_start``.
            posterior_noise: what the latents are drawn with, (B, C, H/4, W/4). Default: drawn.

        Raises:
            ValueError: another objective, or an image that does not fit.
        """
        self.parameters_of(objective)
        if objective == "autoencoder":
            return self._autoencoder_loss(batch["image"], step, posterior_noise)
        return self._discriminator_loss(batch["image"], step, posterior_noise)

    def reconstruct(self, image: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Posterior]:
        """A map drawn from the posterior of ``image``, and that posterior."""
        posterior = self.autoencoder.encode(image)
        return self.autoencoder.decode(posterior.sample(noise)), posterior

    def _autoencoder_loss(self, image: Tensor, step: int, noise: Tensor | None) -> Losses:
        reconstruction, posterior = self.reconstruct(image, noise)
        error = self._reconstruction_error(image, reconstruction)
        nll = (error / self.logvar.exp() + self.logvar).sum(dim=(1, 2, 3))
        kl = posterior.kl()
        with _frozen(self.discriminator):
            adversarial = -self._logits(reconstruction).mean()
        weight = self._adversarial_weight(nll.mean(), adversarial, step)
        per_sample = nll + self.config.kl_weight * kl
        return Losses(
            total=per_sample.mean() + weight * adversarial,
            parts={
                "reconstruction": error.detach().mean(),
                "kl": kl.detach().mean(),
                "adversarial": adversarial.detach(),
                "adversarial_weight": weight,
            },
            per_sample=per_sample.detach(),
        )

    def _discriminator_loss(self, image: Tensor, step: int, noise: Tensor | None) -> Losses:
        with torch.no_grad():
            reconstruction, _ = self.reconstruct(image, noise)
        real, fake = self._logits(image), self._logits(reconstruction)
        loss = discriminator_loss(real, fake, self.config.disc_loss)
        return Losses(
            total=loss if self._is_adversarial(step) else 0.0 * loss,
            parts={
                "discriminator": loss.detach(),
                "logits_real": real.detach().mean(),
                "logits_fake": fake.detach().mean(),
            },
        )

    def _logits(self, image: Tensor) -> Tensor:
        """What the discriminator says, in float32: its gradient is measured before any loss scale."""
        with in_float32(image):
            logits: Tensor = self.discriminator(image)
        return logits

    def _reconstruction_error(self, image: Tensor, reconstruction: Tensor) -> Tensor:
        """Absolute plus squared error of each pixel, and the perceptual distance on every one of them."""
        difference = image - reconstruction
        error = difference.abs() + difference.square()
        if self.perceptual is None:
            return error
        with in_float32(image):
            distance: Tensor = self.perceptual(image, reconstruction)
        return error + self.config.perceptual_weight * distance

    def _adversarial_weight(self, nll: Tensor, adversarial: Tensor, step: int) -> Tensor:
        """Ratio of the two losses' gradients at the decoder's last layer, detached; 0 without a graph."""
        if not (self._is_adversarial(step) and torch.is_grad_enabled()):
            return torch.zeros((), device=nll.device)
        last = self.autoencoder.decoder.conv_out.weight
        (of_nll,) = torch.autograd.grad(nll, last, retain_graph=True)
        (of_adversarial,) = torch.autograd.grad(adversarial, last, retain_graph=True)
        ratio = of_nll.norm() / (of_adversarial.norm() + 1e-4)
        weight: Tensor = ratio.clamp(0.0, 1e4).detach() * self.config.disc_weight
        return weight

    def _is_adversarial(self, step: int) -> bool:
        return step >= self.config.disc_start


def _perceptual(config: FirstStageConfig) -> Lpips | None:
    if config.perceptual_weights is None or config.perceptual_weight == 0:
        log.info("LPIPS is off, the reconstruction loss is per pixel only: set perceptual_weights to use it")
        return None
    return Lpips.from_file(config.perceptual_weights)


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Let gradients flow through ``module`` but not into its parameters."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)
