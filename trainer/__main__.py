"""The trainer's commands: parse, build, run, close. ``--help`` lists them; each understands ``--json``."""

import argparse
import json
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trainer.checkpoint import CheckpointInvalid, list_records, read
from trainer.commands import COMMANDS, Answer
from trainer.config import load
from trainer.console import narrated
from trainer.data.errors import DataError
from trainer.data.radiomaps import RadioMaps
from trainer.drill import command as drill_command
from trainer.drill.demo import demo
from trainer.errors import ConfigError, TrainerError
from trainer.link.config import LinkConfig
from trainer.link.delivery import deliver
from trainer.link.outbox import SpoolError
from trainer.loop import Loop
from trainer.passes import Phase
from trainer.pipeline import prepare, require_autoencoder, train
from trainer.ranks import rank_here

_ABOUT = {
    "run": "train, or go on where the run's folder says it was",
    "check": "will it run? configuration, folder, data; trains nothing",
    "checkpoints": "list a run's checkpoints; --verify reads and proves each one",
    "deliver": "send what an ended run left in its spool",
    "evaluate": "draw a split's maps and score them beside two simple guesses",
    "sample": "draw the map of a place of your own",
    "import": "make an upstream checkpoint one of ours, to go on from or to draw with",
    "export": "write one of ours as an upstream checkpoint, so that you can leave again",
    "replay": "what the guards say about a log; or an incident's step once more, from its folder",
    "drill": "inject faults into a training, see them seen and healed; exits 1 if one falls short",
    "demo": "the watched run of `make run`",
}

FELL_SHORT = 5
"""Exit code: it ran to its end, but not as it should."""

TERMINATED = 128 + signal.SIGINT
"""Exit code: somebody ended it from outside."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; answers the exit code (see ``trainer.errors``)."""
    arguments = _parser().parse_args(argv)
    work: Callable[[argparse.Namespace], int] = arguments.work
    try:
        return work(arguments)
    except TrainerError as error:
        return _refuse(arguments, error, error.exit_code)
    except DataError as error:
        return _refuse(arguments, error, ConfigError.exit_code)
    except OSError as error:  # a full disk, say: the system's own words and the file
        return _refuse(arguments, error, TrainerError.exit_code)
    except KeyboardInterrupt:
        return TERMINATED


def _run(arguments: argparse.Namespace) -> int:
    config = load(arguments.config)
    stop = _StopOnSignal()
    with narrated(rank=rank_here()) as progress:
        summary = train(config, lambda stage: [stop, progress])
    if summary is not None:
        words = f"{summary.run}: {summary.status} at step {summary.steps}"
        _say(arguments, json.loads(summary.as_json()), words)
    return 0


def _check(arguments: argparse.Namespace) -> int:
    config = load(arguments.config)
    prepare(config)
    require_autoencoder(config)
    sizes = {split: len(RadioMaps(config.data, split)) for split in ("train", "test")}
    words = f"{arguments.config} will run: {sizes['train']} maps to train on, {sizes['test']} held out"
    _say(arguments, {"maps": sizes, "folder": str(config.run.folder)}, words)
    return 0


def _checkpoints(arguments: argparse.Namespace) -> int:
    folder: Path = arguments.folder
    folder = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}; name a run's folder, or its checkpoints")
    rows = [
        _row(record.path, record.model_dump(mode="json"), arguments.verify) for record in list_records(folder)
    ]
    lines = [f"{row['name']:<32}{row['state']:<9}{row['proof']}" for row in rows]
    _say(arguments, {"checkpoints": rows}, "\n".join(lines) or f"no checkpoints in {folder}")
    is_damaged = any(
        row["proof"] not in ("", "proved") and row["failed_check"] != "abandoned" for row in rows
    )
    return FELL_SHORT if arguments.verify and is_damaged else 0


def _row(path: Path, facts: dict[str, Any], verify: bool) -> dict[str, Any]:
    reason = f"{facts['failed_check']}: {facts['found']}" if facts["failed_check"] else ""
    if verify and not reason:
        try:
            read(path)
            return {**facts, "proof": "proved"}
        except CheckpointInvalid as error:
            reason = f"{error.check}: {error.found}"
    return {**facts, "proof": reason}


def _deliver(arguments: argparse.Namespace) -> int:
    try:
        counts = deliver(arguments.folder, LinkConfig(url=arguments.url))
    except ValidationError as error:
        problem = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ConfigError(f"--url: {problem}") from error
    except (ValueError, OSError, SpoolError) as error:
        raise ConfigError(str(error)) from error
    _say(arguments, counts.model_dump(), f"{counts.pending_batches} batches still wait")
    return 0 if counts.pending_batches == 0 else FELL_SHORT


