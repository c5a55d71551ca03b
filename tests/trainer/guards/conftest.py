"""A small real training with guards, and counters of host reads."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.guards.base import StepView, Vitals, Watched
from trainer.guards.invariants import Invariants
from trainer.guards.nonfinite import Nonfinite
from trainer.guards.panel import Judgement, Panel
from trainer.guards.refusal import ema_update, running_statistics
from trainer.guards.spike import Spike
from trainer.guards.vitals import Meter


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@dataclass
class Losses:
    total: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    per_sample: Tensor | None = None
    times: Tensor | None = None


class Denoiser(nn.Module):
    """Predicts the noise in a small vector: BatchNorm, a frozen layer, a constant buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale_factor", torch.tensor(0.9))
        self.encoder = nn.Linear(6, 8)
        self.encoder.requires_grad_(False)
        self.inner = nn.Sequential(nn.Linear(9, 32), nn.BatchNorm1d(32), nn.SiLU(), nn.Linear(32, 8))

    def forward(self, x: Tensor, noise: Tensor, t: Tensor) -> Losses:
        root = t.sqrt()[:, None]
        latent = self.encoder(x) * self.scale_factor
        guess = self.inner(torch.cat([(1 - t).sqrt()[:, None] * latent + root * noise, t[:, None]], 1))
        per_sample = (guess - noise).square().mean(1) * (t + 1) / t.sqrt()
        return Losses(per_sample.mean(), {"simple": per_sample.detach().mean()}, per_sample.detach(), t)


Break = Callable[["Training"], None]


class Training:
    """A loop with all guards; ``break_gradients`` is called once between backward and measure."""

    def __init__(self, seed: int = 0, scan_every: int = 10, lr: float = 1e-3) -> None:
        torch.manual_seed(seed)
        self.draw = torch.Generator().manual_seed(seed)
        self.model = Denoiser()
        self.parameters = list(self.model.inner.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=lr, fused=True)
        self.spike = Spike("diffusion")
        self.meter = Meter(
            "diffusion",
            self.optimizer,
            self.parameters,
            max_norm=1.0,
            buffers=list(running_statistics(self.model).values()),
            limits=self.spike.limits,
        )
        self.ema = {name: p.detach().clone() for name, p in self.model.inner.named_parameters()}
        applied = {"diffusion": self.meter.applied}
        self.watched = Watched(self.model, {"diffusion": self.optimizer}, self.ema, applied)
        self.invariants = Invariants()
        self.panel = Panel([Nonfinite(), self.spike, self.invariants])
        self.panel.rebase(self.watched)
        self.lr, self.sample_ids = lr, tuple(f"map_{i}" for i in range(8))
        self.break_batch: Callable[[Tensor], Tensor] | None = None
        self.break_gradients: Break | None = None

    def update(self) -> None:
        """Forward to settle."""
        x, noise = (torch.randn(8, n, generator=self.draw) for n in (6, 8))
        t = torch.rand(8, generator=self.draw).clamp(1e-3, 1)
        if self.break_batch is not None:
            x, self.break_batch = self.break_batch(x), None
        self.meter.protect()
        losses = self.model(x, noise, t)
        losses.total.backward()
        if self.break_gradients is not None:
            self.break_gradients(self)
            self.break_gradients = None
        refused = self.meter.measure(losses)
        self.optimizer.step()
        ema_update(list(self.ema.values()), [p.detach() for p in self.parameters], 0.01, refused)
        self.meter.settle(self.lr)
        self.optimizer.zero_grad(set_to_none=True)

    def view(self, vitals: Vitals, alarm: bool = False) -> StepView:
        return StepView(vitals, self.sample_ids, self.watched, alarm)

    def step(self) -> Judgement:
        self.update()
        (vitals,) = self.meter.arrived()
        return self.panel.judge(self.view(vitals))


@pytest.fixture
def new_training() -> Callable[..., Training]:
    return Training


@pytest.fixture
def losses() -> type[Losses]:
    return Losses


@pytest.fixture
def vitals() -> Callable[..., Vitals]:
    """Builds the vitals of an unremarkable step; give what is to differ."""

    def build(**changes: Any) -> Vitals:
        usual: dict[str, Any] = {
            "objective": "diffusion",
            "iteration": 7,
            "step": 7,
            "loss": 1.0,
            "parts": {},
            "grad_norm": 0.5,
            "clip": 1.0,
            "lr": 1e-3,
            "refused": False,
            "reason": None,
        }
        return Vitals(**(usual | changes))

    return build


class DeviceReads(TorchDispatchMode):
    """Counts operations that make a host wait for a device. On a CPU they are dispatched all the same."""

    READS = ("_local_scalar_dense", "is_nonzero", "item", "nonzero", "masked_select", "unique", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(read == func.overloadpacket.__name__ for read in self.READS):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


class HostReads(TorchFunctionMode):
    """Counts the calls that bring a tensor's values to Python: on a GPU each would wait."""

    READS = ("item", "tolist", "cpu", "__bool__", "__float__", "__int__", "__index__", "__array__")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in self.READS:
            self.seen.append(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def device_reads() -> DeviceReads:
    return DeviceReads()


@pytest.fixture
def host_reads() -> HostReads:
    return HostReads()
