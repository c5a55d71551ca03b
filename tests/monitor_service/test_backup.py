"""Backup and restore as docs/production.md tells them, while steps arrive, with the real programs."""

import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

Build = Callable[..., dict[str, Any]]
ROWS = 20


class Sender:
    """Sends batch after batch until told to stop; knows which the monitor has acknowledged."""

    def __init__(self, monitor: Any, batch: Build) -> None:
        self._monitor, self._batch = monitor, batch
        self.acknowledged = 0
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._send_all)

    def of(self, seq: int) -> dict[str, Any]:
        steps = range(ROWS * (seq - 1), ROWS * seq)
        return self._batch(seq, steps, loss=[float(step) for step in steps])

    def _send_all(self) -> None:
        while not self._ends.is_set():
            assert self._monitor.send(self.of(self.acknowledged + 1)).status_code == 200
            self.acknowledged += 1

    def __enter__(self) -> "Sender":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join(timeout=30)

    def wait_for(self, more: int) -> int:
        """Until so many more were acknowledged; returns how many were."""
        goal = self.acknowledged + more
        while self.acknowledged < goal:
            assert self._thread.is_alive(), "sending has failed"
            self._ends.wait(0.01)
        return self.acknowledged


def done(*command: str) -> None:
    told = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert told.returncode == 0, told.stderr


def copy_of_sqlite(url: str, folder: Path) -> str:
    """A backup, put where a monitor starts from."""
    copy = folder / "copy.db"
    done("sqlite3", url.removeprefix("sqlite:///"), f".backup {copy}")
    return f"sqlite:///{copy}"


def copy_of_postgres(url: str, folder: Path, server: Any) -> str:
    """A dump, restored into a database in which the tables are already."""
    parts, name = urlsplit(url), f"restored_{uuid4().hex}"
    where = ["-h", str(parts.hostname), "-p", str(parts.port), "-U", str(parts.username)]
    dump = str(folder / "trainhealth.dump")
    done("pg_dump", *where, "-Fc", "-f", dump, parts.path.lstrip("/"))
    server.ask(f"CREATE DATABASE {name} TEMPLATE empty")
    done("pg_restore", *where, "-d", name, "--clean", "--if-exists", dump)
    return str(server.url(name))


@pytest.fixture
def back_up(request: pytest.FixtureRequest, url: str, tmp_path: Path) -> Iterator[Callable[[], str]]:
    """Copies the test's database with its own program; what it answers is the copy's address."""
    made: list[str] = []
    is_server = not url.startswith("sqlite")
    program = "pg_dump" if is_server else "sqlite3"
    if shutil.which(program) is None:
        pytest.skip(f"no {program} on this machine: apt-get install {'postgresql' if is_server else program}")
    server = request.getfixturevalue("empty_postgres") if is_server else None

    def copy() -> str:
        made.append(copy_of_postgres(url, tmp_path, server) if is_server else copy_of_sqlite(url, tmp_path))
        return made[-1]

    yield copy
    if server is not None:
        for one in made:
            server.ask(f"DROP DATABASE {urlsplit(one).path.lstrip('/')} WITH (FORCE)")


@pytest.mark.parametrize("url", ["sqlite", "postgresql"], indirect=True)
def test_a_backup_taken_while_steps_arrive_has_all_that_was_acknowledged_before_and_takes_what_comes_after(
    back_up: Callable[[], str], serve: Callable[..., Any], monitor: Any, batch: Build
) -> None:
    with Sender(monitor, batch) as sender:
        before = sender.wait_for(10)
        copy = back_up()
        sender.wait_for(5)
    restored = serve(database_url=copy)
    kept = restored.tell("/series?name=loss")["series"]["loss"]
    assert len(kept["step"]) >= ROWS * before
    assert kept["value"] == [float(step) for step in range(len(kept["step"]))], "whole batches, none torn"
    for seq in range(1, sender.acknowledged + 1):  # a trainer that has kept everything sends it again
        assert restored.send(sender.of(seq)).status_code == 200
    everything = restored.tell("/series?name=loss")["series"]["loss"]
    assert everything["step"] == list(range(ROWS * sender.acknowledged))
