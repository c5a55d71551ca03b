"""The commands that ask a running monitor: ``status``, ``runs``, ``watch``, ``roll-back`` and the like."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from monitor_service.client import Client
from monitor_service.concerns import RiskLevel
from monitor_service.errors import MonitorError
from monitor_service.health import RunStatus
from monitor_service.run_list import Sort
from monitor_service.settings import ClientSettings, Settings
from monitor_service.tensorboard import write_event_file
from monitor_service.views import HealthView
from monitor_service.watching import watch
from shared.base import Message

Work = Callable[[argparse.Namespace], None]
Add = Callable[[Any, str, Work, str], argparse.ArgumentParser]


class FileUnusable(MonitorError):
    """A file that a command should write or read will not do."""


@contextmanager
def _files(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FileUnusable(f"cannot use {file}: {error.strerror or error}") from error


def add_commands(commands: Any, add: Add) -> None:
    """Let the parser know these commands."""
    status = add(commands, "status", _status, "how a run is, and why")
    watching = add(commands, "watch", _watch, "what happens in a run, while it happens")
    roll_back = add(commands, "roll-back", _roll_back, "send a run back to its last good checkpoint")
    export = add(commands, "export", _export, "write a whole run to one file")
    event_file = add(commands, "to-tensorboard", _to_tensorboard, "write a run's series as an event file")
    bring_in = add(commands, "import", _import, "store a run that was exported")
    runs = add(commands, "runs", _runs, "the runs that the monitor knows")
    for command in (status, watching, roll_back, export, event_file):
        command.add_argument("run", metavar="RUN")
    for command in (status, watching, roll_back, export, event_file, bring_in, runs):
        add_url(command)
    roll_back.add_argument("--reason", required=True)
    roll_back.add_argument("--key", help="of an order that got no answer: it is ordered once")
    roll_back.add_argument("--to-step", type=int, help="this step or before; default: the newest good")
    export.add_argument("--out", type=Path, help="the file; default: RUN.zip here")
    event_file.add_argument("folder", type=Path, metavar="DIR", help="a folder that TensorBoard looks into")
    bring_in.add_argument("file", type=Path, metavar="FILE")
    runs.add_argument("--status", action="append", choices=list(RunStatus), help="may be given again")
    runs.add_argument("--project")
    runs.add_argument("--search", help="a part of the name")
    runs.add_argument("--sort", choices=list(Sort))


def add_url(command: argparse.ArgumentParser) -> None:
    command.add_argument("--url", help="the monitor's address; TRAINHEALTH_URL, or from _HOST and _PORT")


def address(host: str, port: int, *, is_tls: bool = False) -> str:
    """Where a monitor is found that listens there."""
    name = f"[{host}]" if ":" in host else host
    return f"{'https' if is_tls else 'http'}://{name}:{port}"


def say(arguments: argparse.Namespace, told: dict[str, Any], words: str) -> None:
    """The answer of a command: JSON where it is asked for, words elsewhere."""
    sys.stdout.write(f"{json.dumps(told) if arguments.json else words}\n")
    sys.stdout.flush()


def as_json(message: Message) -> dict[str, Any]:
    """As it travels: NaN and infinities are words."""
    told: dict[str, Any] = json.loads(message.model_dump_json())
    return told


def client_of(arguments: argparse.Namespace) -> Client:
    ours, theirs = Settings(), ClientSettings()
    own = address(ours.host, ours.port, is_tls=ours.tls_key is not None)
    return Client(arguments.url or theirs.url or own, token=theirs.token, ca_file=theirs.ca_file)


def _status(arguments: argparse.Namespace) -> None:
    with client_of(arguments) as client:
        health = client.health(arguments.run)
    step = "-" if health.step is None else health.step
    line = f"{health.run}: {health.status} since {health.since.isoformat()}, step {step}"
    say(arguments, as_json(health), "\n  ".join([line, *health.reasons, *_more_about(health)]))


def _more_about(health: HealthView) -> Iterator[str]:
    """What calls for attention besides the status, and what trouble has cost."""
    if health.risk.level is not RiskLevel.NONE:
        yield f"risk of divergence {health.risk.level}: {'; '.join(health.risk.reasons)}"
    for concern in health.concerns:
        if concern.words not in health.reasons:
            yield f"{concern.severity} since {concern.since.isoformat()}: {concern.words}"
    if health.needs_person is not None:
        yield f"needs a person: {health.needs_person}"
    if health.suggestion is not None:
        yield f"suggested: roll back, since {health.suggestion.reason}"
        yield f"take it up with: python -m monitor_service accept {health.run}"
    for command in health.open_commands:
        yield f"open: {command.kind} {command.state}, by {command.issued_by}: {command.reason}"
    cost = health.cost
    if cost.skipped_steps or cost.rollbacks:
        lost = f"{cost.steps_lost} steps and {cost.seconds_lost:.1f} s lost"
        yield f"cost so far: {cost.skipped_steps} steps refused, {cost.rollbacks} rollbacks, {lost}"


def _runs(arguments: argparse.Namespace) -> None:
    filters = {name: getattr(arguments, name) for name in ("status", "project", "search", "sort")}
    with client_of(arguments) as client:
        for page in client.runs(**filters):
            for run in page.items:
                step = "-" if run.step is None else run.step
                words = f"{run.run}  {run.project}  {run.status}  step {step}"
                say(arguments, as_json(run), words)


def _watch(arguments: argparse.Namespace) -> None:
    with client_of(arguments) as client, suppress(KeyboardInterrupt):
        watch(client, arguments.run, as_json=arguments.json)


def _roll_back(arguments: argparse.Namespace) -> None:
    wish = {"kind": "roll_back", "reason": arguments.reason, "to_step": arguments.to_step}
    with client_of(arguments) as client:
        command = client.order(arguments.run, wish, arguments.key)
    words = f"{command.run}: rollback ordered, command {command.id}"
    say(arguments, as_json(command), words)


def _export(arguments: argparse.Namespace) -> None:
    file = arguments.out or Path(f"{arguments.run}.zip")
    with client_of(arguments) as client, _files(file):
        size = client.export(arguments.run, file)
    told = {"run": arguments.run, "file": str(file), "size_bytes": size}
    say(arguments, told, f"{arguments.run}: {size} bytes in {file}")


def _to_tensorboard(arguments: argparse.Namespace) -> None:
    with client_of(arguments) as client, _files(arguments.folder):
        points = write_event_file(client, arguments.run, arguments.folder)
    told = {"run": arguments.run, "folder": str(arguments.folder), "points": points}
    say(arguments, told, f"{arguments.run}: {points} points in {arguments.folder}")


def _import(arguments: argparse.Namespace) -> None:
    with client_of(arguments) as client, _files(arguments.file):
        detail = client.bring_in(arguments.file)
    say(arguments, as_json(detail), f"{detail.run}: stored, {detail.status}")
