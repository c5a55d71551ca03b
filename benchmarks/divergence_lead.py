"""How many steps before a loss of three times its usual the guards say that it is coming.

    python benchmarks/divergence_lead.py [--runs 10] [--healthy 10000] [--seed 0] [--json]

A small denoiser of the embedded radio maps (four convolutions, normalised; 8 x 8, batch 8) trains for 800
healthy steps; then one thing gets worse and worse, each run with a pace and a seed of its own:

    lr      the learning rate, tenfold in 100 to 300 steps
    beta2   1 - beta2 falls tenfold in as many, so that second moments go stale
    data    the maps' contrast, tenfold in as many

Nothing is refused but what is not finite and nothing is lowered: what counts is how the run would have gone.
A run has diverged at the first step at which the median of the last five losses is three times the healthy
one, or not finite. The first prediction after the ramp began counts; one before it is a false warning, and so
is each of ``--healthy`` steps more, in runs of 2,500 with a warm-up or a falling rate.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.config import load
from trainer.data.radiomaps import RadioMaps
from trainer.guards.base import StepView, Watched
from trainer.guards.foresight import Foresight
from trainer.guards.vitals import Meter

DRILL = Path(__file__).parents[1] / "deploy/configs/drill.toml"
RAMP_AT, MOST, HEALTHY_RUN, SIDE = 800, 1600, 2500, 8
LR, BETA2 = 2e-3, 0.999


class Denoiser(nn.Module):
    """Predicts the noise in a radio map, given its condition and the time."""

    def __init__(self, channels: int, width: int = 16) -> None:
        super().__init__()
        self.inward = nn.Conv2d(channels, width, 3, padding=1)
        self.middle = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.norms = nn.ModuleList(nn.GroupNorm(4, width) for _ in range(3))
        self.outward = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, noisy: Tensor, cond: Tensor, t: Tensor) -> Tensor:
        h = self.inward(torch.cat([noisy, cond, t.expand_as(noisy)], 1))
        for norm, layer in zip(self.norms, self.middle, strict=False):
            h = h + layer(functional.silu(norm(h)))
        return self.outward(functional.silu(self.norms[-1](h)))


@dataclass(frozen=True)
class Ramp:
    """What gets worse after ``RAMP_AT``; ``pace`` is the steps in which it does so tenfold."""

    kind: str
    pace: int = 0

    def factor(self, step: int) -> float:
        """1 until the ramp begins."""
        return 10 ** (max(0, step - RAMP_AT) / self.pace) if self.pace else 1.0

    def rate(self, step: int) -> float:
        """The learning rate at ``step``."""
        if self.kind == "warm-up":
            return LR * min(1.0, (step + 1) / 500)
        if self.kind == "falling":
            return LR * max(1 - step / HEALTHY_RUN, 0.01)
        return LR * (self.factor(step) if self.kind == "lr" else 1.0)


class Training:
    """The denoiser with a meter and the guard that predicts."""

    def __init__(self, ramp: Ramp, maps: tuple[Tensor, Tensor], seed: int) -> None:
        torch.manual_seed(seed)
        self.ramp, self._maps = ramp, maps
        self.model = Denoiser(maps[0].shape[1] + maps[1].shape[1] + 1)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LR, fused=True)
        self._meter = Meter("denoiser", self.optimizer, self.model.parameters(), max_norm=1.0)
        self._guard = Foresight("denoiser")
        self._watched = Watched(self.model, {"denoiser": self.optimizer})

    def step(self, number: int) -> tuple[float, str | None]:
        """One step: its loss, and the message of a prediction."""
        rate, factor = self.ramp.rate(number), self.ramp.factor(number)
        beta2 = 1 - (1 - BETA2) / factor if self.ramp.kind == "beta2" else BETA2
        for group in self.optimizer.param_groups:
            group["lr"], group["betas"] = rate, (0.9, beta2)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss(factor if self.ramp.kind == "data" else 1.0)
        loss.backward()
        self._meter.measure(SimpleNamespace(total=loss.detach(), parts={}, per_sample=None, times=None))
        self._meter.step()
        self._meter.settle(rate)
        (vitals,) = self._meter.arrived()
        told = self._guard.inspect(StepView(vitals, (), self._watched))
        return vitals.loss, told.message if told else None

    def _loss(self, contrast: float) -> Tensor:
        chosen = torch.randint(len(self._maps[0]), (8,))
        image, cond = (one[chosen] for one in self._maps)
        t = torch.rand(8, 1, 1, 1) * 0.96 + 0.02
        noise = torch.randn_like(image)
        noisy = (1 - t).sqrt() * image * contrast + t.sqrt() * noise
        return functional.mse_loss(self.model(noisy, cond, t), noise)


@dataclass(frozen=True)
class Outcome:
    """A ramp: steps after its beginning until it was told and until it diverged, None if never."""

    kind: str
    pace: int
    told: int | None
    diverged: int | None
    false: int
    message: str | None

    @property
    def lead(self) -> int | None:
        """Steps of warning; None for a run that did not diverge."""
        if self.diverged is None:
            return None
        return 0 if self.told is None else max(0, self.diverged - self.told)


def ramped(ramp: Ramp, maps: tuple[Tensor, Tensor], seed: int) -> Outcome:
    """Train until the loss has diverged, or for ``MOST`` steps."""
    training, losses, recent = Training(ramp, maps, seed), list[float](), deque[float](maxlen=5)
    told, message, false = None, None, 0
    for number in range(MOST):
        loss, said = training.step(number)
        losses.append(loss)
        recent.append(loss if math.isfinite(loss) else math.inf)
        if said and number < RAMP_AT:
            false += 1
        elif said and told is None:
            told, message = number - RAMP_AT, said
        usual = statistics.median(losses[RAMP_AT - 200 : RAMP_AT]) if number >= RAMP_AT else math.inf
        if not statistics.median(recent) <= 3 * usual:
            return Outcome(ramp.kind, ramp.pace, told, number - RAMP_AT, false, message)
    return Outcome(ramp.kind, ramp.pace, told, None, false, message)


def healthy(maps: tuple[Tensor, Tensor], steps: int, seed: int) -> list[str]:
    """All predictions of healthy runs: false ones."""
    told: list[str] = []
    for run in range(-(-steps // HEALTHY_RUN)):
        training = Training(Ramp(("steady", "warm-up", "falling")[run % 3]), maps, seed + run)
        said = (training.step(number)[1] for number in range(min(HEALTHY_RUN, steps - run * HEALTHY_RUN)))
        told += [one for one in said if one]
    return told


def radio_maps() -> tuple[Tensor, Tensor]:
    """Maps and conditions of the embedded data set, small: (N, 1, 8, 8) and (N, C, 8, 8)."""
    source = RadioMaps(load(DRILL).data, "train")
    items = [source[index] for index in range(len(source))]
    image, cond = (torch.stack([torch.as_tensor(item[key]) for item in items]) for key in ("image", "cond"))
    return functional.adaptive_avg_pool2d(image, SIDE), functional.adaptive_avg_pool2d(cond, SIDE)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=10, help="of each kind of ramp")
    parser.add_argument("--healthy", type=int, default=10_000, help="steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    started, maps = time.process_time(), radio_maps()
    outcomes = [
        ramped(Ramp(kind, 100 + 200 * run // max(1, arguments.runs - 1)), maps, arguments.seed + run)
        for kind in ("lr", "beta2", "data")
        for run in range(arguments.runs)
    ]
    false = healthy(maps, arguments.healthy, arguments.seed + 1000)
    seconds = round(time.process_time() - started, 1)
    if arguments.json:
        runs = [{**asdict(one), "lead": one.lead} for one in outcomes]
        sys.stdout.write(json.dumps({"runs": runs, "false": false, "seconds": seconds}) + "\n")
        return
    write(outcomes, false, arguments.healthy, seconds)


def write(outcomes: list[Outcome], false: list[str], steps: int, seconds: float) -> None:
    """The table, for people."""
    sys.stdout.write(
        "| ramp | diverged | warned 20 steps before | steps of warning, each run |\n|---|---|---|---|\n"
    )
    for kind in dict.fromkeys(one.kind for one in outcomes):
        leads = [one.lead for one in outcomes if one.kind == kind]
        known = [lead for lead in leads if lead is not None]
        each = ", ".join("did not diverge" if lead is None else str(lead) for lead in leads)
        early = sum(lead >= 20 for lead in known)
        sys.stdout.write(f"| {kind} | {len(known)} of {len(leads)} | {early} of {len(known)} | {each} |\n")
    before = sum(one.false for one in outcomes)
    sys.stdout.write(
        f"\n{before} false warnings in {len(outcomes) * RAMP_AT} steps before the ramps, "
        f"{len(false)} in {steps} healthy steps; {seconds} s of CPU time\n"
    )
    for message in false:
        sys.stdout.write(f"  {message}\n")


if __name__ == "__main__":
    main()
