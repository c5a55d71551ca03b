"""The commands of the monitor (``--help`` lists them); each understands ``--json``.

Exit codes: 0 done; 2 wrong arguments or settings; 3 port taken; 4 folder not writable; 5 database newer than
this program; 6 disk full; 7 database unusable; 8 no monitor answers; 9 no such run or token; 10 refused.
"""

import argparse
import json
import logging
import os
import sqlite3
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple
from enum import IntEnum
from typing import Any

from pydantic import ValidationError
from pydantic_settings import SettingsError
from sqlalchemy.exc import DBAPIError

from monitor_service import asking, deciding, token_commands
from monitor_service.app import create_app
from monitor_service.asking import FileUnusable, address, say
from monitor_service.client import Refused, Unreachable
from monitor_service.deciding import WrongArguments
from monitor_service.errors import (
    CertificateUnusable,
    DatabaseNewer,
    DatabaseUnusable,
    DiskFull,
    FolderNotWritable,
    MonitorError,
    NetworkDisk,
    NotFound,
    PortTaken,
    UnknownSetting,
    Unprotected,
)
from monitor_service.opening import listen, open_database, shown_url
from monitor_service.serving import check_certificate, run_until_signal
from monitor_service.settings import PREFIX, ClientSettings, Settings
from monitor_service.store import Store, open_engine
from monitor_service.tensorboard import TensorBoardMissing
from monitor_service.tokens import Scope
from monitor_service.upkeep import Done, keep_up, vacuum
from shared.base import utc_now


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
    CertificateUnusable: ExitCode.USAGE,
    UnknownSetting: ExitCode.USAGE,
    PortTaken: ExitCode.PORT_TAKEN,
    FolderNotWritable: ExitCode.NOT_WRITABLE,
    DatabaseNewer: ExitCode.DATABASE_NEWER,
    DiskFull: ExitCode.DISK_FULL,
    NetworkDisk: ExitCode.DATABASE_UNUSABLE,
    DatabaseUnusable: ExitCode.DATABASE_UNUSABLE,
    Unreachable: ExitCode.UNREACHABLE,
    FileUnusable: ExitCode.USAGE,
    TensorBoardMissing: ExitCode.USAGE,
    WrongArguments: ExitCode.USAGE,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
    for name in ("alembic", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        work: Callable[[argparse.Namespace], None] = arguments.work
        work(arguments)
    except ValidationError as error:
        return _fail(arguments, ExitCode.USAGE, _wrong_setting(error))
    except SettingsError as error:
        return _fail(arguments, ExitCode.USAGE, str(error))
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
    compact = _add(commands, "compact", _compact, "pack what was received, delete what is too old, and end")
    compact.add_argument("--vacuum", action="store_true", help="then write the database anew, without gaps")
    for command in (serve, migrate, compact):
        command.add_argument("--database-url", help="SQLAlchemy URL (TRAINHEALTH_DATABASE_URL)")

    _add_token_commands(commands)
    asking.add_commands(commands, _add)
    deciding.add_commands(commands, _add)
    return parser


def _add_token_commands(commands: Any) -> None:
    group = commands.add_parser("token", help="make, list and revoke access tokens, in the database itself")
    actions = group.add_subparsers(required=True, metavar="ACTION")
    create = _add(actions, "create", _token_create, "make one; its secret is shown once")
    create.add_argument("--name", required=True, help="who holds it")
    create.add_argument(
        "--scope", action="append", required=True, choices=list(Scope), help="may be given again"
    )
    create.add_argument("--project", help="runs of this project only; default: all")
    create.add_argument("--days", type=_positive, help="it ends after so many; default: never")
    revoke = _add(actions, "revoke", _token_revoke, "end one, and the sessions that it opened")
    revoke.add_argument("id", metavar="ID")
    for action in (create, revoke, _add(actions, "list", _token_list, "every one that was ever made")):
        action.add_argument("--database-url", help="SQLAlchemy URL (TRAINHEALTH_DATABASE_URL)")


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < 36_500:
        raise argparse.ArgumentTypeError(f"{text} is out of range; say more than 0 and less than 36500")
    return number


def _add(
    commands: Any, name: str, work: Callable[[argparse.Namespace], None], help_: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=help_)
    parser.add_argument("--json", action="store_true", help="answer with one JSON object a line")
    parser.set_defaults(work=work)
    return parser


def _serve(arguments: argparse.Namespace) -> None:
    settings = _settings(arguments)
    check_certificate(settings)
    if not settings.is_loopback and not token_commands.can_anybody_enter(settings.database_url):
        raise Unprotected(settings.host, settings.trusted_proxies)
    with listen(settings.host, settings.port) as listening:
        revision = open_database(settings.database_url)
        host, port = listening.getsockname()[:2]
        url = address(host, port, is_tls=settings.tls_key is not None)
        database = shown_url(settings.database_url)
        told = {"url": url, "database_url": database, "revision": revision}
        say(arguments, told, f"TrainHealth monitor: {url}  (database {database})")
        run_until_signal(create_app(settings), listening)


def _migrate(arguments: argparse.Namespace) -> None:
    settings = _settings(arguments)
    revision = open_database(settings.database_url)
    database = shown_url(settings.database_url)
    say(arguments, {"database_url": database, "revision": revision}, f"{database} is at revision {revision}")


def _compact(arguments: argparse.Namespace) -> None:
    settings = _settings(arguments)
    open_database(settings.database_url)
    engine = open_engine(settings.database_url)
    store = Store(engine, queue_size=1, observe=lambda requests, seconds: None)
    store.start()
    try:
        done = Done()
        while (some := keep_up(store, utc_now(), settings, is_everything_idle=True)) != Done():
            done = Done(*(a + b for a, b in zip(astuple(done), astuple(some), strict=True)))
        if arguments.vacuum:
            _vacuum(store)
    finally:
        store.close()
    words = f"{done.batches} batches compacted, points of {done.blocks} blocks and {done.runs} runs deleted"
    say(arguments, asdict(done), words)


def _vacuum(store: Store) -> None:
    try:
        vacuum(store)
    except (DBAPIError, sqlite3.Error) as error:
        why = f"{getattr(error, 'orig', error)}; stop the monitor first"
        raise DatabaseUnusable(store.engine.url.render_as_string(), why) from error


def _token_create(arguments: argparse.Namespace) -> None:
    url = _settings(arguments).database_url
    scopes = [Scope(one) for one in arguments.scope]
    token = token_commands.create(url, arguments.name, scopes, arguments.project, arguments.days)
    words = f"{token_commands.in_words(token)}\n{token['secret']}\nKeep it now: it is not shown again."
    say(arguments, token, words)


def _token_list(arguments: argparse.Namespace) -> None:
    for token in token_commands.listed(_settings(arguments).database_url):
        say(arguments, token, token_commands.in_words(token))


def _token_revoke(arguments: argparse.Namespace) -> None:
    token = token_commands.revoke(_settings(arguments).database_url, arguments.id)
    say(arguments, token, token_commands.in_words(token))


def _settings(arguments: argparse.Namespace) -> Settings:
    chosen = {name: getattr(arguments, name, None) for name in ("host", "port", "database_url")}
    _refuse_unknown_variables()
    return Settings(**{name: value for name, value in chosen.items() if value is not None})


def _refuse_unknown_variables() -> None:
    """A misspelt variable must not vanish in silence. Upper and lower case are the same."""
    known = [*Settings.variables(), *ClientSettings.variables()]
    for variable in os.environ:
        if variable.upper().startswith(PREFIX) and variable.upper() not in known:
            raise UnknownSetting(variable, known)


def _wrong_setting(error: ValidationError) -> str:
    first = error.errors()[0]
    if not first["loc"]:
        return str(first["msg"])
    name = str(first["loc"][0])
    return f"{name} ({PREFIX}{name.upper()}): {first['msg']}, found {first['input']!r}"


def _fail(arguments: argparse.Namespace, code: ExitCode, words: str) -> int:
    text = json.dumps({"error": code.name.lower(), "detail": words}) if arguments.json else words
    sys.stderr.write(f"{text}\n")
    return code


def _code_of(error: MonitorError) -> ExitCode:
    if isinstance(error, NotFound):
        return ExitCode.NO_SUCH_RUN
    if isinstance(error, Refused):
        return ExitCode.NO_SUCH_RUN if error.status == 404 else ExitCode.REFUSED
    return _CODES.get(type(error), ExitCode.REFUSED)


if __name__ == "__main__":
    sys.exit(main())
