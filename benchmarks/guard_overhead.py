"""What the guards cost: CPU time of a training step, side by side in one run.

    python -m benchmarks.guard_overhead [--rounds 100] [--device cpu] [--json]

Loops train copies of the same small RadioDiff on the same batches, one step each in turn, so that a busy
machine slows all of them alike: bare; with ``clip_grad_norm_``, with which all are compared; as others guard
it (``guard_rivals.py``); and ours: refusal on the device, all guards and their scans, the adaptive clip.

On a GPU it is wall time between synchronisations, and each loop is also run with
``torch.cuda.set_sync_debug_mode("error")``: does the host wait for the device in a healthy step?
"""

import argparse
import copy
import json
import statistics
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.guard_rivals import LR, RIVALS, Batch, Step
from trainer.all_guards import all_guards
from trainer.config import Config, GuardsConfig, load
from trainer.data.radiomaps import RadioMaps
from trainer.guards.at_rest import AtRest
from trainer.guards.base import StepView, Watched
from trainer.guards.limits import Limits
from trainer.guards.modules import ModuleNorms
from trainer.guards.randomness import Randomness
from trainer.guards.refusal import running_statistics
from trainer.guards.spike import Spike
from trainer.guards.streams import Streams
from trainer.guards.vitals import Meter
from trainer.held import HeldModes, HeldSettings
from trainer.objective import OptimizerConfig, Schedule, fused_adamw
from trainer.radiodiff.diffusion import LatentDiffusion
from trainer.stage import Stage, probe_batch

TINY = Path(__file__).parents[1] / "deploy/configs/tiny.toml"


def guarded_step(model: LatentDiffusion) -> Step:
    """Our loop's step: measured, judged and, every 100 steps, scanned."""
    parameters = model.parameters_of("diffusion")
    device = parameters[0].device
    schedule = Schedule(OptimizerConfig(lr=LR, schedule="constant"), 1, device)
    optimizer = fused_adamw(parameters, schedule.config, schedule.lr)
    spike = Spike("diffusion", limits=Limits(device))
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
    at_rest, streams = AtRest(), Streams()
    modes, settings = HeldModes(model), HeldSettings(optimizer)
    panel = all_guards(GuardsConfig(), [spike], ["diffusion"], at_rest, streams)
    watched = Watched(model, {"diffusion": optimizer}, None, {"diffusion": meter.applied})
    panel.rebase(watched)

    def step(batch: Batch) -> None:
        streams.note(Randomness.now(device), meter.iteration)
        modes.put_back()
        meter.protect()
        losses = model.training_step(batch)
        losses.total.backward()
        streams.drawn(Randomness.now(device))
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


@dataclass(frozen=True)
class Cost:
    """Of one loop: mean seconds of a step, and whether it makes the host wait; None where nobody can tell."""

    seconds: float
    waits: bool | None


def measure(config: Config, rounds: int, device: torch.device) -> dict[str, Cost]:
    """The cost of each loop; 100 rounds hold one scan, which is thus in the mean."""
    torch.manual_seed(0)
    model = LatentDiffusion(config.diffusion.model)
    stage = Stage("bench", Path(), model, config.diffusion.training, RadioMaps(config.data, "train"))
    batch = probe_batch(stage, device, size=config.diffusion.training.loading.batch_size)
    loops = {**RIVALS, "ours": guarded_step}
    steps = {name: make(copy.deepcopy(model).to(device)) for name, make in loops.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(rounds + 3):
        for name, step in steps.items():
            torch.manual_seed(round_)  # the same times and noise for all
            spent = _timed(step, batch, device)
            if round_ >= 3:
                seconds[name].append(spent)
    return {name: Cost(statistics.fmean(seconds[name]), waits(step, batch)) for name, step in steps.items()}


def _timed(step: Step, batch: Batch, device: torch.device) -> float:
    if device.type == "cpu":
        begun = time.process_time()
        step(batch)
        return time.process_time() - begun
    torch.cuda.synchronize(device)
    begun = time.perf_counter()
    step(batch)
    torch.cuda.synchronize(device)
    return time.perf_counter() - begun


def waits(step: Step, batch: Batch) -> bool | None:
    """Whether a healthy step makes the host wait for the GPU; None on a CPU, which never does."""
    if not batch["image"].is_cuda:
        return None
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(batch)
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return False


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "Anomaly Detection has been enabled")
    found = measure(load(TINY), arguments.rounds, arguments.device)
    if arguments.json:
        sys.stdout.write(json.dumps({name: asdict(cost) for name, cost in found.items()}) + "\n")
        return
    sys.stdout.write("| loop | ms a step | x clipped | the host waits |\n|---|---|---|---|\n")
    for name, cost in found.items():
        waiting = "not measured on a CPU" if cost.waits is None else str(cost.waits)
        ratio = cost.seconds / found["clipped"].seconds
        sys.stdout.write(f"| {name} | {1000 * cost.seconds:.1f} | {ratio:.3f} | {waiting} |\n")


if __name__ == "__main__":
    main()
