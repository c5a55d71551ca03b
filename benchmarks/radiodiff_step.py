"""What the model costs: a training step and sampling, beside a plain writing-down of RadioDiff.

    python -m benchmarks.radiodiff_step [--published] [--rounds 10] [--json]

Both sides own equal weights and take turns in one process, so that a busy machine slows both alike; before
that their outputs are compared. On a CPU a step's price is CPU time, and the peak is the resident memory of a
fresh process that works for one side only. On a GPU it is wall time and the device's peak, and our side runs
under bfloat16 autocast.

    train     encode with the frozen autoencoder, forward, backward, clip to 1, AdamW (ours: fused)
    sample    five steps, which are six evaluations, and the decoder
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import AdamW

from benchmarks.radiodiff_plain import PlainDiffusion, PlainUnet
from trainer.radiodiff.autoencoder import AutoencoderConfig
from trainer.radiodiff.diffusion import DiffusionConfig, LatentDiffusion
from trainer.radiodiff.relation import TokenMlp
from trainer.radiodiff.swin import StochasticDepth, SwinConfig
from trainer.radiodiff.unet import UnetConfig, input_size_for

Work = Callable[[], None]
Tensors = Sequence[Tensor]
STEPS = 5
SIDES, WORKS = ("plain", "ours"), ("train", "sample")


@dataclass(frozen=True)
class Size:
    """A configuration, the side of its maps in pixels, and the batch."""

    config: DiffusionConfig
    side: int
    batch: int


REDUCED = Size(
    DiffusionConfig(
        autoencoder=AutoencoderConfig(base_channels=32),
        unet=UnetConfig(dim=32, input_size=input_size_for((64, 64)), swin=SwinConfig(depths=(1, 1, 1, 1))),
    ),
    side=64,
    batch=4,
)
SIZES = {"reduced": REDUCED, "published": Size(DiffusionConfig(), side=256, batch=1)}


class Bench:
    """Both sides at one size, with equal weights and inputs."""

    def __init__(self, size: Size, device: torch.device) -> None:
        torch.manual_seed(0)
        self.device = device
        self.model = LatentDiffusion(size.config).to(device)
        self.plain = PlainDiffusion(self.model)
        batch, side = size.batch, size.side
        self.batch = {
            "image": torch.rand(batch, 1, side, side, device=device) * 2 - 1,
            "cond": torch.rand(batch, 3, side, side, device=device) * 2 - 1,
        }
        shape = (batch, size.config.unet.channels, side // 4, side // 4)
        self.noise, self.posterior_noise = (torch.randn(shape, device=device) for _ in range(2))
        self.step_noise = [torch.randn(shape, device=device) for _ in range(STEPS + 1)]
        self.times = torch.linspace(0.1, 0.9, batch, device=device)

    def our_loss(self) -> Tensor:
        return self.model.training_step(
            self.batch, noise=self.noise, times=self.times, posterior_noise=self.posterior_noise
        ).total

    def plain_loss(self) -> Tensor:
        return self.plain.loss(self.batch, self.noise, self.times, self.posterior_noise)

    def our_maps(self) -> Tensor:
        return self.model.sample(self.batch["cond"], STEPS, noise=self.noise, step_noise=self.step_noise)

    def plain_maps(self) -> Tensor:
        return self.plain.sample(self.batch["cond"], STEPS, self.noise, self.step_noise)

    def work(self, side: str, kind: str) -> Work:
        """What is timed; the optimizer keeps its moments from call to call."""
        if kind == "sample":
            return self._in_bfloat16(self.our_maps) if side == "ours" else _dropping(self.plain_maps)
        if side == "ours":
            ours = self.model.parameters_of("diffusion")
            loss, optimizer = self.our_loss, AdamW(ours, lr=1e-6, fused=True)
            return self._in_bfloat16(lambda: _train(loss, ours, optimizer))
        theirs = self.plain.parameters
        plain_optimizer = AdamW(theirs, lr=1e-6)
        return lambda: _train(self.plain_loss, theirs, plain_optimizer)

    def _in_bfloat16(self, run: Callable[[], object]) -> Work:
        def work() -> None:
            with torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda"):
                run()

        return work

    def agreement(self) -> dict[str, float]:
        """Largest differences of outputs over their deviation, gradients' over the whole gradient's norm.

        Both in float32 and training mode; only what draws at random, dropout and stochastic depth, is still.
        """
        draws = [m for m in self.model.modules() if isinstance(m, StochasticDepth | TokenMlp)]
        usual = [m.chance if isinstance(m, StochasticDepth) else m.dropout.p for m in draws]
        _set_chances(draws, [0.0] * len(draws))
        config = self.plain.unet.config
        self.plain.unet.dropout = 0.0
        self.plain.unet.config = config.model_copy(
            update={"swin": config.swin.model_copy(update={"stochastic_depth": 0.0})}
        )
        try:
            return self._differences()
        finally:
            _set_chances(draws, usual)
            self.plain.unet.dropout, self.plain.unet.config = PlainUnet.dropout, config

    def _differences(self) -> dict[str, float]:
        maps, expected = self.our_maps(), self.plain_maps()
        losses = self.our_loss(), self.plain_loss()
        ours = torch.autograd.grad(losses[0], self.model.parameters_of("diffusion"))
        theirs = torch.autograd.grad(losses[1], self.plain.parameters)
        return {
            "maps": float((maps - expected).abs().max() / expected.std()),
            "loss": float((losses[0] / losses[1] - 1).detach().abs()),
            "gradient": _apart(ours, theirs),
            "gradient by rounding": _apart(self._with_rounded_weights(), ours),
        }

    def _with_rounded_weights(self) -> Tensors:
        """Our gradient with each weight moved by half a unit in its last place at most."""
        weights = self.model.parameters_of("diffusion")
        kept = [weight.detach().clone() for weight in weights]
        with torch.no_grad():
            for weight in weights:
                weight.mul_(1 + (torch.rand_like(weight) - 0.5) * torch.finfo(weight.dtype).eps)
        gradient = torch.autograd.grad(self.our_loss(), weights)
        with torch.no_grad():
            for weight, own in zip(weights, kept, strict=True):
                weight.copy_(own)
        return gradient


def _apart(some: Tensors, others: Tensors) -> float:
    """Norm of the difference over that of ``others``."""
    difference = torch.stack([(a - b).norm() for a, b in zip(some, others, strict=True)]).norm()
    return float(difference / torch.stack([b.norm() for b in others]).norm())


def _set_chances(draws: list[StochasticDepth | TokenMlp], chances: list[float]) -> None:
    for module, chance in zip(draws, chances, strict=True):
        if isinstance(module, StochasticDepth):
            module.chance = chance
        else:
            module.dropout.p = chance


def _train(loss: Callable[[], Tensor], parameters: list[Tensor], optimizer: AdamW) -> None:
    loss().backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _dropping(run: Callable[[], object]) -> Work:
    return lambda: (run(), None)[1]


def seconds(work: Work, device: torch.device) -> float:
    """CPU time of one call, or its wall time on a GPU."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    begun = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - begun


