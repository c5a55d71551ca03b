"""Upstream's files: one becomes a checkpoint that a run goes on from, and a run's checkpoint becomes one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.build import build_loop
from trainer.checkpoint import Record
from trainer.config import Config
from trainer.data.radiomaps import RadioMaps
from trainer.errors import ConfigError, TrainerError
from trainer.loop import Loop
from trainer.radiodiff.diffusion import LatentDiffusion
from trainer.radiodiff.first_stage import FirstStage
from trainer.radiodiff.upstream import (
    UpstreamFile,
    UpstreamMismatch,
    load_diffusion,
    load_first_stage,
    read_file,
    write_file,
)
from trainer.stage import Stage, diffusion_of, first_stage_of, has_checkpoints
from trainer.trained import Trained, trained_diffusion, trained_first_stage

_NAMED = 5


@dataclass(frozen=True)
class Imported:
    """What became of a file: the checkpoint, and how many of its tensors have no place in our model."""

    file: UpstreamFile
    run: str
    record: Record
    num_left_out: int

    def in_words(self) -> str:
        """One line for people."""
        step = "no step, so it starts at 0" if self.file.step is None else f"step {self.file.step}"
        average = "a copy of the weights" if self.file.ema is None else "the file's EMA"
        left_out = f"; {self.num_left_out} tensors have no place here" if self.num_left_out else ""
        return (
            f"{self.run}: {self.file.path.name} ({self.file.kind}, {step}) is now {self.record.path}; the "
            f"average is {average}, the optimizer's moments start fresh{left_out}"
        )


def import_model(path: Path, config: Config) -> Imported:
    """Make an upstream file of either stage the first checkpoint of that stage of the run.

    Raises:
        ConfigError: the file can't be read, is of another configuration or release, or the stage has
            checkpoints already.
        DataError: the training maps, on which the probe is measured, can't be used.
        TrainerError: the checkpoint was refused (a NaN, say), or could not be written.
    """
    try:
        file = read_file(path)
        stage = _stage_for(file, config)
        _refuse_if_begun(stage)
        left_out = _load(stage, file, averaged=False)
        _load(stage, file, averaged=file.ema is not None)
        loop = build_loop(config, stage)  # its average starts as a copy of the weights: now the file's
        _load(stage, file, averaged=False)
        record = _save(loop, file.step or 0)
    except UpstreamMismatch as error:
        raise ConfigError(_shortened(error)) from error
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return Imported(file, stage.run, record, left_out)


def export_first_stage(config: Config, out: Path, *, averaged: bool = False) -> Record:
    """Write the first stage for upstream. See ``export_diffusion``."""
    return _export(trained_first_stage(config), out, averaged)


def export_diffusion(config: Config, out: Path, *, averaged: bool = False) -> Record:
    """Write the second stage's newest trusted checkpoint for upstream; answers which one that was.

    Args:
        averaged: the average takes the live weights' place and nothing else is in the file: upstream's test
            script reads the live ones, whatever else there is. Otherwise weights, average and step.

    Raises:
        ConfigError, ResumeRefused: there is no checkpoint that fits, or none that can be trusted.
    """
    return _export(trained_diffusion(config), out, averaged)


def _export(trained: Trained[LatentDiffusion] | Trained[FirstStage], out: Path, averaged: bool) -> Record:
    if averaged:
        with trained.ema.in_place_of(trained.model):
            write_file(out, trained.model)
    else:
        write_file(out, trained.model, ema=trained.ema.tensors, step=trained.record.step)
    return trained.record


def _stage_for(file: UpstreamFile, config: Config) -> Stage:
    maps = RadioMaps(config.data, "train")
    return first_stage_of(config, maps) if file.kind == "first_stage" else diffusion_of(config, maps)


def _refuse_if_begun(stage: Stage) -> None:
    if has_checkpoints(stage.folder):
        raise ConfigError(
            f"run {stage.run} has checkpoints already, in {stage.folder}; give another run.folder, or move "
            "them away"
        )


def _load(stage: Stage, file: UpstreamFile, *, averaged: bool) -> int:
    """Fill the stage's model; answers how many tensors have no place in it."""
    model = stage.model
    if isinstance(model, LatentDiffusion):
        return len(load_diffusion(model, file, use_ema=averaged))
    assert isinstance(model, FirstStage)
    return len(load_first_stage(model, file, use_ema=averaged))


def _save(loop: Loop, step: int) -> Record:
    """The state as a sealed checkpoint of attempt 1; the run that resumes from it is attempt 2."""
    loop.state.step = loop.state.iteration = step
    for meter in loop.state.meters.values():
        meter.restore(step, step)
    loop.reporter.record.attempt = 1
    try:
        loop.recovery.save()
    finally:
        loop.recovery.close()
    records = loop.recovery.ring.records()
    if not records:
        raise TrainerError(loop.reporter.record.findings[-1].message)
    return records[0]


def _shortened(error: UpstreamMismatch) -> str:
    """A file of another size may differ in all of its 1,500 tensors; five names of each kind tell enough."""

    def some(names: Sequence[str]) -> str:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        return ", ".join(names[:_NAMED]) + more

    kinds = {"lacks": error.missing, "has no place for": error.extra, "differs in": error.different}
    facts = "; ".join(f"{verb} {some(names)}" for verb, names in kinds.items() if names)
    return (
        f"{error.path.name} does not fit this configuration: {facts}; give the one that it was trained with"
    )
