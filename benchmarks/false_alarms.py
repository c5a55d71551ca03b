"""How often the spike and drift guards speak on healthy steps, and how surely they refuse spikes.

    python benchmarks/false_alarms.py [--steps 100000] [--seed 0] [--json]

The steps are generated, in runs of at most 10,000: samples' losses scatter log-normally (deviation 0.2)
around a profile of the diffusion time that sinks as the model learns, the gradient norm (0.15 at batch 8,
more for fewer samples) around the rms of its batch's losses: a model of what was measured on a small U-Net,
with tails no heavier than log-normal. They pass through the real guards, and are refused by the real table of
ceilings in float32, as the device does it. ``--steps`` is the sum over all healthy streams. A spike
multiplies the loss alone, or the norm alone, every 17th step.
"""

import argparse
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import nn

from shared.events import Severity
from trainer.guards.base import Reason, StepView, Verdict, Vitals, Watched
from trainer.guards.drift import Drift
from trainer.guards.loss_scale import LossScale
from trainer.guards.panel import Panel
from trainer.guards.spike import Spike

RUN = 10_000  # steps of one run at most: its start is where the guards know least
SPIKES_FROM, SPIKE_EVERY = 800, 17  # before that the loss sinks fast, and more is allowed
RUNS = 4  # of each power, with seeds of their own
LARGEST = 1.0e4  # a loss scale times gradient norm above this overflows float16 somewhere


@dataclass(frozen=True)
class Stream:
    """One kind of healthy training."""

    name: str
    weighted: bool = True
    batch: int = 8
    warm_up: int = 0
    restart_every: int = 0
    fp16: bool = False

    def level(self, step: int) -> float:
        """What the model has not learned yet: a fast descent, then a slow one that never quite ends."""
        learned = step if step >= self.warm_up else step * step / (2 * self.warm_up)
        level = 2 * math.exp(-learned / 150) + 0.2 * (1 + learned / 1000) ** -0.3
        if self.restart_every and step >= self.restart_every:
            level *= 1 + 0.15 * math.exp(-(step % self.restart_every) / 200)
        return level


STREAMS = (
    Stream("plain", weighted=False),
    Stream("plain, batch 4", weighted=False, batch=4),
    Stream("weighted (t+1)/sqrt(t)"),
    Stream("weighted, batch 4", batch=4),
    Stream("weighted, LR warm-up of 2,000", warm_up=2000),
    Stream("weighted, restart every 2,500", restart_every=2500),
    Stream("plain, fp16 with overflows", weighted=False, fp16=True),
)


@dataclass
class Count:
    """What the guards did in one stream."""

    steps: int = 0
    skips: int = 0
    in_a_row: int = 0
    rollbacks: int = 0
    spike_warnings: int = 0
    drift_warnings: Counter[str] = field(default_factory=Counter)
    overflows: int = 0


class Guarded:
    """One run of a stream through its guards: what the device refuses, and what the panel says."""

    def __init__(self, stream: Stream, seed: int) -> None:
        self.stream, self._rng, self._step = stream, np.random.default_rng(seed), 0
        self._scale = LossScale() if stream.fp16 else None
        self._watched = Watched(nn.Module(), {})
        self._build()

    def step(self, loss_factor: float = 1.0, norm_factor: float = 1.0) -> tuple[Vitals, Verdict, list[str]]:
        """One step, judged: its vitals, the verdict, and a word for each finding above ``info``."""
        if self.stream.restart_every and self._step and self._step % self.stream.restart_every == 0:
            self._resume()
        vitals = self._measure(loss_factor, norm_factor)
        self._step += 1
        judgement = self._panel.judge(StepView(vitals, (), self._watched))
        told = [one for one in judgement.findings if one.severity > Severity.INFO]
        return vitals, judgement.verdict, [str(one.reading.get("kind", one.guard)) for one in told]

    def _build(self) -> None:
        self._spike = Spike("diffusion")
        self._panel = Panel((self._spike, Drift("diffusion")))

    def _resume(self) -> None:
        """As after a new start of the process: new guards, with the memory of the old ones."""
        memory = json.dumps(self._panel.state_dict(), allow_nan=False)
        self._build()
        self._panel.load_state_dict(json.loads(memory))

    def _measure(self, loss_factor: float, norm_factor: float) -> Vitals:
        stream, rng = self.stream, self._rng
        t = np.clip(rng.random(stream.batch), 1e-3, 1).astype(np.float32)
        usual = stream.level(self._step) * (0.3 + t) * ((t + 1) / np.sqrt(t) if stream.weighted else 1.0)
        losses = (usual * rng.lognormal(0, 0.2, stream.batch)).astype(np.float32)
        noise = rng.lognormal(0, 0.15 * math.sqrt(8 / stream.batch))
        norm = 2 * math.sqrt(float(np.square(losses).mean())) * noise * norm_factor
        losses *= np.float32(loss_factor)
        scale = 1.0 if self._scale is None else float(self._scale.scale)
        if self._scale is not None and scale * norm > LARGEST:
            norm = math.inf
        measured = torch.tensor([float(losses.mean()), norm])
        fits = bool((measured <= self._spike.limits.ceilings(torch.from_numpy(t))[:2]).all())
        reason: Reason = "spike" if math.isfinite(norm) else "overflow"
        if self._scale is not None:
            self._scale.update(self._scale.is_overflow(*measured), measured[1])
        return Vitals(
            objective="diffusion",
            iteration=self._step,
            step=self._step,
            loss=float(measured[0]),
            parts={},
            grad_norm=float(measured[1]),
            clip=1.0,
            lr=1e-3,
            refused=not fits or not math.isfinite(norm),
            reason=None if fits and math.isfinite(norm) else reason,
            sample_losses=tuple(losses.tolist()),
            times=tuple(t.tolist()),
            loss_scale=scale,
        )


