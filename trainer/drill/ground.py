"""The ground that drills run on: a configuration, maps, a first stage trained once, and a twin."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer.checkpoint import Manifest, list_records, read
from trainer.config import Config
from trainer.data.items import collate
from trainer.data.radiomaps import RadioMaps
from trainer.errors import TrainerError
from trainer.loop import Loop, Observer, Phase
from trainer.pipeline import prepare, train, train_diffusion
from trainer.probe import Probe
from trainer.ranks import Ranks
from trainer.trained import trained_first_stage

log = logging.getLogger(__name__)

DRILL_CONFIG = Path(__file__).parents[2] / "deploy/configs/drill.toml"
_AUTOENCODER = "autoencoder.safetensors"
_DRAWS = 16


class Twin(BaseModel):
    """How the same training goes when nothing happens."""

    loss: float
    seconds: float
    findings: int
    hashes: dict[str, str]


@dataclass
class Arena:
    """One drill's own folder on common ground."""

    config: Config
    autoencoder: Mapping[str, Tensor]
    maps: RadioMaps
    ended: list[str] = field(default_factory=list)
    """How each training ended: ``finished``, or the name and words of what ended it."""
    loop: Loop | None = None

    @classmethod
    def at(cls, config: Config, autoencoder: Mapping[str, Tensor]) -> "Arena":
        """A ground whose folder is the configuration's."""
        prepare(config)
        return cls(config, autoencoder, RadioMaps(config.data, "train"))

    @property
    def folder(self) -> Path:
        return self.config.run.folder

    def train(self, observers: Sequence[Observer] = (), maps: RadioMaps | None = None) -> None:
        """Train the second stage to its end, or on from its newest checkpoint."""
        try:
            train_diffusion(
                self.config,
                maps if maps is not None else self.maps,
                self.autoencoder,
                lambda stage: [*observers, self._watch],
                Ranks(),
            )
            self.ended.append("finished")
        except Exception as error:  # a crash is a result as well: the row says that it was one
            log.warning("the training ended", exc_info=not isinstance(error, TrainerError))
            self.ended.append(f"{type(error).__name__}: {error}")

    def final_loss(self) -> float:
        """Loss of the averaged weights over all maps, held out ones too, at fixed times and noise.

        One batch of maps with several draws of times: a single one says more about them than about weights.
        """
        assert self.loop is not None
        state = self.loop.state
        splits = (self.maps, RadioMaps(self.config.data, "test"))
        batch = collate([maps[index] for maps in splits for index in range(len(maps))])
        tensors = {"image": batch["image"], "cond": batch["cond"]}
        probes = (Probe(state.model, state.ema, tensors, seed) for seed in range(_DRAWS))
        return sum(probe.measure(state.step)["ema"] for probe in probes) / _DRAWS

    def hashes(self) -> dict[str, str]:
        """Hash of each tensor of the last checkpoint; equal ones mean a state that is equal to the bit."""
        records = list_records(self.folder / "checkpoints")
        manifest: Manifest = read(records[0].path).manifest
        return {
            f"{part}/{name}": entry.xxh3_128
            for part, entries in manifest.parts.items()
            for name, entry in entries.items()
        }

    def _watch(self, phase: Phase, loop: Loop) -> None:
        self.loop = loop


def lay(config: Config) -> Twin:
    """Prepare the folder that all drills stand on: the first stage, and the twin that nothing happens to."""
    train(changed(config, {"run.stages": "first_stage"}))
    trained = trained_first_stage(config)
    with trained.ema.in_place_of(trained.model):
        autoencoder = {name: one.clone() for name, one in trained.model.autoencoder.state_dict().items()}
    save_file({name: tensor.contiguous() for name, tensor in autoencoder.items()}, _weights_of(config))
    arena = Arena.at(inside(config, "twin"), autoencoder)
    begun = time.perf_counter()
    arena.train()
    assert arena.loop is not None
    record = arena.loop.reporter.record
    twin = Twin(
        loss=arena.final_loss(),
        seconds=time.perf_counter() - begun,
        findings=len(record.findings),
        hashes=arena.hashes(),
    )
    (config.run.folder / "twin.json").write_text(twin.model_dump_json())
    return twin


def autoencoder_of(config: Config) -> dict[str, Tensor]:
    """The first stage that ``lay`` trained."""
    return load_file(_weights_of(config))


def twin_of(config: Config) -> Twin:
    """The twin that ``lay`` trained."""
    return Twin.model_validate_json((config.run.folder / "twin.json").read_bytes())


def inside(config: Config, name: str) -> Config:
    """The same configuration in a folder of its own below the common one."""
    return changed(config, {"run.folder": config.run.folder / name})


def changed(config: Config, changes: Mapping[str, Any]) -> Config:
    """The configuration with other values at dotted paths."""
    sections = config.model_dump()
    for path, value in changes.items():
        *above, key = path.split(".")
        section = sections
        for name in above:
            section = section[name]
        section[key] = value
    return Config.model_validate(sections)


def _weights_of(config: Config) -> Path:
    return config.run.folder / _AUTOENCODER