def _demo(arguments: argparse.Namespace) -> int:
    is_terminated = False  # no Event: its lock is not reentrant, and a second signal may come amid the first

    def end(number: int, frame: object) -> None:
        # Else the monitor, a program of its own, would stay behind with the port. Not KeyboardInterrupt:
        # raised in code made from a text, a dataclass's say, it ends `python -m` by SIGINT.
        nonlocal is_terminated
        is_terminated = True
        sys.exit(TERMINATED)

    signal.signal(signal.SIGTERM, end)
    try:
        code = _demo_to_its_end(arguments)
    except Exception:
        if is_terminated:  # amid an import, say, the exit comes out as another error
            return TERMINATED
        raise
    return TERMINATED if is_terminated else code  # in a callback of C code the exit may be swallowed


def _demo_to_its_end(arguments: argparse.Namespace) -> int:
    with narrated() as progress:
        summary = demo(
            arguments.folder,
            arguments.port,
            resume=arguments.resume,
            progress=progress,
            hold=sys.stdout.isatty(),
        )
    went_well = "resumed, so nothing was broken" if arguments.resume else "the story went as it should"
    story = "; ".join(summary.fell_short) or went_well
    words = f"demo: {summary.status} at step {summary.steps}; {story}"
    _say(arguments, json.loads(summary.as_json()), words)
    return FELL_SHORT if summary.fell_short else 0


def _drill(arguments: argparse.Namespace) -> int:
    with narrated():
        facts, words, went_well = drill_command.drill(arguments)
    _say(arguments, facts, words)
    return 0 if went_well else 1


class _StopOnSignal:
    """SIGTERM and Ctrl-C end a training at the next step boundary, with a checkpoint; twice: at once."""

    def __init__(self) -> None:
        self._reason: str | None = None
        for ending in (signal.SIGTERM, signal.SIGINT):
            signal.signal(ending, self._hear)

    def __call__(self, phase: Phase, loop: Loop) -> None:
        """Called by the loop at the start of every phase."""
        if self._reason is not None and phase is Phase.FETCH:
            loop.stop(self._reason)

    def _hear(self, number: int, frame: object) -> None:
        if self._reason is not None:
            raise KeyboardInterrupt
        self._reason = f"{signal.Signals(number).name} received"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trainer", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, work in (("run", _run), ("check", _check)):
        _add(commands, name, work).add_argument("config", type=Path, metavar="CONFIG")
    checkpoints = _add(commands, "checkpoints", _checkpoints)
    checkpoints.add_argument("folder", type=Path, metavar="DIR")
    checkpoints.add_argument("--verify", action="store_true", help="read and prove each one")
    delivery = _add(commands, "deliver", _deliver)
    delivery.add_argument("folder", type=Path, metavar="DIR", help="the run's spool")
    delivery.add_argument("--url", required=True, help="the monitor's address")
    for name, command in COMMANDS.items():
        command.add_arguments(_add(commands, name, _answering(command.work)))
    drill_command.add_arguments(_add(commands, "drill", _drill))
    show = _add(commands, "demo", _demo)
    show.add_argument("--folder", type=Path, default=Path("runs/demo"))
    show.add_argument("--port", type=int, default=8321, help="the monitor's; 0 for any free one")
    show.add_argument("--resume", action="store_true", help="go on in the folder instead of starting clean")
    return parser


def _add(commands: Any, name: str, work: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=_ABOUT[name])
    parser.add_argument("--json", action="store_true", help="answer with one JSON object")
    parser.set_defaults(work=work)
    return parser


def _answering(work: Callable[[argparse.Namespace], Answer]) -> Callable[[argparse.Namespace], int]:
    def answer(arguments: argparse.Namespace) -> int:
        facts, words = work(arguments)
        _say(arguments, facts, words)
        return 0 if facts.get("is_as_recorded", True) else FELL_SHORT

    return answer


def _say(arguments: argparse.Namespace, facts: dict[str, Any], words: str) -> None:
    sys.stdout.write(f"{json.dumps(facts) if arguments.json else words}\n")


def _refuse(arguments: argparse.Namespace, error: Exception, code: int) -> int:
    logging.getLogger(__name__).debug("refused", exc_info=error)
    text = json.dumps({"error": type(error).__name__, "detail": str(error)}) if arguments.json else str(error)
    sys.stderr.write(f"{text}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
