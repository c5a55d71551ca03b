"""Builds a loop from its parts: the one place where guards, recovery and link meet a model."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from shared.base import utc_now
from shared.exchange import RunSpec
from trainer.all_guards import all_guards
from trainer.averaging import Averaging, Summing
from trainer.checkpoint import list_records
from trainer.config import Config, GuardsConfig, TrainingConfig
from trainer.data.batches import Share
from trainer.data.items import Item, collate
from trainer.data.loading import Loader
from trainer.data.oddity import Oddity
from trainer.data.pairing import Pairing
from trainer.data.radiomaps import RadioMaps
from trainer.ema import Ema
from trainer.errors import ConfigError
from trainer.guards.at_rest import AtRest
from trainer.guards.limits import Limits
from trainer.guards.loss_scale import LossScale
from trainer.guards.modules import ModuleNorms
from trainer.guards.nonfinite import find_nonfinite_batch
from trainer.guards.refusal import running_statistics
from trainer.guards.spike import Spike
from trainer.guards.strain import Strain
from trainer.guards.streams import Streams
from trainer.guards.vitals import Meter
from trainer.incident import Incidents
from trainer.link.client import Link
from trainer.link.config import LinkConfig
from trainer.loop import Loop, Observer
from trainer.objective import Objective, Schedule, fused_adamw
from trainer.probe import Probe, Trainee
from trainer.radiodiff.diffusion import LatentDiffusion
from trainer.radiodiff.first_stage import FirstStage
from trainer.radiodiff.memory import checkpoint_blocks, convolve_channels_last
from trainer.ranks import Ranks
from trainer.record import RunRecord
from trainer.recovery import Recovery
from trainer.reporting import Reporter
from trainer.section import Section
from trainer.sharding import is_sharded, shard
from trainer.state import TrainState


@dataclass(frozen=True)
class Stage:
    """One training: what is trained, on what, under which name, and where its files go."""

    run: str
    folder: Path
    model: nn.Module
    training: TrainingConfig
    source: RadioMaps
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What of the configuration shapes the result: kept with each checkpoint, compared at a resume."""


_STRIDE = 1_000_003
"""Between the seeds of two ranks: far from those of stages, and of runs that count theirs up."""

_WELL_SCALED = partial(find_nonfinite_batch, limit=1.5)
"""Items lie in [-1, 1]: a dark map in 0..255 must not pass for one."""


class _Checks:
    """Why an item must not be trained on: its values, or a condition that is another map's."""

    def __init__(self, belongs: Pairing) -> None:
        self._belongs = belongs

    def __call__(self, item: Item) -> str | None:
        return _WELL_SCALED(item) or self._belongs(item)


CHECKPOINTS = "checkpoints"
"""Where they lie in a stage's folder."""


def has_checkpoints(folder: Path) -> bool:
    """Whether the stage in that folder has any, usable or not."""
    return (folder / CHECKPOINTS).is_dir() and bool(list_records(folder / CHECKPOINTS))


def first_stage_folder(config: Config) -> Path:
    """Where the first stage's files go; those of the second lie in the run's own folder."""
    return config.run.folder / "first-stage"


def first_stage_of(config: Config, maps: RadioMaps) -> Stage:
    """The training of the autoencoder, with new weights."""
    _seed(config.run.seed)
    model = FirstStage(config.first_stage.model).to(config.run.device)
    name = f"{config.run.name}-first-stage"
    settings = _settings(config, config.first_stage)
    return Stage(name, first_stage_folder(config), model, config.first_stage.training, maps, settings)


def diffusion_of(config: Config, maps: RadioMaps) -> Stage:
    """The training of the latent diffusion model, with new weights."""
    _seed(config.run.seed + 1)
    model = LatentDiffusion(config.diffusion.model).to(config.run.device)
    settings = _settings(config, config.diffusion)
    return Stage(config.run.name, config.run.folder, model, config.diffusion.training, maps, settings)


def _settings(config: Config, stage: Section) -> dict[str, Any]:
    shaping = stage.model_dump(mode="json", exclude={"sampling"})
    return {"data": config.data.model_dump(mode="json", exclude={"cache", "cache_folder"}), **shaping}


