"""Does an incident's step once more: its batch, random states and weights, with hooks on every module."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from shared.events import Incident
from trainer.checkpoint import list_records, read
from trainer.checkpoint.container import parse
from trainer.config import Config
from trainer.errors import ConfigError
from trainer.guards.base import StepLosses
from trainer.guards.culprit import Culprit
from trainer.guards.randomness import Randomness
from trainer.guards.suspect import Suspect
from trainer.precision import computing_in
from trainer.probe import Trainee
from trainer.radiodiff.diffusion import LatentDiffusion
from trainer.radiodiff.first_stage import FirstStage
from trainer.stage import CHECKPOINTS

Origin = Mapping[str, Any]
BuildModel = Callable[[Origin], nn.Module]


@dataclass(frozen=True)
class Reenactment:
    """What came out: ``suspect`` is the first module that went wrong now, None if nothing did."""

    incident: Incident
    weights: str
    suspect: Suspect | None
    bad_samples: tuple[str, ...]

    @property
    def is_as_recorded(self) -> bool:
        """Whether the same came out as then; a transient fault, and a spike, come out clean."""
        then = self.incident
        if then.kind in ("weights", "state") and then.module is None:
            return True  # found by a scan: the record names a tensor, and no module
        return (self.suspect.module if self.suspect else None) == then.module

    def facts(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "incident": self.incident.incident,
            "kind": self.incident.kind,
            "recorded_module": self.incident.module,
            "module": self.suspect.module if self.suspect else None,
            "phase": self.suspect.phase if self.suspect else None,
            "bad_samples": list(self.bad_samples),
            "weights": self.weights,
            "is_as_recorded": self.is_as_recorded,
        }

    def in_words(self) -> str:
        """For a person."""
        then = self.incident
        lines = [
            f"{then.incident}: {then.message}",
            f"recorded: {then.kind}, {f'module {then.module}' if then.module else 'no module'}",
            f"now: {self.suspect.in_words() if self.suspect else 'everything is finite'} ({self.weights})",
        ]
        if self.bad_samples:
            lines.append(f"bad by itself: {', '.join(self.bad_samples)}")
        lines.append("as recorded" if self.is_as_recorded else "NOT as recorded")
        return "\n".join(lines)


def model_of(origin: Origin) -> nn.Module:
    """The model that a run was built with, weights new.

    Raises:
        ConfigError: its configuration is not one of this version.
    """
    try:
        config = Config.model_validate(origin["config"])
    except ValidationError as error:
        raise ConfigError(f"the incident's configuration is of another version: {error}") from error
    if origin["run"] == f"{config.run.name}-first-stage":
        return FirstStage(config.first_stage.model)
    return LatentDiffusion(config.diffusion.model)


def reenact(folder: Path, build: BuildModel = model_of, device: str = "cpu") -> Reenactment:
    """Replay the incident in ``folder``.

    Raises:
        ConfigError: the folder holds no incident, or one without a batch or with no weights to be had.
    """
    incident, origin = _read(folder)
    step = origin["step"]
    if not step:
        raise ConfigError(
            f"{folder} has no batch: this fault was found in the state and not in a step, so nothing can be "
            f"replayed; incident.json says what was found"
        )
    place = torch.device(device)
    model = build(origin).to(place)
    assert isinstance(model, Trainee)
    weights, named = _weights(folder, step["has_model"], incident.step)
    model.load_state_dict(weights)
    tensors = parse((folder / "batch.safetensors").read_bytes())
    batch = {**step["batch"], **{key: value.to(place) for key, value in tensors.items()}}

    def losses_of(part: Mapping[str, Any]) -> StepLosses:
        with computing_in(step.get("precision", "fp32"), place):
            return model.training_step(part, step["objective"], step["number"])

    culprit = Culprit(model, losses_of, _randomness(folder, place), step.get("micro_batches", 1))
    model.train()
    suspect = culprit.find(batch)
    places = culprit.bad_samples(batch) if suspect and incident.kind == "data" else ()
    ids = step["batch"].get("ids", [])
    return Reenactment(incident, named, suspect, tuple(ids[at] for at in places if at < len(ids)))


def _read(folder: Path) -> tuple[Incident, dict[str, Any]]:
    try:
        incident = Incident.model_validate_json((folder / "incident.json").read_bytes())
        return incident, json.loads((folder / "origin.json").read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{folder} is no incident ({error}); name a folder under RUN_FOLDER/incidents"
        ) from error


def _weights(folder: Path, is_kept: bool, step: int) -> tuple[dict[str, Tensor], str]:
    """Those kept with the incident, else of the newest checkpoint from before it."""
    if is_kept:
        return parse((folder / "model.safetensors").read_bytes()), "weights of that step"
    root = folder.parent.parent / CHECKPOINTS
    before = [one for one in list_records(root) if one.step <= step] if root.is_dir() else []
    if not before:
        raise ConfigError(
            f"{folder} was kept without the model (recovery.incidents.model_mb), and no checkpoint from "
            f"before step {step} is left"
        )
    return dict(read(before[0].path).parts["model"]), f"weights of {before[0].name}, the nearest before it"


def _randomness(folder: Path, device: torch.device) -> Randomness:
    """A GPU's state is of use on a GPU alone: on a CPU such a step draws other numbers."""
    states = parse((folder / "random.safetensors").read_bytes())
    on_device = states.get("device") if device.type == "cuda" else None
    return Randomness(states["host"], device, on_device)
