"""Latent diffusion with constant drift: the loss of a training step, and drawing maps."""

from collections.abc import Mapping, Sequence
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from trainer.radiodiff.autoencoder import Autoencoder, AutoencoderConfig
from trainer.radiodiff.losses import Losses
from trainer.radiodiff.sampler import draw_normal, sample_latent, schedule
from trainer.radiodiff.unet import Unet, UnetConfig
from trainer.section import Section

Weighting = Literal["published", "2024-12", "none"]


class DiffusionConfig(Section):
    """The process, its loss, and the two networks; the defaults are the published ones."""

    autoencoder: AutoencoderConfig = AutoencoderConfig()
    unet: UnetConfig = UnetConfig()
    eps: float = Field(
        1e-4, gt=0, lt=1, description="Shortest time; at 0 the time embedding would take log(0)."
    )
    weighting: Weighting = Field(
        "published",
        description="Weights of the two errors over time: 2 exp(1 - t) and exp(sqrt t); of 2024-12; or 1.",
    )
    use_l1: bool = Field(
        True, description="Mean of squared and absolute error instead of the squared one alone."
    )
    loss_type: Literal["l2", "l1"] = Field(
        "l2", description="l1 puts the absolute error in the squared one's place."
    )
    scale_factor: float = Field(0.3, gt=0, description="Latents are multiplied by this before the diffusion.")
    default_scale: bool = Field(
        True,
        description="False: the first batch sets the factor to 1 / std of its latents; then give 1.0 above.",
    )
    scale_by_softsign: bool = Field(False, description="Squash latents by softsign instead of scaling them.")
    start: Literal["normal", "uniform"] = Field(
        "normal", description="What sampling starts from: N(0, 1) or +-1."
    )

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if self.autoencoder.embed_dim != self.unet.channels:
            raise ValueError(
                f"unet.channels is {self.unet.channels}, autoencoder.embed_dim {self.autoencoder.embed_dim}; "
                "the U-Net works on the autoencoder's latent, so give both the same number"
            )
        if self.autoencoder.down_ratio != 4:
            raise ValueError(
                f"autoencoder.channel_mult {self.autoencoder.channel_mult} must be three numbers, because "
                "the condition encoder starts at a quarter of the side and so must the latent"
            )
        if not self.default_scale and self.scale_factor != 1.0:
            raise ValueError(
                f"scale_factor is {self.scale_factor}; give 1.0 without default_scale: a batch sets it"
            )
        return self


