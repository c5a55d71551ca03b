"""A run's model as its newest trusted checkpoint has it: to draw with, to judge, to hand on. Only looks."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from trainer.checkpoint import (
    CheckpointInvalid,
    NoValidCheckpoint,
    Record,
    State,
    Stored,
    list_records,
    match,
    read,
)
from trainer.config import Config
from trainer.data.radiomaps import RadioMaps
from trainer.ema import Ema
from trainer.errors import ConfigError, ResumeRefused
from trainer.probe import Probe
from trainer.radiodiff.diffusion import LatentDiffusion
from trainer.radiodiff.first_stage import FirstStage
from trainer.stage import CHECKPOINTS, Stage, first_stage_folder, probe_batch

log = logging.getLogger(__name__)

Model = TypeVar("Model", LatentDiffusion, FirstStage)


@dataclass(frozen=True)
class Trained(Generic[Model]):
    """A model with its live weights, their average, and the checkpoint that both come from."""

    model: Model
    ema: Ema
    record: Record
    facts: Mapping[str, Any]

    @contextmanager
    def weights(self, *, averaged: bool = True) -> Iterator[Model]:
        """The model in evaluation mode; within the block it carries the average, if asked for."""
        self.model.eval()
        with self.ema.in_place_of(self.model) if averaged else nullcontext():
            yield self.model


def trained_diffusion(config: Config) -> Trained[LatentDiffusion]:
    """The second stage. Raises as ``trained_first_stage``."""
    model = LatentDiffusion(config.diffusion.model).to(config.run.device)
    return _filled(model, Ema(model, config.diffusion.training.ema), config.run.folder)


def trained_first_stage(config: Config) -> Trained[FirstStage]:
    """The first stage.

    Raises:
        ConfigError: there are no checkpoints, or they are of another configuration.
        ResumeRefused: there are some, and none can be trusted.
    """
    model = FirstStage(config.first_stage.model).to(config.run.device)
    return _filled(model, Ema(model, config.first_stage.training.ema), first_stage_folder(config))


def prove(trained: Trained[LatentDiffusion], config: Config, maps: RadioMaps) -> None:
    """Recompute the probe's loss, which sees what names and shapes don't: another option, say.

    With other training maps than the checkpoint's there is nothing to compare, and a line says so.

    Raises:
        ConfigError: the loss is another one than was recorded.
    """
    name, step = trained.record.name, trained.record.step
    if trained.facts["data"]["data"] != maps.fingerprint:
        log.warning("%s was trained on other maps than these; its probe is not compared", name)
        return
    stage = Stage(config.run.name, config.run.folder, trained.model, config.diffusion.training, maps)
    probe = Probe(trained.model, trained.ema, probe_batch(stage, torch.device(config.run.device)))
    difference = probe.difference(trained.facts["probe"], step, config.recovery.probe_tolerance)
    if difference is not None:
        raise ConfigError(
            f"{name} does not do under this configuration what it did when it was saved: {difference}; "
            "give the configuration that it was trained with"
        )


def _filled(model: Model, ema: Ema, folder: Path) -> Trained[Model]:
    record, stored = _newest(folder)
    live = {"model": model.state_dict(), "ema": ema.tensors}
    difference = match(live, {part: stored.parts.get(part, {}) for part in live})
    if difference is not None:
        raise ConfigError(
            f"{record.name} in {folder} does not fit this configuration: {difference}; give the one that it "
            "was trained with"
        )
    model.load_state_dict(stored.parts["model"])
    for name, tensor in ema.tensors.items():
        tensor.copy_(stored.parts["ema"][name])
    return Trained(model, ema, record, stored.facts)


def _newest(folder: Path) -> tuple[Record, Stored]:
    """The newest checkpoint that passes every check; what fails is passed over, and left as it is."""
    checkpoints, damaged = folder / CHECKPOINTS, []
    records = list_records(checkpoints) if checkpoints.is_dir() else ()
    if not records:
        raise ConfigError(
            f"there are no checkpoints in {checkpoints}; train first (python -m trainer run), or import some"
        )
    for record in records:
        if record.state in (State.SEALED, State.GOOD):
            try:
                return record, read(record.path)
            except CheckpointInvalid as error:
                log.warning("%s", error)
                damaged.append(error)
    raise ResumeRefused(str(NoValidCheckpoint(checkpoints, damaged)))