def build_loop(
    config: Config, stage: Stage, observers: Sequence[Observer] = (), ranks: Ranks | None = None
) -> Loop:
    """A loop that is ready to run; nothing has been started or written but the run's folder.

    All ``ranks`` build theirs together: the same weights, and random states of their own.

    Raises:
        DataError: the data can't be used.
        ConfigError: the run's record can't be read.
    """
    ranks = ranks or Ranks()
    device = torch.device(config.run.device)
    model = stage.model
    ranks.make_equal(model.state_dict())
    if not ranks.is_first:
        _seed(config.run.seed + _STRIDE * ranks.number)
    assert isinstance(model, Trainee), "a stage's model has objectives and training_step"
    if stage.training.channels_last:
        convolve_channels_last(model)
    if stage.training.gradient_checkpointing:
        checkpoint_blocks(model)
    names = model.objectives
    if ranks.are_many and stage.training.parallel == "fsdp2":
        trained = {parameter for name in names for parameter in model.parameters_of(name)}
        shard(model, trained, ranks, device.type)
    spikes = [Spike(name, config.guards.spike, limits=Limits(device)) for name in names]
    objectives = [
        _objective(stage, name, spike.limits, device, ranks, config.guards)
        for name, spike in zip(names, spikes, strict=True)
    ]
    loader = _loader(stage, _share(stage.training, ranks))
    ema = Ema(stage.model, stage.training.ema)
    at_rest, streams = AtRest(config.guards.at_rest), Streams()
    state = TrainState(
        stage.model,
        {one.name: one.optimizer for one in objectives},
        {one.name: one.meter for one in objectives},
        all_guards(config.guards, spikes, names, at_rest, streams, ranks),
        ema,
        loader,
        ranks=ranks,
    )
    reporter = _reporter(config, stage, ranks)
    probe = Probe(stage.model, ema, probe_batch(stage, device))
    folder = stage.folder / CHECKPOINTS
    settings = {**stage.settings, "ranks": ranks.world}
    eased = [one.schedule.eased for one in objectives]
    recovery = Recovery(config.recovery, state, probe, folder, reporter, settings=settings, eased=eased)
    origin = {"run": stage.run, "config": config.model_dump(mode="json")}
    incidents = Incidents(config.recovery.incidents, reporter, stage.folder, origin)
    return Loop(
        objectives,
        state,
        recovery,
        reporter,
        incidents,
        total_steps=stage.training.steps,
        device=device,
        observers=observers,
        precision=stage.training.precision,
        micro_batches=stage.training.micro_batches,
        at_rest=at_rest,
        streams=streams,
    )


def probe_batch(stage: Stage, device: torch.device, size: int = 4) -> dict[str, torch.Tensor]:
    """The first items of the training maps as they lie in the data set: the same batch for the whole run."""
    batch = collate([stage.source[index] for index in range(min(size, len(stage.source)))])
    return {"image": batch["image"].to(device), "cond": batch["cond"].to(device)}


def _seed(seed: int) -> None:
    """Set every random state that a checkpoint keeps: a twin run has the same ones from its first step."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def _reduce(stage: Stage, ranks: Ranks, statistics: Sequence[torch.Tensor]) -> Averaging | None:
    if not ranks.are_many:
        return None
    return (Summing if stage.training.parallel == "fsdp2" else Averaging)(ranks, statistics)


def _share(training: TrainingConfig, ranks: Ranks) -> Share:
    size, pieces = training.loading.batch_size, training.micro_batches
    if size % (ranks.world * pieces):
        raise ConfigError(
            f"loading.batch_size {size} can't be shared evenly by {ranks.world} ranks in {pieces} "
            f"micro_batches each; make it a multiple of {ranks.world * pieces}"
        )
    return Share(ranks.number, ranks.world)


def _loader(stage: Stage, share: Share) -> Loader:
    source, loading = stage.source, stage.training.loading
    if not isinstance(source, RadioMaps):  # a test's, or one of your own
        return Loader(source, loading, _WELL_SCALED, share, Oddity())
    channels, usual = source.variant.channels, source.spread()
    return Loader(source, loading, _Checks(Pairing(channels, usual)), share, Oddity(channels, usual))


def _objective(
    stage: Stage, name: str, limits: Limits, device: torch.device, ranks: Ranks, guards: GuardsConfig
) -> Objective:
    config = stage.training.optimizer
    assert isinstance(stage.model, Trainee)
    parameters = stage.model.parameters_of(name)
    schedule = Schedule(config, stage.training.steps, device)
    optimizer = fused_adamw(parameters, config, schedule.lr)
    statistics = list(running_statistics(stage.model).values())
    meter = Meter(
        name,
        optimizer,
        parameters,
        max_norm=config.max_norm,
        buffers=statistics,
        limits=limits,
        loss_scale=LossScale(device, zeros_every=guards.underflow.count_every)
        if stage.training.precision == "fp16"
        else None,
        reduce=_reduce(stage, ranks, statistics),
        # of sharded gradients a rank has a part only, and module by module nobody adds them up
        modules=None if is_sharded(stage.model) else ModuleNorms(stage.model, parameters),
        strain=Strain(
            [optimizer], add=ranks.add if stage.training.parallel == "fsdp2" and ranks.are_many else None
        ),
    )
    return Objective(name, optimizer, schedule, meter)


def _reporter(config: Config, stage: Stage, ranks: Ranks) -> Reporter:
    path = stage.folder / "record.json"
    record = ranks.of_first(lambda: _record(path))
    spec = RunSpec(
        project=config.run.project,
        config=config.model_dump(mode="json"),
        total_steps=stage.training.steps,
        checkpoint_interval_steps=config.recovery.checkpoint_every,
        started_at=utc_now(),
        identity=record.identity,
    )
    link = Link(config.link if ranks.is_first else LinkConfig(), stage.run, spec, stage.folder / "spool")
    return Reporter(stage.run, link, record, path if ranks.is_first else None)


def _record(path: Path) -> RunRecord:
    try:
        return RunRecord.take_up(path)
    except ValueError as error:
        raise ConfigError(str(error)) from error
