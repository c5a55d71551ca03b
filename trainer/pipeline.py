"""A whole training: the first stage, the diffusion on its latents, the evaluation, and what it leaves."""

import logging
import os
import random
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from shared.events import RunEnded
from trainer.build import Stage, build_loop, probe_batch
from trainer.checkpoint import NoValidCheckpoint
from trainer.config import Config
from trainer.data.radiomaps import RadioMaps
from trainer.errors import ConfigError, ResumeRefused, StopRequested
from trainer.evaluation import evaluate
from trainer.loop import Loop, Observer
from trainer.radiodiff.diffusion import LatentDiffusion
from trainer.radiodiff.first_stage import FirstStage
from trainer.record import replace_file
from trainer.summary import Summary

log = logging.getLogger(__name__)

Observers = Callable[[Stage], Sequence[Observer]]


def train(config: Config, observers: Observers = lambda stage: ()) -> Summary:
    """Train both stages, or go on where the run's folder says it was; answers the summary that is also saved.

    ``observers`` answers who watches a stage. Leaves ``summary.json`` and ``maps.png`` in the run's folder.

    Raises:
        TrainerError, DataError: see ``trainer.errors``; a bad configuration is refused before any training.
    """
    prepare(config)
    maps = RadioMaps(config.data, "train")
    held_out = RadioMaps(config.data, "test")
    autoencoder = train_first_stage(config, maps, observers)
    loop, model = train_diffusion(config, maps, autoencoder, observers)
    with loop.state.ema.in_place_of(model):
        evaluation = evaluate(
            model, maps, held_out, config.diffusion.sampling, config.run.folder / "maps.png"
        )
    for line in evaluation.lines():
        log.info("%s", line)
    summary = Summary.of(loop, evaluation)
    replace_file(config.run.folder / "summary.json", summary.as_json().encode())
    return summary


def prepare(config: Config) -> None:
    """Make the run's folder, and set what is global in torch.

    Raises:
        ConfigError: the folder can't be written to, or the device is not there.
    """
    device = torch.device(config.run.device)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"run.device = {device}, but torch sees {torch.cuda.device_count()} CUDA devices here; choose cpu"
        )
    folder = config.run.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise ConfigError(
            f"cannot write to run.folder = {folder}: {os.strerror(error.errno or 0)}; choose another folder"
        ) from error
    torch.set_num_threads(config.run.threads)


def train_first_stage(config: Config, maps: RadioMaps, observers: Observers) -> Mapping[str, torch.Tensor]:
    """The averaged weights of the trained autoencoder, by name."""
    _seed(config.run.seed)
    model = FirstStage(config.first_stage.model).to(config.run.device)
    stage = Stage(
        f"{config.run.name}-first-stage",
        config.run.folder / "first-stage",
        model,
        config.first_stage.training,
        maps,
    )
    loop = run_stage(config, stage, observers(stage))
    with loop.state.ema.in_place_of(model):
        return {name: tensor.clone() for name, tensor in model.autoencoder.state_dict().items()}


def train_diffusion(
    config: Config, maps: RadioMaps, autoencoder: Mapping[str, torch.Tensor], observers: Observers
) -> tuple[Loop, LatentDiffusion]:
    """The latent diffusion model on the latents of ``autoencoder``, and the loop that trained it."""
    _seed(config.run.seed + 1)
    model = LatentDiffusion(config.diffusion.model).to(config.run.device)
    model.autoencoder.load_state_dict(autoencoder)
    stage = Stage(config.run.name, config.run.folder, model, config.diffusion.training, maps)
    # the scale of the latents is a constant of the whole run, so it is set before anything guards it
    model.encode(probe_batch(stage, torch.device(config.run.device))["image"], may_set_scale=True)
    return run_stage(config, stage, observers(stage)), model


def run_stage(config: Config, stage: Stage, observers: Sequence[Observer] = ()) -> Loop:
    """Train one stage to its end, from its newest trusted checkpoint if it has one.

    Raises:
        ResumeRefused: it has checkpoints, and none can be trusted.
        RunStopped: recovery came to its end.
        StopRequested: it was asked to end early.
    """
    loop = build_loop(config, stage, observers)
    reporter = loop.reporter
    reporter.link.start()
    try:
        checkpoint = _resume(loop, stage)
        reporter.attempt(loop.state.step, "resume" if checkpoint else "start", checkpoint)
        status = loop.run()
    except Exception as error:
        reporter.ended(RunEnded(step=loop.state.step, status="failed", message=str(error)))
        raise
    finally:
        left = reporter.link.close()
        if left.pending_batches:
            log.warning(
                "run %s: %d batches wait in %s", stage.run, left.pending_batches, stage.folder / "spool"
            )
    if status == "stopped":
        raise StopRequested(
            f"run {stage.run} stopped at step {loop.state.step}; the same command goes on from there"
        )
    return loop


def _seed(seed: int) -> None:
    """Set every random state that a checkpoint keeps: a twin run has the same ones from its first step."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def _resume(loop: Loop, stage: Stage) -> str | None:
    try:
        checkpoint = loop.recovery.resume()
    except NoValidCheckpoint as error:
        raise ResumeRefused(f"run {stage.run} can't go on: {error}") from error
    if checkpoint is None:
        log.info("run %s: starting anew in %s", stage.run, stage.folder)
    else:
        log.info("run %s: going on from %s at step %d", stage.run, checkpoint, loop.state.step)
    return checkpoint
