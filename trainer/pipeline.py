"""A whole training: the first stage, the diffusion on its latents, the evaluation, and what it leaves."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext

import torch

from shared.events import RunEnded
from trainer.build import build_loop
from trainer.checkpoint import NoValidCheckpoint
from trainer.claim import claimed
from trainer.config import Config
from trainer.data.radiomaps import RadioMaps
from trainer.data.variants import VARIANTS
from trainer.drawing import Drawer
from trainer.ema import Ema
from trainer.errors import ConfigError, ResumeRefused, StopRequested, TrainerError
from trainer.evaluation import evaluate
from trainer.loop import Loop, Observer
from trainer.radiodiff.diffusion import LatentDiffusion
from trainer.radiodiff.first_stage import FirstStage
from trainer.radiodiff.unet import Unet
from trainer.ranks import Ranks, joined
from trainer.sharding import is_sharded
from trainer.stage import (
    Stage,
    diffusion_of,
    first_stage_folder,
    first_stage_of,
    has_checkpoints,
    probe_batch,
)
from trainer.summary import StageSummary, Summary
from trainer.trained import trained_first_stage
from trainer.watching import watched

log = logging.getLogger(__name__)

Observers = Callable[[Stage], Sequence[Observer]]


def train(config: Config, observers: Observers = lambda stage: ()) -> StageSummary | None:
    """Train ``run.stages``, or go on where the run's folder says it was; answers the summary that is saved.

    ``observers`` answers who watches a stage. Leaves ``summary.json`` and ``maps.png`` in the run's folder; a
    first stage alone leaves ``summary.json`` in its own.
    Where torchrun started several ranks they train together; the first alone evaluates and answers.

    Raises:
        TrainerError, DataError: see ``trainer.errors``; a bad configuration, or a folder that another process
            trains in, is refused before any training.
    """
    with joined(config.run.device, config.run.rank_timeout_s) as (ranks, device), ExitStack() as stack:
        config = config.model_copy(update={"run": config.run.model_copy(update={"device": device})})
        set_up_torch(config)
        ranks.of_first(lambda: _claim(config, stack))
        return _train(config, observers, ranks)


def _claim(config: Config, stack: ExitStack) -> None:
    prepare(config)
    stack.enter_context(claimed(config.run.folder / "lock"))


def _train(config: Config, observers: Observers, ranks: Ranks) -> StageSummary | None:
    maps = RadioMaps(config.data, "train")
    if config.run.stages == "first_stage":
        return _train_first_stage_alone(config, maps, observers, ranks)
    held_out = RadioMaps(config.data, "test")
    # each checkpoint of the second stage holds the autoencoder that it works on
    begun = ranks.of_first(lambda: has_checkpoints(config.run.folder))
    autoencoder = None
    if not begun and config.run.stages == "diffusion":
        autoencoder = _autoencoder_in_folder(config)
    elif not begun:
        before, first_stage = _run_first_stage(config, maps, observers, ranks)
        autoencoder = _averaged_autoencoder(before.state.ema, first_stage)
    loop, model = train_diffusion(config, maps, autoencoder, _drawing(config, held_out, observers), ranks)
    kept = loop.recovery.ring.steps()
    parts = loop.state.parts() if is_sharded(model) else None
    if not ranks.is_first:
        return None
    if parts is not None:
        model = LatentDiffusion(config.diffusion.model).to(config.run.device)
        model.load_state_dict(parts["model"] | parts["ema"])
    with nullcontext() if parts is not None else loop.state.ema.in_place_of(model):
        evaluation = evaluate(
            model, maps, held_out, config.diffusion.sampling, config.run.folder / "maps.png"
        )
    for line in evaluation.lines():
        log.info("%s", line)
    summary = Summary.of(loop, evaluation)
    summary.save(config.run.folder)
    _check_kept(loop, "finished", kept)
    return summary


def _drawing(config: Config, held_out: RadioMaps, observers: Observers) -> Observers:
    """The same observers, and one that draws maps for the monitor, if there is one."""
    if not config.link.url or not config.run.drawn_maps:
        return observers
    drawer = Drawer(held_out, config.diffusion.sampling, config.run.drawn_maps)
    return lambda stage: [*observers(stage), drawer]


def prepare(config: Config) -> None:
    """Make the run's folder, and set what is global in torch.

    Raises:
        ConfigError: the folder can't be written to, the device is not there, or the model does not fit the
            maps.
    """
    set_up_torch(config)
    folder = config.run.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise ConfigError(
            f"cannot write to run.folder = {folder}: {os.strerror(error.errno or 0)}; choose another folder"
        ) from error
    check_shapes(config)


def check_shapes(config: Config) -> None:
    """Send shapes without numbers through the second stage. Costs no memory, and a second at full size.

    Raises:
        ConfigError: it does not take maps of this size, or another number of channels than the variant has.
    """
    side, channels = config.data.image_size, len(VARIANTS[config.data.variant].channels)
    model = config.diffusion.model
    with torch.device("meta"), torch.no_grad():
        latent = torch.empty(2, model.unet.channels, side // 4, side // 4)
        try:
            Unet(model.unet)(latent, torch.empty(2), torch.empty(2, channels, side, side))
        except ValueError as error:
            raise ConfigError(
                f"diffusion.model does not fit data.image_size = {side} and data.variant = "
                f"{config.data.variant}: {error}"
            ) from error


def require_autoencoder(config: Config) -> None:
    """See that the diffusion alone has an autoencoder to work on. A run that has begun holds its own.

    Raises:
        ConfigError: there is none in the run's folder.
    """
    folder = first_stage_folder(config)
    is_needed = config.run.stages == "diffusion" and not has_checkpoints(config.run.folder)
    if is_needed and not has_checkpoints(folder):
        raise ConfigError(
            f'run.stages is "diffusion", but there is no autoencoder in {folder}; train one there (the same '
            'run.folder with run.stages = "first_stage"), or import one (python -m trainer import)'
        )


def set_up_torch(config: Config) -> None:
    """Set what is global in torch.

    Raises:
        ConfigError: the device is not there.
    """
    device = torch.device(config.run.device)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"run.device = {device}, but torch sees {torch.cuda.device_count()} CUDA devices here; choose cpu"
        )
    torch.set_num_threads(config.run.threads)


def _train_first_stage_alone(
    config: Config, maps: RadioMaps, observers: Observers, ranks: Ranks
) -> StageSummary | None:
    loop, _ = _run_first_stage(config, maps, observers, ranks)
    kept = loop.recovery.ring.steps()
    if not ranks.is_first:
        return None
    summary = StageSummary.of_stage(loop)
    summary.save(first_stage_folder(config))
    _check_kept(loop, "finished", kept)
    return summary


def _run_first_stage(
    config: Config, maps: RadioMaps, observers: Observers, ranks: Ranks
) -> tuple[Loop, FirstStage]:
    stage = first_stage_of(config, maps)
    loop, model = run_stage(config, stage, observers(stage), ranks), stage.model
    assert isinstance(model, FirstStage)
    return loop, model


def _averaged_autoencoder(ema: Ema, model: FirstStage) -> Mapping[str, torch.Tensor]:
    """The averaged weights of the autoencoder, by name."""
    with ema.in_place_of(model):
        return {name: tensor.clone() for name, tensor in model.autoencoder.state_dict().items()}


def _autoencoder_in_folder(config: Config) -> Mapping[str, torch.Tensor]:
    """That of the first stage's newest trusted checkpoint, trained here or imported.

    Raises:
        ConfigError: there is none, or of another configuration. ResumeRefused: none can be trusted.
    """
    require_autoencoder(config)
    trained, folder = trained_first_stage(config), first_stage_folder(config)
    log.info("run %s: works on the latents of %s in %s", config.run.name, trained.record.name, folder)
    return _averaged_autoencoder(trained.ema, trained.model)


def train_diffusion(
    config: Config,
    maps: RadioMaps,
    autoencoder: Mapping[str, torch.Tensor] | None,
    observers: Observers,
    ranks: Ranks,
) -> tuple[Loop, LatentDiffusion]:
    """The latent diffusion model, and the loop that trained it.

    It works on the latents of ``autoencoder``; None takes that of the checkpoint which the run goes on from.
    """
    stage = diffusion_of(config, maps)
    model = stage.model
    assert isinstance(model, LatentDiffusion)
    if autoencoder is not None:
        model.autoencoder.load_state_dict(autoencoder)
    # the scale of the latents is a constant of the whole run, so it is set before anything guards it
    model.encode(probe_batch(stage, torch.device(config.run.device))["image"], may_set_scale=True)
    return run_stage(config, stage, observers(stage), ranks), model


def run_stage(
    config: Config, stage: Stage, observers: Sequence[Observer] = (), ranks: Ranks | None = None
) -> Loop:
    """Train one stage to its end, from its newest trusted checkpoint if it has one.

    Raises:
        ResumeRefused: it has checkpoints, and none can be trusted.
        RunStopped: recovery came to its end.
        StopRequested: it was asked to end early.
        TrainerError: likewise, and the disk did not take its last checkpoint.
    """
    loop = build_loop(config, stage, observers, ranks)
    reporter = loop.reporter
    reporter.link.start()
    try:
        checkpoint = _resume(loop, stage)
        reporter.attempt(loop.state.step, "resume" if checkpoint else "start", checkpoint)
        with watched(loop, config):
            status = loop.run()
    except Exception as error:
        reporter.ended(RunEnded(step=loop.state.step, status="failed", message=str(error)))
        raise
    finally:
        reporter.link.close()
    if status == "stopped":
        _check_kept(loop, "stopped", loop.recovery.ring.steps())
        where = f"at step {loop.state.step}; the same command goes on from there"
        raise StopRequested(f"run {stage.run} stopped {where}")
    return loop


def _check_kept(loop: Loop, status: str, kept: Sequence[int]) -> None:
    """Raises a ``TrainerError`` if the disk did not take the state in which the run ended."""
    step = loop.state.step
    if step not in kept:
        raise TrainerError(
            f"run {loop.reporter.run} {status} at step {step}, but this state could not be kept (see "
            f"record.json); the same command goes on {f'from step {max(kept)}' if kept else 'anew'}"
        )


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
