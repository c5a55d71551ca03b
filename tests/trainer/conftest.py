"""A small training in a folder of its own, with real guards, checkpoints, record and link."""

import logging
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from shared.base import utc_now
from shared.commands import Asked, Command, Withdrawal
from shared.events import Event
from trainer.build import build_loop
from trainer.checkpoint import RingConfig, stage
from trainer.config import Config, GuardsConfig, RunConfig, TrainingConfig
from trainer.data.batches import LoadingConfig
from trainer.data.items import Item
from trainer.ema import EmaConfig
from trainer.guards import courier
from trainer.guards.spike import SpikeConfig
from trainer.link.client import Link
from trainer.loop import Loop, Observer
from trainer.objective import OptimizerConfig
from trainer.passes import Phase
from trainer.pipeline import run_stage
from trainer.recovery import RecoveryConfig
from trainer.stage import Stage

SIZE = 8


@dataclass
class Losses:
    total: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    per_sample: Tensor | None = None
    times: Tensor | None = None


class Denoiser(nn.Module):
    """Predicts the noise in a small picture: BatchNorm, a frozen layer, a constant buffer, a sampled time.

    Its largest weight, which the drill strikes, is not followed by a normalisation that would hide it.
    """

    objectives: tuple[str, ...] = ("denoiser",)

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale_factor", torch.tensor(0.9))
        self.encoder = nn.Conv2d(1, 2, 1).requires_grad_(False)
        self.inner = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.SiLU())
        self.head = nn.Conv2d(6, 2, 5, padding=2)

    def parameters_of(self, objective: str) -> list[nn.Parameter]:
        return [*self.inner.parameters(), *self.head.parameters()]

    def training_step(self, batch: Mapping[str, Tensor], objective: str, step: int) -> Losses:
        _, guess, noise, t = self._guess(batch)
        per_sample = (guess - noise).square().mean(dim=(1, 2, 3)) * (t + 1) / t.sqrt()
        parts = {"noise": per_sample.detach().mean()}
        return Losses(per_sample.mean(), parts, per_sample.detach(), t)

    def _guess(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        latent = self.encoder(batch["image"]) * self.scale_factor
        t = torch.rand(len(latent)) * 0.98 + 0.01
        noise = torch.randn_like(latent)
        plane = t[:, None, None, None]
        noisy = (1 - plane) * latent + plane.sqrt() * noise
        clock = plane.expand(-1, 1, SIZE, SIZE)
        return latent, self.head(self.inner(torch.cat([noisy, batch["cond"], clock], 1))), noise, t


class DenoiserWithCritic(Denoiser):
    """Two losses in turn. The denoiser's flows through the critic's weights too, which is careless."""

    objectives = ("denoiser", "critic")

    def __init__(self) -> None:
        super().__init__()
        convolution = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.SiLU())
        self.critic = nn.Sequential(convolution, nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 1))

    def parameters_of(self, objective: str) -> list[nn.Parameter]:
        return list(self.critic.parameters()) if objective == "critic" else super().parameters_of(objective)

    def training_step(self, batch: Mapping[str, Tensor], objective: str, step: int) -> Losses:
        if objective == "denoiser":
            losses = super().training_step(batch, objective, step)
            judged = self.critic(self._guess(batch)[1])
            return Losses(losses.total - 0.01 * judged.mean(), losses.parts, losses.per_sample, losses.times)
        latent, guess, _, _ = self._guess(batch)
        real, fake = self.critic(latent), self.critic(guess.detach())
        return Losses(nn.functional.softplus(-real).mean() + nn.functional.softplus(fake).mean())


