"""What the guards cost: CPU time of a training step, side by side in one run.

    python benchmarks/guard_overhead.py [--rounds 100] [--json]

Four loops train copies of the same small RadioDiff on the same batches, one step each in turn, so that a busy
machine slows all of them alike:

    bare           forward, backward, fused AdamW
    clipped        the same with clip_grad_norm_: what the others are compared with
    isnan          clipped, and isnan and isinf of every gradient, as in the report that started this project
    guarded        ours: refusal on the device, all guards and their scans, the adaptive clip
"""

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.optim import AdamW

from trainer.build import Stage, probe_batch
from trainer.config import Config, load
from trainer.data.radiomaps import RadioMaps
from trainer.guards.at_rest import AtRest
from trainer.guards.base import Guard, StepView, Watched
from trainer.guards.counters import Counters
from trainer.guards.drift import Drift
from trainer.guards.gradients import Gradients
from trainer.guards.invariants import Invariants
from trainer.guards.modules import ModuleNorms
from trainer.guards.nonfinite import Nonfinite
from trainer.guards.overflow import Overflow
from trainer.guards.panel import Panel
from trainer.guards.refusal import running_statistics
from trainer.guards.saturation import Saturation
from trainer.guards.spike import Spike
from trainer.guards.underflow import Underflow
from trainer.guards.vitals import Meter
from trainer.held import HeldModes, HeldSettings
from trainer.objective import OptimizerConfig, Schedule, fused_adamw
from trainer.radiodiff.diffusion import LatentDiffusion

Batch = dict[str, torch.Tensor]
Step = Callable[[Batch], None]

TINY = Path(__file__).parents[1] / "deploy/configs/tiny.toml"


def plain_step(model: LatentDiffusion, after_backward: Callable[[list[torch.nn.Parameter]], None]) -> Step:
    """A loop as everybody writes it; ``after_backward`` gets the parameters, their gradients filled."""
    parameters = model.parameters_of("diffusion")
    optimizer = AdamW(parameters, lr=1e-4, fused=True)

    def step(batch: Batch) -> None:
        model.training_step(batch).total.backward()
        after_backward(parameters)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def clip(parameters: list[torch.nn.Parameter]) -> None:
    """Clip to a global norm of 1."""
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)


def clip_and_look(parameters: list[torch.nn.Parameter]) -> None:
    """Search every gradient for NaN and infinity with two host reads each, then clip."""
    for parameter in parameters:
        if parameter.grad is not None:
            _ = bool(torch.isnan(parameter.grad).any()), bool(torch.isinf(parameter.grad).any())
    clip(parameters)


def guarded_step(model: LatentDiffusion) -> Step:
    """Our loop's step: measured, judged and, every 100 steps, scanned."""
    parameters = model.parameters_of("diffusion")
    schedule = Schedule(OptimizerConfig(lr=1e-4, schedule="constant"), 1, torch.device("cpu"))
    optimizer = fused_adamw(parameters, schedule.config, schedule.lr)
    spike = Spike("diffusion")
    statistics_ = list(running_statistics(model).values())
    modules = ModuleNorms(model, parameters)
    meter = Meter(
        "diffusion",
        optimizer,
        parameters,
        max_norm=1.0,
        buffers=statistics_,
        limits=spike.limits,
        modules=modules,
    )
    at_rest, modes, settings = AtRest(), HeldModes(model), HeldSettings(optimizer)
    told: list[Guard] = [
        Nonfinite(),
        spike,
        Drift(spike.objective),
        Invariants(),
        Counters(),
        Gradients(),
        at_rest,
    ]
    panel = Panel([*told, Saturation(), Overflow(), Underflow()])
    watched = Watched(model, {"diffusion": optimizer}, None, {"diffusion": meter.applied})
    panel.rebase(watched)

    def step(batch: Batch) -> None:
        modes.put_back()
        meter.protect()
        losses = model.training_step(batch)
        losses.total.backward()
        at_rest.compare()
        meter.measure(losses)
        settings.put_back()
        optimizer.step()
        meter.settle(schedule.lr)
        at_rest.remember()
        optimizer.zero_grad(set_to_none=True)
        for vitals in meter.arrived():
            panel.judge(StepView(vitals, (), watched))

    return step


def measure(config: Config, rounds: int) -> dict[str, float]:
    """Mean CPU seconds of a step of each loop; 100 rounds hold one scan, whose cost is thus in the mean."""
    torch.manual_seed(0)
    model = LatentDiffusion(config.diffusion.model)
    stage = Stage("bench", Path(), model, config.diffusion.training, RadioMaps(config.data, "train"))
    batch = probe_batch(stage, torch.device("cpu"), size=config.diffusion.training.loading.batch_size)
    steps = {
        "bare": plain_step(copy.deepcopy(model), lambda parameters: None),
        "clipped": plain_step(copy.deepcopy(model), clip),
        "isnan": plain_step(copy.deepcopy(model), clip_and_look),
        "guarded": guarded_step(copy.deepcopy(model)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(rounds + 3):
        for name, step in steps.items():
            torch.manual_seed(round_)  # the same times and noise for all four
            begun = time.process_time()
            step(batch)
            if round_ >= 3:
                seconds[name].append(time.process_time() - begun)
    return {name: statistics.fmean(values) for name, values in seconds.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(load(TINY), arguments.rounds)
    if arguments.json:
        sys.stdout.write(json.dumps(found) + "\n")
        return
    sys.stdout.write("| loop | ms CPU a step | x clipped |\n|---|---|---|\n")
    for name, seconds in found.items():
        sys.stdout.write(f"| {name} | {1000 * seconds:.1f} | {seconds / found['clipped']:.3f} |\n")


if __name__ == "__main__":
    main()
