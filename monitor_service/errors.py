"""What can go wrong in the monitor, as one tree.

MonitorError
├── NotFound               a run, series or command that is not here        404
├── Conflict               what is asked contradicts what is stored         409
├── BadBody                the body cannot be used
│   ├── BodyTooLarge       more bytes than allowed, packed or unpacked      413
│   ├── WrongMediaType     neither JSON nor gzipped JSON                    415
│   ├── MalformedBody      not JSON, or gzip that does not unpack           400
│   └── InvalidMessage     JSON of the wrong shape, or a value out of range 422
├── StoreUnavailable       the database cannot commit now; send again       503
└── StartRefused           serve does not start
    ├── Unprotected        an address that others reach, and no tokens yet
    ├── PortTaken
    ├── FolderNotWritable
    ├── DiskFull
    ├── DatabaseNewer
    ├── DatabaseUnusable
    └── UnknownSetting
"""

from collections.abc import Sequence
from dataclasses import dataclass


class MonitorError(Exception):
    """Base of all errors that the monitor raises itself."""


class NotFound(MonitorError):
    """Something that was named does not exist here."""

    @classmethod
    def run(cls, run: str) -> "NotFound":
        return cls(f"no run {run!r}; register it with PUT /api/v1/runs/{run}")

    @classmethod
    def command(cls, run: str, command: str) -> "NotFound":
        return cls(f"run {run!r} has no command {command!r}")

    @classmethod
    def series(cls, run: str, unknown: Sequence[str], known: Sequence[str]) -> "NotFound":
        has = ", ".join(known) if known else "none yet"
        return cls(f"run {run!r} has no series {', '.join(unknown)}; known: {has}")


class Conflict(MonitorError):
    """The request contradicts what is stored."""


@dataclass(frozen=True)
class Violation:
    """One field that was refused: where, what stood there, and what would do."""

    field: str
    found: str
    problem: str


class BadBody(MonitorError):
    """The body of a request cannot be used."""


class BodyTooLarge(BadBody):
    """More bytes than ``limit_bytes``, before or after unpacking."""

    def __init__(self, what: str, limit_bytes: int) -> None:
        super().__init__(f"the {what} is larger than {limit_bytes} bytes; send smaller batches")
        self.limit_bytes = limit_bytes


class WrongMediaType(BadBody):
    """A header announces a form of body that is not read here."""

    def __init__(self, header: str, found: str, allowed: str) -> None:
        super().__init__(f"{header} is {found!r}; send {allowed}")


class MalformedBody(BadBody):
    """The bytes are not what the headers say."""


class InvalidMessage(BadBody):
    """JSON that is not the message expected; ``violations`` name the fields."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        first = violations[0]
        more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
        super().__init__(f"{first.field}: {first.problem}, found {first.found}{more}")
        self.violations = tuple(violations)


def wrong_query(name: str, found: str, problem: str) -> InvalidMessage:
    """An argument of a question that is none."""
    return InvalidMessage([Violation(f"query.{name}", repr(found[:100]), problem)])


class StoreUnavailable(MonitorError):
    """Nothing was committed; the same request may be sent again."""

    def __init__(self, why: str) -> None:
        super().__init__(f"nothing was stored: {why}; send it again later")


class StartRefused(MonitorError):
    """The monitor cannot start here and has changed nothing."""


class Unprotected(StartRefused):
    """An address that other machines reach, while nothing asks who is there."""

    def __init__(self, host: str) -> None:
        super().__init__(
            f"will not listen on {host}: whoever reaches it could read all runs and order rollbacks, and "
            "there are no access tokens yet. Listen on 127.0.0.1, behind a proxy that asks for a password."
        )


class PortTaken(StartRefused):
    """Somebody listens there already."""

    def __init__(self, host: str, port: int, why: str) -> None:
        super().__init__(f"cannot listen on {host}:{port}: {why}. Choose another with --port.")


class FolderNotWritable(StartRefused):
    """The database cannot be created or written in its folder."""

    def __init__(self, folder: str, why: str) -> None:
        super().__init__(f"cannot write in {folder}: {why}. Choose another with --database-url.")


class DiskFull(StartRefused):
    """No room for the database."""

    def __init__(self, folder: str) -> None:
        super().__init__(f"no space left in {folder}. Free some, or choose another with --database-url.")


class DatabaseNewer(StartRefused):
    """A younger version of the monitor has migrated this database."""

    def __init__(self, found: str, newest: str) -> None:
        super().__init__(
            f"the database is at revision {found}, this program knows up to {newest}. "
            "Start the newer version, or restore a backup."
        )


class DatabaseUnusable(StartRefused):
    """The database cannot be opened: not a database, no server, no driver."""

    def __init__(self, url: str, why: str) -> None:
        super().__init__(f"cannot use the database {url}: {why}. Choose another with --database-url.")


class UnknownSetting(StartRefused):
    """A variable of the environment looks like a setting and is none."""

    def __init__(self, variable: str, allowed: Sequence[str]) -> None:
        super().__init__(f"{variable} is no setting of the monitor; known are {', '.join(allowed)}")
