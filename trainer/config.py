"""A run's configuration: gathers the sections that each part declares, and reads them from TOML."""

import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, ValidationError, field_validator, model_validator

from shared.base import Name
from trainer.data.batches import LoadingConfig
from trainer.data.radiomaps import RadioMapsConfig
from trainer.ema import EmaConfig
from trainer.errors import ConfigError
from trainer.guards.at_rest import AtRestConfig
from trainer.guards.drift import DriftConfig
from trainer.guards.foresight import ForesightConfig
from trainer.guards.gradients import GradientsConfig
from trainer.guards.invariants import InvariantsConfig
from trainer.guards.nonfinite import NonfiniteConfig
from trainer.guards.overflow import OverflowConfig
from trainer.guards.replicas import ReplicasConfig
from trainer.guards.saturation import SaturationConfig
from trainer.guards.spike import SpikeConfig
from trainer.guards.underflow import UnderflowConfig
from trainer.link.config import LinkConfig
from trainer.objective import OptimizerConfig
from trainer.precision import Precision
from trainer.radiodiff.diffusion import DiffusionConfig
from trainer.radiodiff.first_stage import FirstStageConfig
from trainer.recovery import RecoveryConfig
from trainer.section import Section
from trainer.watchdog import WatchdogConfig


class RunConfig(Section):
    """What the run is called, where it lives, and on what it runs."""

    name: Name = Field("radiodiff", description="The run's name, here and in the monitor.")
    project: Name = Field("default", description="Runs of one project are shown together.")
    folder: Path = Field(Path("runs/radiodiff"), description="All that the run leaves behind.")
    stages: Literal["both", "first_stage", "diffusion"] = Field(
        "both",
        description="What `run` trains. The diffusion alone takes the autoencoder that lies in the folder.",
    )
    seed: int = Field(0, ge=0, description="Fixes weights, noise and the order of the data.")
    device: str = Field("cpu", description="A torch device: cpu, cuda, cuda:1.")
    threads: int = Field(
        1, ge=1, description="CPU threads of torch; more than the free cores makes it slower."
    )

    rank_timeout_s: float = Field(
        600.0, gt=0, description="How long ranks wait for each other before they call one lost, seconds."
    )

    drawn_maps: int = Field(
        2, ge=0, le=4, description="Held-out maps drawn at each checkpoint for the monitor's page; 0: none."
    )

    @field_validator("device")
    @classmethod
    def _is_a_device(cls, name: str) -> str:
        try:
            kind = torch.device(name).type
        except RuntimeError:
            kind = ""
        if kind not in ("cpu", "cuda"):
            raise ValueError("not a device to train on; choose cpu, cuda, or one of several: cuda:1")
        return name


class TrainingConfig(Section):
    """How one stage is trained."""

    steps: int = Field(50_000, ge=1, description="Applied updates.")
    micro_batches: int = Field(
        1, ge=1, description="Equal pieces that a batch is computed in; they share one update, and memory."
    )
    precision: Precision = Field(
        "fp32", description="Of the forward pass: fp32, or bf16 or fp16 (with a loss scale) under autocast."
    )
    gradient_checkpointing: bool = Field(
        False, description="Compute blocks a second time in backward, to keep less of them in memory."
    )
    channels_last: bool = Field(
        False, description="Keep convolutions' channels innermost: faster on GPUs in half precision."
    )
    parallel: Literal["ddp", "fsdp2"] = Field(
        "ddp", description="Each of several ranks holds the whole model; or a share of it (diffusion only)."
    )
    loading: LoadingConfig = LoadingConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    ema: EmaConfig = EmaConfig()

    @model_validator(mode="after")
    def _pieces_are_equal(self) -> Self:
        size, pieces = self.loading.batch_size, self.micro_batches
        if size % pieces:
            raise ValueError(
                f"loading.batch_size {size} can't be divided into {pieces} equal micro_batches; give a "
                "batch_size that is a multiple of micro_batches"
            )
        return self


class GuardsConfig(Section):
    """The guards' own sections."""

    spike: SpikeConfig = SpikeConfig()
    drift: DriftConfig = DriftConfig()
    foresight: ForesightConfig = ForesightConfig()
    nonfinite: NonfiniteConfig = NonfiniteConfig()
    invariants: InvariantsConfig = InvariantsConfig()
    gradients: GradientsConfig = GradientsConfig()
    at_rest: AtRestConfig = AtRestConfig()
    overflow: OverflowConfig = OverflowConfig()
    saturation: SaturationConfig = SaturationConfig()
    underflow: UnderflowConfig = UnderflowConfig()
    replicas: ReplicasConfig = ReplicasConfig()