class LatentDiffusion(nn.Module):
    """A frozen autoencoder and a U-Net trained on its latents.

    The autoencoder never trains and never leaves eval mode, whatever ``train()`` is told. The scale factor is
    a buffer in every configuration: it belongs to the weights and must come back with them.
    """

    objectives = ("diffusion",)
    scale_factor: Tensor

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__()
        self.config = config
        self.unet = Unet(config.unet)
        self.autoencoder = Autoencoder(config.autoencoder).requires_grad_(False).eval()
        self.register_buffer("scale_factor", torch.tensor(config.scale_factor))

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.autoencoder.eval()
        return self

    def parameters_of(self, objective: str) -> list[nn.Parameter]:
        """What the optimizer of ``objective`` trains: nothing frozen, nothing without a gradient."""
        _check_objective(objective, self.objectives)
        idle = {id(parameter) for parameter in self.unet.idle_parameters()}
        return [p for p in self.unet.parameters() if p.requires_grad and id(p) not in idle]

    def training_step(
        self,
        batch: Mapping[str, Tensor],
        objective: str = "diffusion",
        step: int = 0,
        *,
        noise: Tensor | None = None,
        times: Tensor | None = None,
        posterior_noise: Tensor | None = None,
    ) -> Losses:
        """The loss of ``batch``; nothing is read back from the device.

        Args:
            batch: ``image`` (B, 1, H, W) and ``cond`` (B, 3 or 5, H, W), both in [-1, 1].
            step: applied updates so far; only at 0 may a batch set the scale factor.
            noise: what the latents are mixed with, (B, C, H/4, W/4). Default: drawn.
            times: diffusion times, (B,) in (0, 1]. Default: drawn from [eps, 1).
            posterior_noise: what the latents are drawn with, like ``noise``. Default: drawn.

        Raises:
            ValueError: another objective, a shape that does not fit, a time outside (0, 1].
        """
        _check_objective(objective, self.objectives)
        x0 = self.encode(batch["image"], posterior_noise, may_set_scale=self.training and step == 0)
        t = self.draw_times(x0) if times is None else checked_times(times, x0.shape[0])
        if noise is None:
            noise = torch.randn_like(x0, memory_format=torch.contiguous_format)
        drift_target = -x0
        drift, noise_guess = self.unet(diffuse(x0, noise, t), t, batch["cond"])
        drift_weight, noise_weight = time_weights(t, self.config.weighting, self.config.eps)
        drift_error, noise_error = self._error(drift, drift_target), self._error(noise_guess, noise)
        per_sample = drift_weight * drift_error + noise_weight * noise_error
        return Losses(
            total=per_sample.mean(),
            parts={"drift": drift_error.detach().mean(), "noise": noise_error.detach().mean()},
            per_sample=per_sample.detach(),
            times=t,
        )

    @torch.no_grad()
    def encode(self, image: Tensor, noise: Tensor | None = None, *, may_set_scale: bool = False) -> Tensor:
        """Scaled latents of maps, (B, C, H/4, W/4), drawn from their posterior."""
        z = self.autoencoder.encode(image).sample(noise)
        if self.config.scale_by_softsign:
            return nn.functional.softsign(z)
        if may_set_scale and not self.config.default_scale:
            # decided on the device: only a factor that is still exactly 1 is replaced
            unset = self.scale_factor == 1.0
            self.scale_factor.copy_(torch.where(unset, 1.0 / z.std(), self.scale_factor))
        return z * self.scale_factor

    @torch.no_grad()
    def decode(self, x0: Tensor) -> Tensor:
        """Maps in [0, 1] of scaled latents, (B, 1, 4h, 4w)."""
        if self.config.scale_by_softsign:
            x0 = x0.clamp(-0.987654321, 0.987654321)
            z = x0 / (1 - x0.abs())
        else:
            z = x0 / self.scale_factor
        return ((self.autoencoder.decode(z) + 1) / 2).clamp(0, 1)

    @torch.no_grad()
    def sample(
        self,
        cond: Tensor,
        steps: int,
        *,
        noise: Tensor | None = None,
        step_noise: Sequence[Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw one map for each condition: (B, 1, H, W) in [0, 1], at the price of ``steps + 1`` denoisings.

        No generator is seeded: two calls in a row draw different maps unless noise is handed in.

        Args:
            cond: (B, 3 or 5, H, W) in [-1, 1].
            noise: where to start, (B, C, H/4, W/4).
            step_noise: ``steps + 1`` tensors like ``noise``, renewed after each step.
        """
        return self.decode(
            self.sample_latent(cond, steps, noise=noise, step_noise=step_noise, generator=generator)
        )

    @torch.no_grad()
    def sample_latent(
        self,
        cond: Tensor,
        steps: int,
        *,
        noise: Tensor | None = None,
        step_noise: Sequence[Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The scaled latent that ``sample`` decodes."""
        was_training = self.training
        self.eval()
        try:
            pyramid = self.unet.encode_condition(cond)
            start = self._start(cond, generator) if noise is None else noise
            return sample_latent(
                lambda x, t: self.unet.denoise(x, t, pyramid),
                start,
                schedule(steps, self.config.eps),
                step_noise=step_noise,
                generator=generator,
            )
        finally:
            self.train(was_training)

    def draw_times(self, like: Tensor) -> Tensor:
        """Diffusion times in [eps, 1), (B,), one for each sample of ``like``."""
        eps = self.config.eps
        return torch.rand(like.shape[0], device=like.device, dtype=like.dtype) * (1.0 - eps) + eps

    def _start(self, cond: Tensor, generator: torch.Generator | None) -> Tensor:
        ratio = self.config.autoencoder.down_ratio
        shape = (cond.shape[0], self.config.unet.channels, cond.shape[2] // ratio, cond.shape[3] // ratio)
        if self.config.start == "normal":
            return draw_normal(cond.new_empty(shape), generator)
        device = generator.device if generator is not None else cond.device
        return (2 * torch.rand(shape, device=device, generator=generator) - 1).to(cond.device)

    def _error(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Mean error of each sample, (B,): squared, absolute, or the mean of both."""
        difference = predicted - target
        absolute = difference.abs().mean(dim=(1, 2, 3))
        first = difference.square().mean(dim=(1, 2, 3)) if self.config.loss_type == "l2" else absolute
        return (first + absolute) / 2 if self.config.use_l1 else first


def diffuse(x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """The latent at time ``t``, (B,): (1 - t) * x0 + sqrt(t) * noise.

    Raises:
        ValueError: noise of another shape than the latent.
    """
    if noise.shape != x0.shape:
        raise ValueError(f"noise has shape {tuple(noise.shape)}; give {tuple(x0.shape)}, as the latents")
    t = t[:, None, None, None]
    return x0 + (-x0) * t + t.sqrt() * noise


def time_weights(t: Tensor, weighting: Weighting, eps: float) -> tuple[Tensor, Tensor]:
    """Weights of the drift's and of the noise's error at the times ``t``, (B,) each."""
    if weighting == "published":
        return 2 * torch.exp(1 - t), torch.exp(t.sqrt())
    if weighting == "2024-12":
        return (t + 1) / t.sqrt(), (2 - t).sqrt() / (1 - t + eps).sqrt()
    return torch.ones_like(t), torch.ones_like(t)


def checked_times(times: Tensor, samples: int) -> Tensor:
    """``times`` as they are. Reads them, which waits for the device: only for times that come from outside.

    Raises:
        ValueError: a time outside (0, 1], or another number of times than samples.
    """
    if times.shape != (samples,):
        raise ValueError(f"times have shape {tuple(times.shape)}; give one for each sample: ({samples},)")
    inside = (times > 0) & (times <= 1)
    if not bool(inside.all()):
        found = float(times[~inside][0])
        raise ValueError(
            f"diffusion time {found} is outside (0, 1]; at 0 the embedding takes log(0), give eps or more"
        )
    return times


def _check_objective(objective: str, known: tuple[str, ...]) -> None:
    if objective not in known:
        raise ValueError(f"no objective {objective!r}; this model has {', '.join(known)}")
