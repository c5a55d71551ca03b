"""What can't start says so in one line, with its exit code, and leaves nothing half written."""

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from monitor_service.__main__ import ExitCode
from trainer.drill.demo import DEMO_LOCK
from trainer.errors import ConfigError

pytestmark = pytest.mark.slow


def assert_refused(program: Any, code: int, *words: str) -> None:
    """One line on standard error that holds ``words``; nothing on standard output."""
    assert program.end() == code, program.log
    lines = [line for line in program.log.splitlines() if line]
    assert len(lines) == 1, program.log
    for word in words:
        assert word in lines[0]
    assert program.words == ""


@contextmanager
def claimed_by_another(lock: Path) -> Iterator[None]:
    """Held by a child, since a process never stands in its own way."""
    lock.touch()
    held = (
        "import fcntl; file = open({!r}, 'ab'); fcntl.lockf(file, fcntl.LOCK_EX); print(flush=True); input()"
    )
    held = held.format(str(lock))
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", held], stdin=pipe, stdout=pipe, text=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        yield
        child.communicate("\n")


def serve(house: Any, url: str, port: int = 0) -> Any:
    return house.program("monitor_service", "serve", "--port", str(port), "--database-url", url)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "said")


def test_a_taken_port(house: Any) -> None:
    monitor = house.monitor()
    other = house.folder / "other.db"
    assert_refused(
        serve(house, f"sqlite:///{other}", monitor.port), ExitCode.PORT_TAKEN, str(monitor.port), "in use"
    )
    assert not other.exists()
    demo = house.program(
        "trainer", "demo", "--folder", str(house.folder / "demo"), "--port", str(monitor.port)
    )
    assert demo.end() == ConfigError.exit_code
    assert demo.log.splitlines()[-1].startswith("the monitor did not start: ")
    assert str(monitor.port) in demo.log
    assert monitor.is_running


def test_a_port_that_is_taken_leaves_the_earlier_demo_where_it_was(house: Any) -> None:
    monitor = house.monitor()
    folder = house.folder / "demo"
    folder.mkdir()
    (folder / "monitor.db").write_text("an earlier demo")
    for _ in range(2):  # the second would delete what the first has moved
        words = ("trainer", "demo", "--folder", str(folder), "--port", str(monitor.port))
        assert house.program(*words).end() == ConfigError.exit_code
    assert (folder / "monitor.db").read_text() == "an earlier demo"
    assert not folder.with_name("demo.previous").exists()


def test_a_folder_that_another_trainer_works_in(house: Any, until: Any) -> None:
    first = house.trainer()
    until(lambda: "starting anew" in first.log, "the first one trains")
    first.send(signal.SIGSTOP)
    try:
        assert_refused(house.trainer(), ConfigError.exit_code, str(house.run_folder), "in use")
    finally:
        first.send(signal.SIGCONT)
    first.end(signal.SIGKILL)
    assert house.trainer().end() == 0, "a killed process lets go"


def test_a_folder_whose_demo_still_shows_its_page(house: Any) -> None:
    folder = house.folder / "demo"
    folder.mkdir()
    with claimed_by_another(folder / DEMO_LOCK):
        demo = house.program("trainer", "demo", "--folder", str(folder), "--port", "0")
        assert_refused(demo, ConfigError.exit_code, str(folder), "in use")
    assert not folder.with_name("demo.previous").exists()


def test_a_database_newer_than_the_code(house: Any) -> None:
    house.monitor().end(how=15)
    with sqlite3.connect(house.database) as database:
        database.execute("update alembic_version set version_num = '9999'")
    database.close()
    before = house.database.read_bytes()
    assert_refused(serve(house, f"sqlite:///{house.database}"), ExitCode.DATABASE_NEWER, "9999", "newer")
    assert house.database.read_bytes() == before


def test_a_file_that_is_no_database(house: Any) -> None:
    house.database.write_text("a letter to a friend, " * 100)
    assert_refused(
        serve(house, f"sqlite:///{house.database}"), ExitCode.DATABASE_UNUSABLE, str(house.database)
    )
    assert files(house.folder) == ["monitor.db"]
    assert house.database.read_text().startswith("a letter to a friend")


def test_a_database_where_no_folder_is(house: Any) -> None:
    url = f"sqlite:///{house.folder}/nowhere/monitor.db"
    assert_refused(serve(house, url), ExitCode.NOT_WRITABLE, "nowhere")
    assert files(house.folder) == []


def test_a_run_folder_that_can_not_be_made(house: Any) -> None:
    house.run_folder = house.folder / "a-file" / "run"
    (house.folder / "a-file").write_text("in the way")
    assert_refused(house.trainer(), ConfigError.exit_code, "run.folder", str(house.run_folder))
    assert files(house.folder) == ["a-file", "small.toml"]


def test_an_unknown_key_names_its_path_and_what_there_is(house: Any) -> None:
    config = house.config()
    config.write_text(config.read_text().replace("promote_after", "promote_afterwards"))
    program = house.program("trainer", "run", str(config))
    assert program.end() == ConfigError.exit_code
    first, second = program.log.splitlines()
    assert first == f"{config} will not do:"
    assert second.startswith("  recovery.ring.promote_afterwards: no such key; there are ")
    assert "promote_after" in second.split("there are ")[1].split(", ")
    assert files(house.folder) == ["small.toml"]


def test_data_that_is_not_there(house: Any) -> None:
    config = house.config()
    config.write_text(config.read_text().replace("[data]", '[data]\nroot = "/nowhere/maps"'))
    assert_refused(house.program("trainer", "run", str(config)), ConfigError.exit_code, "/nowhere/maps")


def test_a_spool_that_is_none(house: Any) -> None:
    url = "http://127.0.0.1:9"
    delivery = house.program("trainer", "deliver", str(house.folder / "nowhere"), "--url", url)
    assert_refused(delivery, ConfigError.exit_code, "nowhere", "spool")
