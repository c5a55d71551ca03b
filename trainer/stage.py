"""One training as it is described: what is trained, on what, under which name, and where its files go."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from trainer.checkpoint import list_records
from trainer.config import Config, TrainingConfig
from trainer.data.items import collate
from trainer.data.radiomaps import RadioMaps
from trainer.radiodiff.diffusion import LatentDiffusion
from trainer.radiodiff.first_stage import FirstStage
from trainer.section import Section

CHECKPOINTS = "checkpoints"
"""Where they lie in a stage's folder."""


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


def has_checkpoints(folder: Path) -> bool:
    """Whether the stage in that folder has any, usable or not."""
    return (folder / CHECKPOINTS).is_dir() and bool(list_records(folder / CHECKPOINTS))


def first_stage_folder(config: Config) -> Path:
    """Where the first stage's files go; those of the second lie in the run's own folder."""
    return config.run.folder / "first-stage"


def first_stage_of(config: Config, maps: RadioMaps) -> Stage:
    """The training of the autoencoder, with new weights."""
    set_seed(config.run.seed)
    model = FirstStage(config.first_stage.model).to(config.run.device)
    name = f"{config.run.name}-first-stage"
    settings = _settings(config, config.first_stage)
    return Stage(name, first_stage_folder(config), model, config.first_stage.training, maps, settings)


def diffusion_of(config: Config, maps: RadioMaps) -> Stage:
    """The training of the latent diffusion model, with new weights."""
    set_seed(config.run.seed + 1)
    model = LatentDiffusion(config.diffusion.model).to(config.run.device)
    settings = _settings(config, config.diffusion)
    return Stage(config.run.name, config.run.folder, model, config.diffusion.training, maps, settings)


def _settings(config: Config, stage: Section) -> dict[str, Any]:
    shaping = stage.model_dump(mode="json", exclude={"sampling"})
    return {"data": config.data.model_dump(mode="json", exclude={"cache", "cache_folder"}), **shaping}


def probe_batch(stage: Stage, device: torch.device, size: int = 4) -> dict[str, torch.Tensor]:
    """The first items of the training maps as they lie in the data set: the same batch for the whole run."""
    batch = collate([stage.source[index] for index in range(min(size, len(stage.source)))])
    return {"image": batch["image"].to(device), "cond": batch["cond"].to(device)}


def set_seed(seed: int) -> None:
    """Set every random state that a checkpoint keeps: a twin run has the same ones from its first step."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
