"""The ground that drills run on: a configuration, maps, a first stage trained once, and a twin."""

import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer.checkpoint import Manifest, list_records, read
from trainer.config import Config
from trainer.data.items import collate
from trainer.data.radiomaps import RadioMaps
from trainer.drill.judge import Twin
from trainer.errors import ConfigError, TrainerError
from trainer.loop import Loop, Observer
from trainer.passes import Phase
from trainer.pipeline import set_up_torch, train, train_diffusion
from trainer.probe import Probe
from trainer.ranks import Ranks
from trainer.trained import trained_first_stage

log = logging.getLogger(__name__)

DRILL_CONFIG = Path(__file__).parents[2] / "deploy/configs/drill.toml"
_AUTOENCODER = "autoencoder.safetensors"
_DRAWS = 16
_WARM = "warm"
"""Where the twin's checkpoints lie as they were shortly before the strike."""
_KEPT = ("checkpoints", "record.json")


@dataclass
class Arena:
    """One drill's own folder on common ground."""

    config: Config
    autoencoder: Mapping[str, Tensor]
    maps: RadioMaps
    ended: list[str] = field(default_factory=list)
    """How each training ended: ``finished``, or the name and words of what ended it."""
    loop: Loop | None = None
    ranks: Ranks = field(default_factory=Ranks)

    @classmethod
    def at(cls, config: Config, autoencoder: Mapping[str, Tensor]) -> "Arena":
        """A ground whose folder is the configuration's."""
        set_up_torch(config)
        config.run.folder.mkdir(parents=True, exist_ok=True)
        return cls(config, autoencoder, RadioMaps(config.data, "train"))

    @property
    def folder(self) -> Path:
        return self.config.run.folder

    def warm_up(self, common: Path) -> None:
        """Take over what the twin had kept shortly before the strike: the run goes on from there.

        So a drill is a run that was killed and resumed, and what came before is trained once for all of them.
        Where nothing had been kept by then, it begins at step 0.
        """
        copy_run(common / _WARM, self.folder)

    def train(self, observers: Sequence[Observer] = (), maps: RadioMaps | None = None) -> None:
        """Train the second stage to its end, or on from its newest checkpoint."""
        try:
            # a run that is at its end already enters no phase, and has a loop all the same
            self.loop, _ = train_diffusion(
                self.config,
                maps if maps is not None else self.maps,
                self.autoencoder,
                lambda stage: [*observers, self._watch],
                self.ranks,
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
        return sum(probe.of_average(state.step) for probe in probes) / _DRAWS

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


def clear(folder: Path) -> None:
    """Empty a folder of earlier drills, and nothing that is not one."""
    if folder.exists() and any(folder.iterdir()) and not (folder / "twin.json").exists():
        raise ConfigError(f"{folder} is in the way and holds no earlier drills; name another with --folder")
    shutil.rmtree(folder, ignore_errors=True)


def lay(config: Config) -> Twin:
    """Prepare the folder that all drills stand on: the first stage, and the twin that nothing happens to."""
    train(changed(config, {"run.stages": "first_stage"}))
    trained = trained_first_stage(config)
    with trained.ema.in_place_of(trained.model):
        autoencoder = {name: one.clone() for name, one in trained.model.autoencoder.state_dict().items()}
    save_file(
        {name: tensor.contiguous() for name, tensor in autoencoder.items()}, config.run.folder / _AUTOENCODER
    )
    arena = Arena.at(inside(config, "twin"), autoencoder)
    begun = time.perf_counter()
    arena.train([_Keep(strikes_at(config) - 1, config.run.folder / _WARM)])
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


def strikes_at(config: Config) -> int:
    """When the guards have learned, and off the steps at which anything is kept: a fault should be old news
    to no snapshot."""
    return config.diffusion.training.steps * 63 // 100


def copy_run(source: Path, into: Path) -> None:
    """What a new process needs to go on with a run: its checkpoints and its record, where there are any."""
    into.mkdir(parents=True, exist_ok=True)
    for name in _KEPT:
        if (source / name).is_dir():
            shutil.copytree(source / name, into / name)
        elif (source / name).exists():
            shutil.copy(source / name, into / name)


class _Keep:
    """Copies at a step what the run would leave if it were killed there, once."""

    def __init__(self, at_step: int, into: Path) -> None:
        self._at_step, self._into, self._is_done = at_step, into, False

    def __call__(self, phase: Phase, loop: Loop) -> None:
        if phase is Phase.FETCH and loop.state.step >= self._at_step and not self._is_done:
            self._is_done = True
            writer: Any = loop.recovery._writer
            writer.drain()
            copy_run(loop.recovery.ring.root.parent, self._into)  # type: ignore[attr-defined]


def autoencoder_of(common: Path) -> dict[str, Tensor]:
    """The first stage that ``lay`` trained in that folder."""
    return load_file(common / _AUTOENCODER)


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
