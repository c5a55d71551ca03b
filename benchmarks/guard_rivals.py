"""Training steps as others guard them: the method of each, written down anew around the same plain loop.

Source of each method is named in its docstring; where a package is needed it is asked for and left out if it
is not there. ``benchmarks/guard_overhead.py`` runs them beside ours.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from trainer.radiodiff.diffusion import LatentDiffusion

Batch = dict[str, Tensor]
Step = Callable[[Batch], None]
Parameters = list[nn.Parameter]
LR = 1e-4


def nothing(_: object) -> None:
    """For a loop that does not look."""


def clip(parameters: Parameters) -> None:
    """Clip to a global norm of 1."""
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)


def clip_or_raise(parameters: Parameters) -> None:
    """``clip_grad_norm_(error_if_nonfinite=True)``: one host read."""
    torch.nn.utils.clip_grad_norm_(parameters, 1.0, error_if_nonfinite=True)


def look_and_clip(parameters: Parameters) -> None:
    """NaN and infinity in every gradient with two host reads each, as in the first report."""
    for parameter in parameters:
        if parameter.grad is not None:
            _ = bool(torch.isnan(parameter.grad).any()), bool(torch.isinf(parameter.grad).any())
    clip(parameters)


class ZScoreClip:
    """Clip a norm whose z-score is above 2.5, mean and variance running: ZClip (arXiv 2504.02507)."""

    def __init__(self, alpha: float = 0.97, most: float = 2.5, warm_up: int = 25) -> None:
        self._alpha, self._most, self._warm_up = alpha, most, warm_up
        self._first: list[float] = []
        self._mean = self._variance = 0.0

    def __call__(self, parameters: Parameters) -> None:
        """One host read, to take the statistics on."""
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(grads))
        if len(self._first) < self._warm_up:
            self._first.append(norm)
            self._mean = sum(self._first) / len(self._first)
            self._variance = sum((one - self._mean) ** 2 for one in self._first) / len(self._first)
            return
        z = (norm - self._mean) / (math.sqrt(self._variance) + 1e-6)
        if z > self._most:
            norm = self._mean + self._most**2 / z * math.sqrt(self._variance)
            torch.nn.utils.clip_grads_with_norm_(parameters, norm, torch.tensor(norm))
        self._mean = self._alpha * self._mean + (1 - self._alpha) * norm
        self._variance = self._alpha * self._variance + (1 - self._alpha) * (norm - self._mean) ** 2


def stop_at_nan(loss: Tensor) -> None:
    """Composer's NaNMonitor: one host read of the loss, and an end of the training."""
    if torch.isnan(loss).any():
        raise RuntimeError("the loss is NaN")


class LossFilter:
    """What transformers does with a loss that is not finite: it logs another, and goes on. Two host reads."""

    def __init__(self) -> None:
        self.logged = torch.zeros(())

    def __call__(self, loss: Tensor) -> None:
        """Add it to what is logged, unless it is NaN or infinite."""
        detached = loss.detach()
        if not (torch.isnan(detached) or torch.isinf(detached)):
            self.logged = self.logged.to(detached.device) + detached


def plain_step(
    model: LatentDiffusion,
    after_backward: Callable[[Parameters], None] = clip,
    after_forward: Callable[[Tensor], None] = nothing,
    around: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Step:
    """A loop as everybody writes it; ``after_backward`` gets the parameters, their gradients filled."""
    parameters = model.parameters_of("diffusion")
    optimizer = AdamW(parameters, lr=LR, fused=True)

    def step(batch: Batch) -> None:
        with around():
            loss = model.training_step(batch).total
            after_forward(loss)
            loss.backward()
        after_backward(parameters)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def scaled_step(model: LatentDiffusion) -> Step:
    """torch's GradScaler with clipping; it calls ``step`` or not, so the optimizer need not be fused."""
    parameters = model.parameters_of("diffusion")
    optimizer = AdamW(parameters, lr=LR)
    scaler = torch.amp.GradScaler(next(model.parameters()).device.type, init_scale=1024.0)

    def step(batch: Batch) -> None:
        scaler.scale(model.training_step(batch).total).backward()
        scaler.unscale_(optimizer)
        clip(parameters)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

    return step


RIVALS: dict[str, Callable[[LatentDiffusion], Step]] = {
    "bare (no clipping)": lambda model: plain_step(model, nothing),
    "clipped": plain_step,
    "error_if_nonfinite": lambda model: plain_step(model, clip_or_raise),
    "isnan of every gradient": lambda model: plain_step(model, look_and_clip),
    "NaN of the loss stops": lambda model: plain_step(model, after_forward=stop_at_nan),
    "loss filter": lambda model: plain_step(model, after_forward=LossFilter()),
    "z-score clip": lambda model: plain_step(model, ZScoreClip()),
    "GradScaler, not fused": scaled_step,
    "detect_anomaly": lambda model: plain_step(model, around=torch.autograd.detect_anomaly),
}
"""Every loop that is compared, by name."""
