"""What happens around a training: it is looked at, shortened, fed a foreign file, changed by plan."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch

from trainer.checkpoint import list_records
from trainer.config import Config
from trainer.drill.faults import Fault, Ground, first_life
from trainer.drill.judge import Sighting
from trainer.errors import ConfigError
from trainer.importing import export_first_stage, import_model
from trainer.loop import Loop
from trainer.passes import Phase
from trainer.pipeline import run_stage
from trainer.radiodiff.diffusion import LatentDiffusion
from trainer.record import RunRecord
from trainer.stage import first_stage_of


def sampled_in_between(at_step: int) -> Fault:
    """R21: maps are drawn between two steps, five times: the run's own noise must not hear of it."""

    def strike(loop: Loop) -> None:
        model = cast(LatentDiffusion, loop.model)
        assert loop.recovery._probe is not None
        loop.recovery._probe.measure(loop.state.step)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            model.sample(loop.batch["cond"][:1], 1, generator=generator)

    return Fault(at_step, Phase.REPORT, strike, times=5)


@dataclass
class FewerSteps:
    """R19: the run is told to end before where it is; afterwards it goes on as it was."""

    at_step: int
    struck_at: int | None = field(default=None, init=False)
    broke: list[str] = field(default_factory=list, init=False)

    def inject(self, ground: Ground) -> None:
        """A life with fewer steps than it has, and one with all of them."""
        first_life(ground, self.at_step)
        self.struck_at = list_records(ground.folder / "checkpoints")[0].step
        config, seen = ground.config, list[int]()
        ground.config = with_steps(config, 10)
        ground.train([Fault(0, Phase.FORWARD, lambda loop: seen.append(loop.number))])
        if seen:
            self.broke.append(f"it trained on at step {seen[0]}, beyond its end")
        ground.config = config
        ground.train()


def with_steps(config: Config, steps: int) -> Config:
    """The same training, so long."""
    training = config.diffusion.training.model_copy(update={"steps": steps})
    return config.model_copy(update={"diffusion": config.diffusion.model_copy(update={"training": training})})


@dataclass
class PrefixedFile:
    """R17: the first stage as a file whose names begin with ``module.``, as DataParallel leaves it."""

    at_step: int
    struck_at: int | None = field(default=None, init=False)
    sighted: Sighting | None = field(default=None, init=False)
    broke: list[str] = field(default_factory=list, init=False)

    def inject(self, ground: Ground) -> None:
        """Import it into a folder of its own; then train on."""
        self.struck_at, path = self.at_step, ground.folder / "prefixed.pt"
        export_first_stage(in_folder(ground.config, ground.folder.parent), path)
        content = torch.load(path, weights_only=True)
        content["model"] = {f"module.{name}": tensor for name, tensor in content["model"].items()}
        torch.save(content, path)
        try:
            import_model(path, in_folder(ground.config, ground.folder / "imported"))
            self.broke.append("the file was taken for a first stage")
        except ConfigError as error:
            self.sighted = Sighting("C", "import", self.at_step, str(error))
        ground.train()


def in_folder(config: Config, folder: Path) -> Config:
    """The same run elsewhere."""
    folder.mkdir(exist_ok=True)
    return config.model_copy(update={"run": config.run.model_copy(update={"folder": folder})})


@dataclass
class PlannedChange:
    """R25: in the midst of the first stage the adversary takes part, and the loss is another one by plan."""

    at_step: int
    struck_at: int | None = field(default=None, init=False)
    broke: list[str] = field(default_factory=list, init=False)

    def inject(self, ground: Ground) -> None:
        """Train a first stage whose adversary begins half-way; then the second as ever."""
        section = ground.config.first_stage
        half = section.training.steps // 2
        section = section.model_copy(update={"model": section.model.model_copy(update={"disc_start": half})})
        config = ground.config.model_copy(update={"first_stage": section})
        stage = first_stage_of(config, ground.maps)
        run_stage(config, stage)
        record = RunRecord.load(stage.folder / "record.json")
        self.struck_at = half
        alarms = [*record.findings, *record.rollbacks, *record.skips, *record.changes]
        self.broke += [f"a planned change raised an alarm: {one}" for one in alarms[:3]]
        ground.train()
