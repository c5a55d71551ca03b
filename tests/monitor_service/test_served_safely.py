"""The real program with tokens and TLS: what it refuses to start with, and who reaches it then."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from monitor_service.__main__ import ExitCode, main
from monitor_service.settings import ClientSettings, Settings
from shared.base import utc_now
from shared.exchange import RunSpec
from trainer.link import Link, LinkConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture
def token(url: str, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    def create(*words: str) -> dict[str, Any]:
        assert main(["token", "create", "--json", "--database-url", url, "--name", "ana", *words]) == 0
        told: dict[str, Any] = json.loads(capsys.readouterr().out)
        return told

    return create


def test_the_secret_is_shown_once_and_the_token_listed_and_revoked(
    token: Callable[..., dict[str, Any]], url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = token("--scope", "read", "--scope", "control", "--project", "maps", "--days", "30")
    assert made["secret"].startswith(f"th_{made['id']}_")
    assert main(["token", "list", "--database-url", url]) == ExitCode.DONE
    listed = capsys.readouterr().out
    assert f"{made['id']}  ana: control read, project maps, until " in listed
    assert made["secret"] not in listed
    assert main(["token", "revoke", made["id"], "--database-url", url]) == ExitCode.DONE
    assert "revoked" in capsys.readouterr().out
    assert main(["token", "revoke", "nobody", "--database-url", url]) == ExitCode.NO_SUCH_RUN
    assert "token list" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3"])
def test_a_public_address_without_a_token_is_refused_and_nothing_is_created(
    host: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database = f"sqlite:///{tmp_path}/new.db"
    assert main(["serve", "--host", host, "--port", "0", "--database-url", database]) == ExitCode.USAGE
    assert "token create" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_token_that_ended_does_not_open_a_public_address(
    token: Callable[..., dict[str, Any]], url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    id_ = token("--scope", "read")["id"]
    main(["token", "revoke", id_, "--database-url", url])
    assert main(["serve", "--host", "0.0.0.0", "--port", "0", "--database-url", url]) == ExitCode.USAGE
    assert "will not listen on 0.0.0.0" in capsys.readouterr().err


@pytest.mark.parametrize("days", ["0", "-1", "nan", "1e9"])
def test_an_end_out_of_range_is_refused(days: str, url: str) -> None:
    words = ["token", "create", "--name", "a", "--scope", "read", "--days", days, "--database-url", url]
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == ExitCode.USAGE


def test_settings_come_from_files_and_not_from_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "secret"
    file.write_text("th_abc\n")
    monkeypatch.setenv("TRAINHEALTH_TOKEN_FILE", str(file))
    assert ClientSettings().token == "th_abc"
    assert "th_abc" not in repr(ClientSettings())
    file.write_text("sqlite:///other.db\n")
    monkeypatch.setenv("TRAINHEALTH_DATABASE_URL_FILE", str(file))
    assert Settings().database_url == "sqlite:///other.db"
    monkeypatch.setenv("TRAINHEALTH_DATABASE_URL", "sqlite:///x.db")
    assert main(["migrate"]) == ExitCode.USAGE
    assert "keep one" in capsys.readouterr().err
    monkeypatch.delenv("TRAINHEALTH_DATABASE_URL")
    monkeypatch.setenv("TRAINHEALTH_DATABASE_URL_FILE", str(tmp_path / "nowhere"))
    assert main(["migrate"]) == ExitCode.USAGE
    assert "nowhere" in capsys.readouterr().err


def test_half_a_certificate_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TRAINHEALTH_TLS_KEY", str(tmp_path / "key.pem"))
        assert main(["serve"]) == ExitCode.USAGE
        assert "go together" in capsys.readouterr().err
        environment.setenv("TRAINHEALTH_TLS_CERTIFICATE", str(tmp_path / "certificate.pem"))
        assert main(["serve"]) == ExitCode.USAGE
        assert "cannot use the certificate" in capsys.readouterr().err


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for 127.0.0.1 and, beside it, its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed, so no certificate can be made")
    file = tmp_path / "certificate.pem"
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=monitor"]
    files = ["-keyout", str(tmp_path / "key.pem"), "-out", str(file)]
    names = ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(["openssl", "req", *kind, *names, *files], check=True, capture_output=True)
    return file


@pytest.mark.slow
def test_over_tls_a_trainer_sends_and_a_person_asks_each_with_a_token(
    token: Callable[..., dict[str, Any]],
    url: str,
    certificate: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sender, reader = token("--scope", "ingest")["secret"], token("--scope", "read")["secret"]
    monkeypatch.setenv("TRAINHEALTH_TLS_CERTIFICATE", str(certificate))
    monkeypatch.setenv("TRAINHEALTH_TLS_KEY", str(tmp_path / "key.pem"))
    words = ["serve", "--host", "0.0.0.0", "--port", "0", "--database-url", url, "--json"]
    command = [sys.executable, "-m", "monitor_service", *words]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout is not None
            shown = json.loads(program.stdout.readline())["url"]
            assert shown.startswith("https://0.0.0.0:")
            address = shown.replace("0.0.0.0", "127.0.0.1")
            (tmp_path / "token").write_text(sender)
            config = LinkConfig(url=address, token_file=tmp_path / "token", ca_file=certificate)
            link = Link(config, "demo", RunSpec(started_at=utc_now()), tmp_path / "spool")
            link.start()
            link.record_step(1, 7, 0.0, {"loss": 1.0})
            assert link.close().pending_batches == 0
            monkeypatch.setenv("TRAINHEALTH_CA_FILE", str(certificate))
            assert main(["status", "demo", "--url", address]) == ExitCode.REFUSED
            assert "no token was sent" in capsys.readouterr().err
            monkeypatch.setenv("TRAINHEALTH_TOKEN", reader)
            assert main(["status", "demo", "--url", address]) == ExitCode.DONE
            assert "step 7" in capsys.readouterr().out
            assert main(["roll-back", "demo", "--reason", "x", "--url", address]) == ExitCode.REFUSED
            assert "this needs control" in capsys.readouterr().err
            with pytest.raises(httpx.ConnectError):  # nobody vouches for the certificate
                httpx.get(f"{address}/healthz")
        finally:
            program.send_signal(signal.SIGTERM)
            assert program.wait(20) == 0
