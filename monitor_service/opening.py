"""Opens everything that ``serve`` needs, in the order in which nothing is left behind if one of it fails."""

import errno
import os
import socket
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from monitor_service import migrate
from monitor_service.errors import (
    DatabaseUnusable,
    DiskFull,
    FolderNotWritable,
    NetworkDisk,
    PortTaken,
    StartRefused,
)
from monitor_service.file_systems import network_kind
from monitor_service.store import open_engine

ROOM_BYTES = 1024 * 1024
"""Free space that a database needs at least to begin."""

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections from now on; port 0 is any free one.

    Raises:
        PortTaken: the address cannot be had.
    """
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(1024)
    except OSError as error:
        listening.close()
        raise PortTaken(host, port, error.strerror or str(error)) from error
    return listening


def open_database(url: str) -> str:
    """Bring the database up to date, creating it if need be; returns its revision.

    Raises:
        StartRefused: with the reason; a file that was not there before is not there after.
    """
    file = file_of(url)
    if file is not None:
        _check_disk(file.parent)
    with _leaving_no_file(file), _refusing(url):
        engine = open_engine(url)
        try:
            return migrate.bring_up_to_date(engine)
        finally:
            engine.dispose()


def file_of(url: str) -> Path | None:
    """The SQLite file behind ``url``, if it is one."""
    parts = make_url(url)
    if parts.get_backend_name() != "sqlite" or not parts.database:
        return None
    return Path(parts.database).absolute()


def _check_disk(folder: Path) -> None:
    kind = network_kind(folder)
    if kind is not None:
        raise NetworkDisk(str(folder), kind)
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(ROOM_BYTES))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        if error.errno in FULL:
            raise DiskFull(str(folder)) from error
        raise FolderNotWritable(str(folder), error.strerror or str(error)) from error


@contextmanager
def _leaving_no_file(file: Path | None) -> Iterator[None]:
    is_ours = file is not None and not file.exists()
    try:
        yield
    except StartRefused:
        for ending in ("", "-wal", "-shm") if is_ours else ():
            Path(f"{file}{ending}").unlink(missing_ok=True)
        raise


@contextmanager
def _refusing(url: str) -> Iterator[None]:
    """Turn what a database driver says into one clear line."""
    try:
        yield
    except DBAPIError as error:
        raise _refusal(url, error.orig) from error
    except (SQLAlchemyError, ModuleNotFoundError) as error:
        raise DatabaseUnusable(shown_url(url), str(error)) from error


def _refusal(url: str, error: BaseException | None) -> StartRefused:
    folder = str((file_of(url) or Path()).parent)
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the low byte is the error, the rest its detail
    if code == sqlite3.SQLITE_FULL:
        return DiskFull(folder)
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return FolderNotWritable(folder, str(error))
    return DatabaseUnusable(shown_url(url), str(error))


def shown_url(url: str) -> str:
    """The database's address without its password."""
    return make_url(url).render_as_string(hide_password=True)
