"""Starting: what is in the way is said in one line, with its own exit code, and nothing is left behind."""

import errno
import json
import socket
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

import pytest

from monitor_service.__main__ import ExitCode, main
from monitor_service.opening import open_database

_VERSIONS = Path(__file__).parents[2] / "monitor_service" / "migrations" / "versions"
NEWEST = max(path.name[:4] for path in _VERSIONS.glob("0*.py"))


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit code and what was said in error."""
    code = main(arguments)
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    return code, said


def failing(code: int) -> Any:
    def fail(**more: Any) -> None:
        raise OSError(code, "it did not work")

    return fail


def test_a_taken_port_is_said_before_a_database_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        url = f"sqlite:///{tmp_path}/x.db"
        code, said = run(capsys, "serve", "--port", str(port), "--database-url", url)
    assert code == ExitCode.PORT_TAKEN
    assert f"127.0.0.1:{port}" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [["migrate"], ["serve", "--port", "0"]])
def test_a_missing_folder_is_not_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    code, said = run(capsys, *command, "--database-url", f"sqlite:///{tmp_path}/no/x.db")
    assert code == ExitCode.NOT_WRITABLE
    assert str(tmp_path / "no") in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code"), [(errno.ENOSPC, ExitCode.DISK_FULL), (errno.EROFS, ExitCode.NOT_WRITABLE)]
)
def test_a_full_or_read_only_disk_is_found_before_the_database_is_touched(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: int,
    code: ExitCode,
) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", failing(error))
    found, said = run(capsys, "migrate", "--database-url", f"sqlite:///{tmp_path}/x.db")
    assert found == code
    assert str(tmp_path) in said
    assert list(tmp_path.iterdir()) == []


def test_a_newer_database_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"sqlite:///{tmp_path}/x.db"
    open_database(url)
    with sqlite3.connect(tmp_path / "x.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    code, said = run(capsys, "serve", "--port", "0", "--database-url", url)
    assert code == ExitCode.DATABASE_NEWER
    assert "9999" in said


def test_a_file_that_is_no_database_is_left_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.db").write_text("a diary, not a database " * 100)
    code, said = run(capsys, "migrate", "--database-url", f"sqlite:///{tmp_path}/x.db")
    assert code == ExitCode.DATABASE_UNUSABLE
    assert "not a database" in said
    assert (tmp_path / "x.db").read_text().startswith("a diary")


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "nonsense"])
def test_a_database_that_cannot_be_shared_is_refused(capsys: pytest.CaptureFixture[str], url: str) -> None:
    code, said = run(capsys, "migrate", "--database-url", url)
    assert code == ExitCode.USAGE
    assert "sqlite:///x.db" in said or "no URL" in said


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("TRAINHEALTH_PORT", "abc", ("TRAINHEALTH_PORT", "'abc'", "integer")),
        ("TRAINHEALTH_POLICY", "maybe", ("TRAINHEALTH_POLICY", "'maybe'", "'off', 'suggest' or 'act'")),
        ("TRAINHEALTH_PROT", "80", ("TRAINHEALTH_PROT", "TRAINHEALTH_PORT")),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_what_would_do(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
    words: tuple[str, ...],
) -> None:
    monkeypatch.setenv(variable, value)
    code, said = run(capsys, "migrate", "--database-url", f"sqlite:///{tmp_path}/x.db")
    assert code == ExitCode.USAGE
    for word in words:
        assert word in said
    assert list(tmp_path.iterdir()) == []


def test_an_address_with_colons_stands_in_brackets(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINHEALTH_HOST", "::1")
    monkeypatch.setenv("TRAINHEALTH_PORT", "9")
    code, said = run(capsys, "status", "demo")
    assert code == ExitCode.UNREACHABLE
    assert "http://[::1]:9" in said


def test_errors_come_as_json_where_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = run(capsys, "migrate", "--json", "--database-url", f"sqlite:///{tmp_path}/no/x.db")
    assert code == ExitCode.NOT_WRITABLE
    assert json.loads(said)["error"] == "not_writable"


def test_asking_a_monitor_that_is_not_there_says_how_to_start_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, said = run(capsys, "status", "demo", "--url", "http://127.0.0.1:9")
    assert code == ExitCode.UNREACHABLE
    assert "python -m monitor_service serve" in said


def test_migrate_says_where_the_database_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate", "--json", "--database-url", f"sqlite:///{tmp_path}/x.db"]) == ExitCode.DONE
    assert json.loads(capsys.readouterr().out)["revision"] == NEWEST


def test_an_address_that_others_reach_is_refused_while_there_are_no_tokens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path}/x.db"
    code, said = run(capsys, "serve", "--host", "0.0.0.0", "--port", "0", "--database-url", url)
    assert code == ExitCode.USAGE
    assert "127.0.0.1" in said
    assert list(tmp_path.iterdir()) == []


def test_a_proxy_before_a_loopback_address_lets_others_in_and_so_needs_tokens_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINHEALTH_TRUSTED_PROXIES", "10.0.0.2")
    code, said = run(capsys, "serve", "--port", "0", "--database-url", f"sqlite:///{tmp_path}/x.db")
    assert code == ExitCode.USAGE
    assert "127.0.0.1 behind the proxy 10.0.0.2" in said
    assert "set no TRAINHEALTH_TRUSTED_PROXIES" in said
    assert list(tmp_path.iterdir()) == []
