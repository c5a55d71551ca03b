"""The commands that work on a trained model: what each is told, does, and answers."""

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config import Config, load
from trainer.console import counted
from trainer.data.radiomaps import RadioMaps
from trainer.errors import ConfigError
from trainer.evaluation import evaluate
from trainer.files import replace_file
from trainer.importing import export_diffusion, export_first_stage, import_model
from trainer.pipeline import prepare, set_up_torch
from trainer.reenact import reenact
from trainer.replaying import replay_log
from trainer.sampling import Place, draw_place
from trainer.trained import prove, trained_diffusion

Answer = tuple[dict[str, Any], str]
"""Facts for ``--json``, and the same in words."""


@dataclass(frozen=True)
class Command:
    """What a command is told besides its configuration, and what it does."""

    add_arguments: Callable[[argparse.ArgumentParser], None]
    work: Callable[[argparse.Namespace], Answer]


def _import_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL.pt", help="upstream's file, of either stage")
    parser.add_argument("config", type=Path, metavar="CONFIG")


def _import(arguments: argparse.Namespace) -> Answer:
    config = load(arguments.config)
    prepare(config)
    done = import_model(arguments.model, config)
    facts = {
        "run": done.run,
        "stage": done.file.kind,
        "checkpoint": done.record.model_dump(mode="json"),
        "has_ema": done.file.ema is not None,
        "left_out": done.num_left_out,
    }
    return facts, done.in_words()


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, metavar="CONFIG")
    parser.add_argument("out", type=Path, metavar="OUT.pt")
    parser.add_argument("--ema", action="store_true", help="the averaged weights alone, as the model")
    parser.add_argument("--first-stage", action="store_true", help="the autoencoder instead of the diffusion")


def _export(arguments: argparse.Namespace) -> Answer:
    config = _config_of(arguments, arguments.out)
    export = export_first_stage if arguments.first_stage else export_diffusion
    record = export(config, arguments.out, averaged=arguments.ema)
    facts = {"file": str(arguments.out), "checkpoint": record.name, "step": record.step}
    return facts, f"{arguments.out} holds {record.name} as upstream's files do"


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, metavar="CONFIG")
    parser.add_argument("--split", choices=("train", "val", "test"), default="test")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N maps only")
    parser.add_argument("--csv", type=Path, metavar="F", help="a row for each drawn map")
    parser.add_argument("--picture", type=Path, metavar="F", help="truth, drawn and error of four maps")
    parser.add_argument("--live", action="store_true", help="the live weights instead of their average")


def _evaluate(arguments: argparse.Namespace) -> Answer:
    if arguments.limit is not None and arguments.limit < 1:
        raise ConfigError(f"--limit {arguments.limit}: give 1 or more maps")
    config = _config_of(arguments, arguments.csv, arguments.picture)
    train, held_out = (RadioMaps(config.data, split) for split in ("train", arguments.split))
    with counted() as progress:
        trained = trained_diffusion(config)
        prove(trained, config, train)
        with trained.weights(averaged=not arguments.live) as model:
            sampling = config.diffusion.sampling
            limits = {"limit": arguments.limit, "progress": progress}
            evaluation = evaluate(model, train, held_out, sampling, arguments.picture, **limits)
    if arguments.csv is not None:
        replace_file(arguments.csv, evaluation.as_csv())
    weights = "live" if arguments.live else "averaged"
    origin = f"{trained.record.name}, {weights} weights, {sampling.steps} sampling steps"
    facts = {"checkpoint": trained.record.name, "weights": weights, "sampling": sampling.model_dump()}
    return {**facts, **json.loads(evaluation.model_dump_json())}, "\n".join([origin, *evaluation.lines()])


def _sample_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, metavar="CONFIG")
    parser.add_argument(
        "--buildings",
        type=Path,
        required=True,
        metavar="MASK.png",
        help="256 x 256 gray: 255 inside, 0 outside",
    )
    parser.add_argument(
        "--transmitter", required=True, metavar="ROW,COL", help="in pixels of the mask, from 0 on"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="MAP.png")
    parser.add_argument("--steps", type=int, metavar="N", help="sampling steps; default: the configuration's")
    parser.add_argument("--seed", type=int, metavar="N", help="of the noise; default: the configuration's")
    parser.add_argument("--live", action="store_true", help="the live weights instead of their average")


def _sample(arguments: argparse.Namespace) -> Answer:
    config = _config_of(arguments, arguments.out)
    place = Place.parse(arguments.buildings, arguments.transmitter)
    asked = {"steps": arguments.steps, "seed": arguments.seed}
    changes = {name: value for name, value in asked.items() if value is not None}
    sampling = config.diffusion.sampling.model_copy(update=changes)
    facts = dict(draw_place(config, place, arguments.out, sampling, averaged=not arguments.live))
    words = (
        "{map}: {side_pixels} x {side_pixels} pixels of {pixel_m} m, drawn from {checkpoint} in {steps} steps"
    )
    return facts, words.format(**facts)


def _replay_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "log",
        type=Path,
        metavar="PATH",
        help="a log: CSV, trainer_state.json, an event file; or the folder of an incident",
    )
    parser.add_argument("--loss", metavar="NAME", help="the column or tag of the loss, if not the usual one")


def _replay(arguments: argparse.Namespace) -> Answer:
    if arguments.log.is_dir():
        done = reenact(arguments.log)
        return done.facts(), done.in_words()
    return replay_log(arguments.log, arguments.loss)


def _config_of(arguments: argparse.Namespace, *outputs: Path | None) -> Config:
    """The configuration, once it is sure that what is found can be written: drawing takes its time."""
    for path in outputs:
        if path is not None and not path.parent.is_dir():
            raise ConfigError(f"cannot write {path}: there is no folder {path.parent}; make it first")
    config = load(arguments.config)
    set_up_torch(config)
    return config


COMMANDS: Mapping[str, Command] = {
    "import": Command(_import_arguments, _import),
    "export": Command(_export_arguments, _export),
    "evaluate": Command(_evaluate_arguments, _evaluate),
    "sample": Command(_sample_arguments, _sample),
    "replay": Command(_replay_arguments, _replay),
}
