"""What holds for all tests: generated examples are the same in every run, and one PostgreSQL server."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

PLACES = ("/usr/lib/postgresql/17/bin", "/usr/lib/postgresql/16/bin", "/usr/lib/postgresql/15/bin")


class Postgres:
    """A server of its own on a free port, in a folder that goes away with the tests; it can be killed."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs, self._folder = programs, folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None
        if os.getuid() == 0:  # the server refuses to run as root
            shutil.chown(folder, "postgres", "postgres")
        data = ["-D", str(folder / "data")]
        ask = ["-A", "trust", "-U", "postgres", "--no-sync", "-E", "UTF8", "--no-locale"]
        assert self._begin("initdb", *data, *ask).wait(60) == 0

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Returns when it answers; after a kill its children may hold the lock for a moment."""
        deadline = time.monotonic() + 30
        where = ["-D", str(self._folder / "data"), "-k", str(self._folder), "-h", "127.0.0.1", "-F"]
        while True:
            if self.process is None or self.process.poll() is not None:
                self.process = self._begin("postgres", *where, "-p", str(self.port))
            ready = ["-q", "-h", "127.0.0.1", "-p", str(self.port)]
            if self._begin("pg_isready", *ready).wait(10) == 0:
                return
            assert time.monotonic() < deadline, "PostgreSQL did not start"
            time.sleep(0.05)

    def stop(self) -> None:
        """At once, as in a crash."""
        if self.process is not None:
            self.process.send_signal(3)  # SIGQUIT: the children end, too
            self.process.wait(30)

    def kill(self) -> None:
        """SIGKILL to the server; its children find out and end by themselves."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(30)

    def ask(self, statement: str) -> None:
        """Run one statement outside of a transaction."""
        import psycopg

        with psycopg.connect(f"host=127.0.0.1 port={self.port} user=postgres", autocommit=True) as connection:
            connection.execute(statement.encode())

    def _begin(self, program: str, *arguments: str) -> "subprocess.Popen[bytes]":
        who: dict[str, Any] = {}
        if os.getuid() == 0:
            who = {"user": "postgres", "group": "postgres", "extra_groups": []}
        found = self._programs / program
        command = str(found if found.exists() else shutil.which(program))
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        environment = {**os.environ, "HOME": str(self._folder)}
        return subprocess.Popen([command, *arguments], cwd=self._folder, env=environment, **quiet, **who)


def find_postgres() -> Path | None:
    """The folder of the server's programs."""
    known = [Path(place) for place in PLACES if (Path(place) / "initdb").exists()]
    on_path = shutil.which("initdb")
    return known[0] if known else Path(on_path).resolve().parent if on_path else None


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """A server in a folder of /tmp: pytest's own is closed to the user that it runs as."""
    programs = find_postgres()
    if programs is None:
        pytest.skip("no PostgreSQL here: install the package postgresql")
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        server = Postgres(programs, Path(folder))
        server.start()
        yield server
        server.stop()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A running server, started for the first test that asks."""
    with running_postgres() as server:
        yield server


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """A server that the test may kill."""
    with running_postgres() as server:
        yield server