class Pictures:
    """Thirty-six pictures in memory, each with a condition; what is random about an item is its sign."""

    def __init__(self, count: int = 36, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._images = torch.rand(count, 1, SIZE, SIZE, generator=generator) * 2 - 1
        self.fingerprint = f"pictures-{count}-{seed}"

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Item:
        return Item(image=self._images[index], cond=self._images[index].abs(), id=f"picture_{index}")

    def example(self, index: int, rng: np.random.Generator) -> Item:
        item = self[index]
        return Item(image=item["image"] * int(rng.choice([-1, 1])), cond=item["cond"], id=item["id"])


class Diary:
    """An observer that writes down every phase, and which samples each batch held."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.batches: list[tuple[str, ...]] = []
        self.loop: Loop | None = None

    def __call__(self, phase: Phase, loop: Loop) -> None:
        self.loop = loop
        self.phases.append(str(phase))
        if phase is Phase.REPORT:
            self.batches.append(tuple(loop.batch["ids"]))


class Killed(BaseException):
    """Stands for a SIGKILL: nothing in the trainer may catch it."""


class Laboratory:
    """Builds trainings. Every process-wide random state is disturbed first, as in a process that is new."""

    Killed, Diary = Killed, Diary
    Denoiser, DenoiserWithCritic, Pictures, Losses = Denoiser, DenoiserWithCritic, Pictures, Losses

    def __init__(self, root: Path) -> None:
        self.root = root
        self.num_built = 0
        self.loops: list[Loop] = []

    def config(self, folder: str = "run", **sections: Any) -> Config:
        """Snapshots every 10 steps, checkpoints every 25, a spike guard that has learned after 16 steps."""
        recovery = RecoveryConfig(snapshot_every=10, checkpoint_every=25, ring=RingConfig(promote_after=10))
        standard = {
            "run": RunConfig(name="small", folder=self.root / folder),
            "recovery": recovery,
            "guards": GuardsConfig(spike=SpikeConfig(warm_up=16)),
        }
        return Config(**{**standard, **sections})

    def without_replay(self, folder: str = "run", **changes: Any) -> Config:
        """A refused step stays refused, as with a fault that a replay repeats."""
        config = self.config(folder)
        recovery = config.recovery.model_copy(update={"replay": False, **changes})
        return config.model_copy(update={"recovery": recovery})

    def stage(
        self,
        config: Config,
        *,
        steps: int = 60,
        model: type[nn.Module] = Denoiser,
        source: Any = None,
        seed: int | None = None,
        **training: Any,
    ) -> Stage:
        """What is trained; its weights start from ``seed``, by default from another one each time."""
        self._disturb()
        torch.manual_seed(self.num_built if seed is None else seed)
        standard = {
            "loading": LoadingConfig(batch_size=4),
            "optimizer": OptimizerConfig(lr=1e-3),
            "ema": EmaConfig(decay=0.9, start_after=12, every=4),
        }
        sections = TrainingConfig(steps=steps, **{**standard, **training})
        settings = {"training": sections.model_dump(mode="json")}
        return Stage("small", config.run.folder, model(), sections, source or Pictures(), settings)

    def loop(
        self, folder: str = "run", *, observers: Sequence[Observer] = (), seed: int | None = 0, **kind: Any
    ) -> Loop:
        """A loop as ``run`` makes it and ``Loop.run`` begins: ``step()`` comes next."""
        config = kind.pop("config", None) or self.config(folder)
        ranks = kind.pop("ranks", None)
        loop = build_loop(config, self.stage(config, seed=seed, **kind), observers, ranks)
        self.loops.append(loop)
        checkpoint = loop.recovery.resume()
        loop.reporter.attempt(loop.state.step, "resume" if checkpoint else "start", checkpoint)
        loop.begin()
        return loop

    def steps(self, loop: Loop, to_step: int) -> None:
        """Train until ``to_step`` updates have been applied."""
        while loop.state.step < to_step:
            loop.step()

    def run(
        self, folder: str = "run", *, observers: Sequence[Observer] = (), seed: int | None = 0, **kind: Any
    ) -> Loop:
        """What a program does: resume if there is something to resume, train to the end, close."""
        config = kind.pop("config", None) or self.config(folder)
        ranks = kind.pop("ranks", None)
        return run_stage(config, self.stage(config, seed=seed, **kind), observers, ranks)

    def kill_at(self, step: int) -> Observer:
        """An observer that ends the process, as it were, when ``step`` begins."""

        def kill(phase: Phase, loop: Loop) -> None:
            if phase is Phase.FETCH and loop.state.step == step:
                raise Killed

        return kill

    def wait_for_disk(self, phase: Phase, loop: Loop) -> None:
        """An observer that makes a test independent of how fast checkpoints are written."""
        if phase is Phase.FETCH:
            loop.recovery._writer.drain()

    def _disturb(self) -> None:
        self.num_built += 1
        torch.manual_seed(1_000 + self.num_built)
        np.random.seed(self.num_built)
        torch.set_num_threads(1)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Laboratory]:
    """Where small trainings are made; those that were stepped by hand are closed at the end."""
    laboratory = Laboratory(tmp_path)
    yield laboratory
    for loop in laboratory.loops:
        loop.recovery.close()


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """All events that leave the trainer, in order."""
    told: list[Event] = []
    monkeypatch.setattr(Link, "record_event", lambda link, attempt, event, urgent=True: told.append(event))
    return told


State = dict[str, Any]


def _everything(loop: Loop) -> State:
    return {"parts": stage(loop.state.parts()), "facts": loop.state.facts()}


def _differences(one: State, other: State) -> list[str]:
    """Names of tensors that are not bit-identical, and of facts that are not equal."""
    ones, others = one["parts"], other["parts"]
    assert {part: set(tensors) for part, tensors in ones.items()} == {
        part: set(tensors) for part, tensors in others.items()
    }
    tensors = [
        f"{part}/{name}"
        for part in ones
        for name in ones[part]
        if ones[part][name].numpy().tobytes() != others[part][name].numpy().tobytes()
    ]
    return tensors + [name for name in one["facts"] if one["facts"][name] != other["facts"][name]]


@pytest.fixture
def everything() -> Callable[[Loop], State]:
    """A copy of all that a loop's state consists of."""
    return _everything


@pytest.fixture
def differences() -> Callable[[State, State], list[str]]:
    """What differs between two such copies, to the bit."""
    return _differences


class _Underway:
    """An event of a device that is always busy: nothing has come until somebody waits for it."""

    def query(self) -> bool:
        return False

    def synchronize(self) -> None:
        pass


@pytest.fixture
def late_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: the host hears of a step's numbers two steps later, or when it waits for them."""
    monkeypatch.setattr(courier, "to_host", lambda numbers: (numbers.clone(), _Underway()))


@pytest.fixture
def order() -> Callable[..., Command]:
    """A command to the first attempt, valid for a minute, unless said otherwise."""

    def make(kind: str, id: str = "c1", **changes: Any) -> Command:
        now = utc_now()
        usual = {"reason": "a test", "issued_by": "somebody", "issued_at": now, "attempt": 1}
        return Command(
            **{"id": id, "kind": kind, "expires_at": now + timedelta(minutes=1), **usual, **changes}
        )

    return make


@pytest.fixture
def deliver() -> Callable[..., None]:
    """Hand commands to a loop with its next step, in place of the network."""

    def hand_over(loop: Loop, *commands: Command, withdrawn: Sequence[str] = ()) -> None:
        waiting: list[Asked] = [*(Withdrawal(id=id_) for id_ in withdrawn), *commands]
        loop.reporter.link.commands = lambda: [waiting.pop(0) for _ in range(len(waiting))]

    return hand_over


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """A command sets up logging and signals for its process; here they are put back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    signals = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    root.handlers[:], root.level = handlers, level
    for number, handler in signals.items():
        signal.signal(number, handler)
