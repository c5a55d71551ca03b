"""The commands ``serve``, ``migrate``, ``status`` and ``roll-back``; each understands ``--json``.

Exit codes: 0 done; 2 wrong arguments or settings; 3 port taken; 4 folder not writable; 5 database newer than
this program; 6 disk full; 7 database unusable; 8 no monitor answers; 9 no such run; 10 refused.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any

from pydantic import ValidationError

from monitor_service.app import create_app
from monitor_service.client import Client, Refused, Unreachable
from monitor_service.errors import (
    DatabaseNewer,
    DatabaseUnusable,
    DiskFull,
    FolderNotWritable,
    MonitorError,
    PortTaken,
    UnknownSetting,
    Unprotected,
)
from monitor_service.opening import listen, open_database, shown_url
from monitor_service.serving import run_until_signal
from monitor_service.settings import Settings

PREFIX = "TRAINHEALTH_"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class ExitCode(IntEnum):
    """What a command's exit code means."""

    DONE = 0
    USAGE = 2
    PORT_TAKEN = 3
    NOT_WRITABLE = 4
    DATABASE_NEWER = 5
    DISK_FULL = 6
    DATABASE_UNUSABLE = 7
    UNREACHABLE = 8
    NO_SUCH_RUN = 9
    REFUSED = 10


_CODES: dict[type[MonitorError], ExitCode] = {
    Unprotected: ExitCode.USAGE,
    UnknownSetting: ExitCode.USAGE,
    PortTaken: ExitCode.PORT_TAKEN,
    FolderNotWritable: ExitCode.NOT_WRITABLE,
    DatabaseNewer: ExitCode.DATABASE_NEWER,
    DiskFull: ExitCode.DISK_FULL,
    DatabaseUnusable: ExitCode.DATABASE_UNUSABLE,
    Unreachable: ExitCode.UNREACHABLE,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        work: Callable[[argparse.Namespace], None] = arguments.work
        work(arguments)
    except ValidationError as error:
        return _fail(arguments, ExitCode.USAGE, _wrong_setting(error))
    except MonitorError as error:
        return _fail(arguments, _code_of(error), str(error))
    return ExitCode.DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m monitor_service", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = _add(commands, "serve", _serve, "store, judge and show what trainers report")
    serve.add_argument("--host", help="address to listen on (TRAINHEALTH_HOST; default 127.0.0.1)")
    serve.add_argument("--port", type=int, help="port, 0 for any free one (TRAINHEALTH_PORT; default 8321)")
    migrate = _add(commands, "migrate", _migrate, "bring the database up to date and end")
    for command in (serve, migrate):
        command.add_argument("--database-url", help="SQLAlchemy URL (TRAINHEALTH_DATABASE_URL)")

    status = _add(commands, "status", _status, "how a run is, and why")
    roll_back = _add(commands, "roll-back", _roll_back, "send a run back to its last good checkpoint")
    for command in (status, roll_back):
        command.add_argument("run", metavar="RUN")
        command.add_argument("--url", help="the monitor's address; default from TRAINHEALTH_HOST and _PORT")
    roll_back.add_argument("--reason", required=True)
    roll_back.add_argument("--to-step", type=int, help="this step or before; default: the newest good")
    return parser


def _add(
    commands: Any, name: str, work: Callable[[argparse.Namespace], None], help_: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=help_)
    parser.add_argument("--json", action="store_true", help="answer with one JSON object a line")
    parser.set_defaults(work=work)
    return parser


def _serve(arguments: argparse.Namespace) -> None:
    settings = _settings(arguments)
    if settings.host not in LOOPBACK:
        raise Unprotected(settings.host)
    with listen(settings.host, settings.port) as listening:
        revision = open_database(settings.database_url)
        host, port = listening.getsockname()[:2]
        url = _address(host, port)
        database = shown_url(settings.database_url)
        told = {"url": url, "database_url": database, "revision": revision}
        _say(arguments, told, f"TrainHealth monitor: {url}  (database {database})")
        run_until_signal(create_app(settings), listening)


def _migrate(arguments: argparse.Namespace) -> None:
    settings = _settings(arguments)
    revision = open_database(settings.database_url)
    database = shown_url(settings.database_url)
    _say(arguments, {"database_url": database, "revision": revision}, f"{database} is at revision {revision}")


def _status(arguments: argparse.Namespace) -> None:
    health = Client(_url(arguments)).health(arguments.run)
    step = "-" if health["step"] is None else health["step"]
    line = f"{health['run']}: {health['status']} since {health['since']}, step {step}"
    _say(arguments, health, "\n".join([line, *(f"  {reason}" for reason in health["reasons"])]))


def _roll_back(arguments: argparse.Namespace) -> None:
    wish = {"kind": "roll_back", "reason": arguments.reason, "to_step": arguments.to_step}
    command = Client(_url(arguments)).order(arguments.run, wish)
    _say(arguments, command, f"{command['run']}: rollback ordered, command {command['id']}")


def _settings(arguments: argparse.Namespace) -> Settings:
    chosen = {name: getattr(arguments, name, None) for name in ("host", "port", "database_url")}
    _refuse_unknown_variables()
    return Settings(**{name: value for name, value in chosen.items() if value is not None})


def _refuse_unknown_variables() -> None:
    """A misspelt variable must not vanish in silence. Upper and lower case are the same."""
    known = [f"{PREFIX}{name.upper()}" for name in Settings.model_fields]
    for variable in os.environ:
        if variable.upper().startswith(PREFIX) and variable.upper() not in known:
            raise UnknownSetting(variable, known)


def _wrong_setting(error: ValidationError) -> str:
    first = error.errors()[0]
    if not first["loc"]:
        return str(first["msg"])
    name = str(first["loc"][0])
    return f"{name} ({PREFIX}{name.upper()}): {first['msg']}, found {first['input']!r}"


def _address(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _url(arguments: argparse.Namespace) -> str:
    settings = Settings()
    return arguments.url or _address(settings.host, settings.port)


def _say(arguments: argparse.Namespace, told: dict[str, Any], words: str) -> None:
    sys.stdout.write(f"{json.dumps(told) if arguments.json else words}\n")
    sys.stdout.flush()


def _fail(arguments: argparse.Namespace, code: ExitCode, words: str) -> int:
    text = json.dumps({"error": code.name.lower(), "detail": words}) if arguments.json else words
    sys.stderr.write(f"{text}\n")
    return code


def _code_of(error: MonitorError) -> ExitCode:
    if isinstance(error, Refused):
        return ExitCode.NO_SUCH_RUN if error.status == 404 else ExitCode.REFUSED
    return _CODES.get(type(error), ExitCode.REFUSED)


if __name__ == "__main__":
    sys.exit(main())