def take_turns(bench: Bench, kind: str, rounds: int) -> dict[str, float]:
    """Median seconds of each side, and the median of the rounds' ratios."""
    works = {side: bench.work(side, kind) for side in SIDES}
    for work in works.values():
        work()
    turns = [{side: seconds(work, bench.device) for side, work in works.items()} for _ in range(rounds)]
    found = {side: statistics.median(turn[side] for turn in turns) for side in SIDES}
    return {**found, "ratio": statistics.median(turn["plain"] / turn["ours"] for turn in turns)}


def peak_bytes(size: Size, side: str, kind: str, device: torch.device) -> int:
    """Most memory during two calls of one side alone: the weights, and on a CPU the libraries, are in it."""
    bench = Bench(size, device)
    work = bench.work(side, kind)
    delattr(bench, "model" if side == "plain" else "plain")
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        work()
        work()
        return torch.cuda.max_memory_allocated(device)
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak begins anew at what is resident now
    work()
    work()
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def peak_in_fresh_process(name: str, side: str, kind: str) -> int:
    command = [sys.executable, "-m", "benchmarks.radiodiff_step", "--peak", name, side, kind]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(name: str, device: torch.device, rounds: int) -> dict[str, dict[str, float]]:
    """One row for agreement and one for each kind of work."""
    bench = Bench(SIZES[name], device)
    found = {"agreement": bench.agreement()}
    timed = {kind: take_turns(bench, kind, rounds) for kind in WORKS}
    del bench  # the fresh processes want its memory
    for kind, row in timed.items():
        peaks = {f"{side}_peak": peak_in_fresh_process(name, side, kind) for side in SIDES}
        found[kind] = {**row, **peaks}
    return found


def table(name: str, found: dict[str, dict[str, float]]) -> str:
    """Markdown rows of one size."""
    agreement = ", ".join(f"{what} {value:.1e}" for what, value in found["agreement"].items())
    lines = [f"{name}: largest relative differences: {agreement}", ""]
    lines += [
        "| work | plain s | ours s | x faster | plain peak GB | ours peak GB |",
        "|---|---|---|---|---|---|",
    ]
    for kind in WORKS:
        row = found[kind]
        peaks = f"{row['plain_peak'] / 1e9:.2f} | {row['ours_peak'] / 1e9:.2f}"
        lines.append(f"| {kind} | {row['plain']:.3f} | {row['ours']:.3f} | {row['ratio']:.2f} | {peaks} |")
    return "\n".join(lines) + "\n\n"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--published", action="store_true", help="the published size as well")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--peak", nargs=3, metavar=("SIZE", "SIDE", "WORK"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if arguments.peak:
        name, side, kind = arguments.peak
        sys.stdout.write(f"{peak_bytes(SIZES[name], side, kind, device)}\n")
        return
    for name in ("reduced", "published") if arguments.published else ("reduced",):
        found = measure(name, device, arguments.rounds)
        sys.stdout.write(json.dumps({name: found}) + "\n" if arguments.json else table(name, found))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