class FirstStageSection(Section):
    """The autoencoder and its training."""

    model: FirstStageConfig = FirstStageConfig()
    training: TrainingConfig = TrainingConfig()

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.training.parallel != "ddp":
            raise ValueError(
                f"training.parallel is {self.training.parallel}, but only the diffusion can be sharded: here "
                "one objective flows through the other's weights; leave it at ddp"
            )
        return self


class SamplingConfig(Section):
    """How maps are drawn for evaluation."""

    steps: int = Field(5, ge=1, description="Sampling steps; the U-Net runs once more than that.")
    seed: int = Field(0, ge=0, description="Fixes the noise that maps are drawn from.")
    draws: int = Field(
        1,
        ge=1,
        description="Maps drawn for each condition; their mean is the answer, with less error than one.",
    )


class DiffusionSection(Section):
    """The latent diffusion model, its training, and how maps are drawn from it."""

    model: DiffusionConfig = DiffusionConfig()
    training: TrainingConfig = TrainingConfig()
    sampling: SamplingConfig = SamplingConfig()


class Config(Section):
    """Everything a run is built from. The diffusion model takes over the first stage's autoencoder."""

    run: RunConfig = RunConfig()
    data: RadioMapsConfig = RadioMapsConfig()
    first_stage: FirstStageSection = FirstStageSection()
    diffusion: DiffusionSection = DiffusionSection()
    guards: GuardsConfig = GuardsConfig()
    recovery: RecoveryConfig = RecoveryConfig()
    watchdog: WatchdogConfig = WatchdogConfig()
    link: LinkConfig = LinkConfig()

    @model_validator(mode="before")
    @classmethod
    def _share_the_autoencoder(cls, sections: Any) -> Any:
        try:
            autoencoder = sections["first_stage"]["model"]["autoencoder"]
            diffusion = sections.get("diffusion", {})
            model = {"autoencoder": autoencoder, **diffusion.get("model", {})}
            return {**sections, "diffusion": {**diffusion, "model": model}}
        except (KeyError, TypeError, AttributeError):
            return sections  # nothing to share, or no table where one belongs: the fields say so

    @model_validator(mode="after")
    def _stages_agree(self) -> Self:
        if self.first_stage.model.autoencoder != self.diffusion.model.autoencoder:
            raise ValueError(
                "first_stage.model.autoencoder and diffusion.model.autoencoder differ, but the second stage "
                "works on the first one's latents; give it once, under first_stage"
            )
        return self


def load(path: Path) -> Config:
    """The configuration in a TOML file.

    Raises:
        ConfigError: the file can't be read, is no TOML, or a key is unknown or has a value that will not do;
            one line each with path, value, and what is allowed.
    """
    try:
        sections = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    try:
        return Config.model_validate(sections)
    except ValidationError as error:
        lines = map(_in_words, _told_once(error.errors()))
        raise ConfigError(f"{path} will not do:\n" + "\n".join(lines)) from error


def _told_once(problems: Sequence[Any]) -> Iterator[Any]:
    """Without those that the second stage has only because it shares the first one's autoencoder."""
    first, second = ("first_stage", "model", "autoencoder"), ("diffusion", "model", "autoencoder")
    known = [(problem["loc"][3:], problem["msg"]) for problem in problems if problem["loc"][:3] == first]
    for problem in problems:
        if problem["loc"][:3] != second or (problem["loc"][3:], problem["msg"]) not in known:
            yield problem


def _in_words(problem: Any) -> str:
    """``  recovery.ring.keep_good = 0: Input should be greater than or equal to 2``."""
    keys = [str(key) for key in problem["loc"]]
    where = ".".join(keys) or "the configuration"
    if problem["type"] == "extra_forbidden":
        return f"  {where}: no such key; there are {', '.join(_keys_beside(keys))}"
    found = "" if isinstance(problem["input"], dict) else f" = {problem['input']!r}"
    if problem["type"] == "model_type":
        return f"  {where}{found}: this is a table; write its keys under [{where}]"
    return f"  {where}{found}: {problem['msg'].removeprefix('Value error, ')}"


def _keys_beside(keys: list[str]) -> list[str]:
    section: Any = Config
    for key in keys[:-1]:
        section = section.model_fields[key].annotation
    return list(section.model_fields)
