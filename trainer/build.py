"""Builds a loop from its parts: the one place where guards, recovery and link meet a model."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from shared.base import utc_now
from shared.exchange import RunSpec
from trainer.all_guards import all_guards
from trainer.averaging import Averaging, Summing
from trainer.config import Config, GuardsConfig, RunConfig, TrainingConfig
from trainer.data.batches import Share
from trainer.data.items import Item
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
from trainer.radiodiff.memory import checkpoint_blocks, convolve_channels_last
from trainer.ranks import Ranks
from trainer.record import RunRecord
from trainer.recovery import Recovery
from trainer.reporting import Reporter
from trainer.sharding import is_sharded, shard
from trainer.stage import CHECKPOINTS, Stage, probe_batch, set_seed
from trainer.state import TrainState

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


def build_loop(
    config: Config, stage: Stage, observers: Sequence[Observer] = (), ranks: Ranks | None = None
) -> Loop:
    """A loop that is ready to run; nothing has been started or written but the run's folder.

    All ``ranks`` build theirs together: the same weights, and random states of their own.

    Raises:
        DataError: the data can't be used.
        ConfigError: the run's record can't be read.
    """
    ranks, device = ranks or Ranks(), torch.device(config.run.device)
    names = _set_up(stage, config.run, ranks)
    spikes = [Spike(name, config.guards.spike, limits=Limits(device)) for name in names]
    objectives = [
        _objective(stage, name, spike.limits, device, ranks, config.guards)
        for name, spike in zip(names, spikes, strict=True)
    ]
    at_rest, streams = AtRest(config.guards.at_rest), Streams()
    state = TrainState(
        stage.model,
        {one.name: one.optimizer for one in objectives},
        {one.name: one.meter for one in objectives},
        all_guards(config.guards, spikes, names, at_rest, streams, ranks),
        Ema(stage.model, stage.training.ema),
        _loader(stage, _share(stage.training, ranks)),
        ranks=ranks,
    )
    reporter = _reporter(config, stage, ranks)
    origin = {"run": stage.run, "config": config.model_dump(mode="json")}
    return Loop(
        objectives,
        state,
        _recovery(config, stage, state, reporter, [one.schedule.eased for one in objectives]),
        reporter,
        Incidents(config.recovery.incidents, reporter, stage.folder, origin),
        total_steps=stage.training.steps,
        device=device,
        at_rest=at_rest,
        streams=streams,
        observers=observers,
        precision=stage.training.precision,
        micro_batches=stage.training.micro_batches,
    )


def _set_up(stage: Stage, run: RunConfig, ranks: Ranks) -> tuple[str, ...]:
    """Make the model ready in this process, and answer what it is trained for."""
    model, training = stage.model, stage.training
    assert isinstance(model, Trainee), "a stage's model has objectives and training_step"
    ranks.make_equal(model.state_dict())
    if not ranks.is_first:
        set_seed(run.seed + _STRIDE * ranks.number)
    if training.channels_last:
        convolve_channels_last(model)
    if training.gradient_checkpointing:
        checkpoint_blocks(model)
    if ranks.are_many and training.parallel == "fsdp2":
        trained = {parameter for name in model.objectives for parameter in model.parameters_of(name)}
        shard(model, trained, ranks, torch.device(run.device).type)
    return model.objectives


def _recovery(
    config: Config, stage: Stage, state: TrainState, reporter: Reporter, eased: Sequence[torch.Tensor]
) -> Recovery:
    probe = Probe(stage.model, state.ema, probe_batch(stage, torch.device(config.run.device)))
    settings = {**stage.settings, "ranks": state.ranks.world}
    folder = stage.folder / CHECKPOINTS
    return Recovery(config.recovery, state, probe, folder, reporter, settings=settings, eased=eased)


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
