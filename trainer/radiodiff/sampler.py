"""The sampler: from noise to a latent in n steps of equal length, the last one cut in two."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Predict = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Noisy latent (B, C, h, w) and time (B,) to drift and noise."""


@dataclass(frozen=True, slots=True)
class SamplingStep:
    """One step from time ``t`` back to ``t - length``.

    Attributes:
        root: square root of ``t``.
        noise_share: length / root, the factor on the predicted noise.
        renewal: sqrt(length * (t - length) / t), the factor on fresh noise; 0 in the last step.
    """

    t: float
    length: float
    root: float
    noise_share: float
    renewal: float

    @classmethod
    def between(cls, t: Tensor, length: Tensor) -> "SamplingStep":
        """From two float32 scalars on the CPU: so the factors are rounded as upstream rounds them."""
        root = t.sqrt()
        renewal = (length * (t - length) / t).sqrt()
        return cls(float(t), float(length), float(root), float(length / root), float(renewal))


def schedule(steps: int, eps: float) -> list[SamplingStep]:
    """The n + 1 steps for n = ``steps``: from time 1 on by 1/n, but the last of these stops at ``eps``.

    Raises:
        ValueError: fewer than one step, or so many that one is not longer than ``eps``.
    """
    if steps < 1 or 1 / steps <= eps:
        raise ValueError(f"{steps} sampling steps; give 1 or more, and fewer than 1/eps = {1 / eps:.0f}")
    t, plan = torch.tensor(1.0), []
    for length in [1 / steps] * (steps - 1) + [1 / steps - eps]:
        plan.append(SamplingStep.between(t, torch.tensor(length)))
        t = t - torch.tensor(length)
    return [*plan, SamplingStep.between(t, t)]


def pred_x0(x_t: Tensor, drift: Tensor, noise: Tensor, step: SamplingStep) -> Tensor:
    """Latent at time 0, from the two predicted parts: x_t - t * drift - sqrt(t) * noise."""
    return x_t - drift * step.t - step.root * noise


def sample_latent(
    predict: Predict,
    start: Tensor,
    plan: Sequence[SamplingStep],
    *,
    step_noise: Sequence[Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Follow ``plan`` from ``start``, (B, C, h, w), to a latent at time 0.

    Args:
        step_noise: what each step renews, one tensor like ``start`` for each; else drawn from ``generator``,
            also in the last step, where its factor is 0: so upstream's sequence of draws can be repeated.

    Raises:
        ValueError: step noise of another number or shape.
    """
    if step_noise is not None and [noise.shape for noise in step_noise] != [start.shape] * len(plan):
        raise ValueError(f"step_noise does not fit; give {len(plan)} tensors of shape {tuple(start.shape)}")
    x = start
    for index, step in enumerate(plan):
        drift, noise = predict(x, torch.full(x.shape[:1], step.t, dtype=x.dtype, device=x.device))
        drift = -pred_x0(x, drift, noise, step)
        fresh = draw_normal(x, generator) if step_noise is None else step_noise[index]
        x = x - drift * step.length - step.noise_share * noise + step.renewal * fresh
    return x


def draw_normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal numbers like ``like`` and on its device; the generator may live elsewhere."""
    device = like.device if generator is None else generator.device
    return torch.randn(like.shape, dtype=like.dtype, device=device, generator=generator).to(like.device)
