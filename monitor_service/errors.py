"""What can go wrong in the monitor, as one tree.

MonitorError
├── NotFound               a run, series or command that is not here        404
├── Conflict               what is asked contradicts what is stored         409
│   ├── AnotherRun         a name that belongs to another training          409
│   └── AttemptTaken       an attempt that another process leads            409
├── KeyReused              an Idempotency-Key came with another order       422
├── NotAuthenticated       no token, or none that is good                   401
├── Forbidden              the token is good, but not for this              403
├── TooManyRequests        a client asks too often                          429
├── WrongHost              a request for a name that is not ours            421
├── BadBody                the body cannot be used
│   ├── BodyTooLarge       more bytes than allowed, packed or unpacked      413
│   ├── WrongMediaType     neither JSON nor gzipped JSON                    415
│   ├── MalformedBody      not JSON, or gzip that does not unpack           400
│   └── InvalidMessage     JSON of the wrong shape, or a value out of range 422
├── TooManyStreams         as many live streams as may be are open          503
├── StoreUnavailable       the database cannot commit now; send again       503
└── StartRefused           serve does not start
    ├── Unprotected        an address that others reach, and no token
    ├── CertificateUnusable
    ├── PortTaken
    ├── FolderNotWritable
    ├── DiskFull
    ├── DatabaseNewer
    ├── DatabaseUnusable
    └── UnknownSetting
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime


class MonitorError(Exception):
    """Base of all errors that the monitor raises itself."""


class NotFound(MonitorError):
    """Something that was named does not exist here."""

    @classmethod
    def run(cls, run: str) -> "NotFound":
        known = "`python -m monitor_service runs` lists those that are here"
        return cls(f"no run {run!r}; {known}, and PUT /api/v1/runs/{run} registers it")

    @classmethod
    def picture(cls, run: str, picture: str) -> "NotFound":
        return cls(f"run {run!r} has no picture {picture!r}; /api/v1/runs/{run}/pictures lists them")

    @classmethod
    def command(cls, run: str, command: str) -> "NotFound":
        return cls(f"run {run!r} has no command {command!r}")

    @classmethod
    def series(cls, run: str, unknown: Sequence[str], known: Sequence[str]) -> "NotFound":
        has = ", ".join(known) if known else "none yet"
        return cls(f"run {run!r} has no series {', '.join(unknown)}; known: {has}")


class Conflict(MonitorError):
    """The request contradicts what is stored."""


class AnotherRun(Conflict):
    """Two trainings under one name: their steps would make one curve of both."""

    def __init__(self, run: str, found: str, known: str, started_at: datetime) -> None:
        super().__init__(
            f"run {run!r} belongs to another training: identity {known[:8]}, begun "
            f"{started_at:%Y-%m-%d %H:%M} UTC, and this one is {found[:8]}. Give this one a name of its own; "
            "or, if it is the same training, put back the record.json of its folder, which holds its identity"
        )


class AttemptTaken(Conflict):
    """Two processes in one attempt: one of them is not the training that the other one's numbers tell of."""

    def __init__(self, run: str, attempt: int, found: str, owner: str) -> None:
        super().__init__(
            f"attempt {attempt} of run {run!r} belongs to session {owner[:8]}, and this is session "
            f"{found[:8]}; two trainers go on from copies of one folder: end one of them, or start it anew"
        )


class KeyReused(MonitorError):
    """One Idempotency-Key for two orders: nobody can tell which of them the client wants."""

    def __init__(self, key: str, command: str, what: str) -> None:
        super().__init__(
            f"Idempotency-Key {key!r} came before with another order, which is command {command} ({what}); "
            "send each order with a key of its own"
        )


class NotAuthenticated(MonitorError):
    """Nobody knows who asks."""


class Forbidden(MonitorError):
    """It is known who asks, and they may not."""


class TooManyRequests(MonitorError):
    """A client asks more often than ``per_s`` times a second; ``retry_after_s`` says when to come again."""

    def __init__(self, per_s: float, retry_after_s: int) -> None:
        super().__init__(
            f"more than {per_s:g} requests a second from one client; come again in {retry_after_s} s"
        )
        self.retry_after_s = retry_after_s


class TooManyStreams(MonitorError):
    """No further live stream can be opened now."""

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"{limit} live streams are open, which is the limit (TRAINHEALTH_MAX_STREAMS), or the monitor "
            "is about to end; come again, or ask /health from time to time"
        )


class WrongHost(MonitorError):
    """The request names a host that is none of ours: a page elsewhere may have made a name lead here."""

    def __init__(self, host: str) -> None:
        super().__init__(
            f"Host is {host[:100]!r}, which is no name of this monitor; ask by address, "
            "or allow the name with TRAINHEALTH_ALLOWED_HOSTS"
        )


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

    def __init__(self, host: str, proxies: str = "") -> None:
        where = f"{host} behind the proxy {proxies}" if proxies else host
        instead = "set no TRAINHEALTH_TRUSTED_PROXIES" if proxies else "listen on 127.0.0.1"
        super().__init__(
            f"will not listen on {where}: whoever reaches it could read all runs and order rollbacks, and "
            "there is no access token. Make one with: python -m monitor_service token create --name NAME "
            f"--scope read --scope control (and one with --scope ingest for trainers); or {instead}."
        )


class CertificateUnusable(StartRefused):
    """TLS was asked for, and the certificate or its key will not do."""

    def __init__(self, certificate: str, key: str, why: str) -> None:
        super().__init__(
            f"cannot use the certificate {certificate} with the key {key}: {why}. "
            "Both are PEM files; set TRAINHEALTH_TLS_CERTIFICATE and TRAINHEALTH_TLS_KEY, or neither."
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


class NetworkDisk(StartRefused):
    """An SQLite file on a disk that other machines write to."""

    def __init__(self, folder: str, kind: str) -> None:
        super().__init__(
            f"{folder} is on a network disk ({kind}), on which SQLite may lose or damage data. "
            "Choose a folder on a local disk, or PostgreSQL, with --database-url."
        )


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