def healthy(stream: Stream, steps: int, seed: int) -> Count:
    """What the guards do in ``steps`` healthy steps: all of it is false, but the overflows."""
    count, row = Count(), 0
    for first in range(0, steps, RUN):
        guarded = Guarded(stream, seed + first)
        for _ in range(min(RUN, steps - first)):
            vitals, verdict, told = guarded.step()
            count.steps += 1
            count.overflows += vitals.reason == "overflow"
            count.skips += vitals.reason == "spike"
            row = row + 1 if vitals.reason == "spike" else 0
            count.in_a_row = max(count.in_a_row, row)
            count.rollbacks += verdict >= Verdict.ROLL_BACK
            count.spike_warnings += "spike" in told and vitals.reason is None
            count.drift_warnings.update(kind for kind in told if kind != "spike")
    return count


def power(stream: Stream, steps: int, seed: int, **factors: float) -> tuple[int, int]:
    """Spikes refused on the device in their own step, and spikes tried."""
    tried = refused = 0
    for run in range(RUNS):
        guarded = Guarded(stream, seed + run)
        for step in range(steps):
            is_spike = step >= SPIKES_FROM and step % SPIKE_EVERY == 0
            vitals, _, _ = guarded.step(**factors if is_spike else {})
            tried += is_spike
            refused += is_spike and vitals.reason == "spike"
    return refused, tried


def powers(steps: int, seed: int) -> Iterator[tuple[str, int, int]]:
    """The same for each kind of spike, weighting and batch size."""
    spikes = {"x3 loss": {"loss_factor": 3.0}, "x10 norm": {"norm_factor": 10.0}}
    for weighted in (False, True):
        for batch in (8, 16):
            stream = Stream("weighted" if weighted else "plain", weighted, batch)
            for name, factors in spikes.items():
                yield f"{name}, {stream.name}, batch {batch}", *power(stream, steps, seed, **factors)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=100_000, help="healthy steps of all streams together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    started, each = time.perf_counter(), -(-arguments.steps // len(STREAMS))
    counts = {one.name: healthy(one, each, arguments.seed + 1000 * n) for n, one in enumerate(STREAMS)}
    found = list(powers(5000, arguments.seed))
    seconds = time.perf_counter() - started
    if arguments.json:
        report = {"healthy": {name: asdict(one) for name, one in counts.items()}, "power": found}
        sys.stdout.write(json.dumps({**report, "seconds": round(seconds, 1)}) + "\n")
        return
    write(counts, found, seconds)


def write(counts: dict[str, Count], found: list[tuple[str, int, int]], seconds: float) -> None:
    """Both tables, for people."""
    titles = ("steps", "skips", "in a row", "rollbacks", "warnings", "drift", "overflows")
    sys.stdout.write(f"{'':32}" + "".join(f"{title:>11}" for title in titles) + "\n")
    for name, one in counts.items():
        numbers = (one.steps, one.skips, one.in_a_row, one.rollbacks, one.spike_warnings)
        drift = one.drift_warnings.total()
        line = "".join(f"{number:>11,}" for number in (*numbers, drift, one.overflows))
        kinds = ", ".join(f"{kind} {times}" for kind, times in one.drift_warnings.items())
        sys.stdout.write(f"{name:32}{line}  {kinds}\n")
    sys.stdout.write("\n")
    for name, refused, tried in found:
        sys.stdout.write(f"{name:32}{100 * refused / tried:>10.1f} %  ({refused} of {tried})\n")
    sys.stdout.write(f"\n{seconds:.0f} s\n")


if __name__ == "__main__":
    main()
