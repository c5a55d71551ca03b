"""The real program on loopback: its commands, its end, and a SIGKILL between two answers."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from monitor_service.__main__ import ExitCode, main

Build = Callable[..., dict[str, Any]]
ROOT = Path(__file__).parents[2]


class Program:
    """``python -m monitor_service serve`` in a process of its own."""

    def __init__(self, url: str) -> None:
        command = [
            sys.executable,
            "-m",
            "monitor_service",
            "serve",
            "--port",
            "0",
            "--database-url",
            url,
            "--json",
        ]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ)
        assert self.process.stdout is not None
        self.url: str = json.loads(self.process.stdout.readline())["url"]

    def end(self, how: signal.Signals) -> int:
        self.process.send_signal(how)
        code = self.process.wait(20)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


@pytest.fixture
def start(url: str) -> Iterator[Callable[[], Program]]:
    started: list[Program] = []

    def begin() -> Program:
        started.append(Program(url))
        return started[-1]

    yield begin
    for program in started:
        if program.process.poll() is None:
            program.end(signal.SIGKILL)


REGISTRATION = {"started_at": "2026-03-01T12:00:00Z"}


@pytest.mark.slow
@pytest.mark.parametrize("after_s", [0.0, 0.02, 0.05, 0.1, 0.2])
def test_a_signal_soon_after_the_greeting_is_not_lost(start: Callable[[], Program], after_s: float) -> None:
    program = start()
    time.sleep(after_s)
    assert program.end(signal.SIGTERM) in (0, -signal.SIGTERM)


@pytest.mark.slow
def test_a_person_asks_for_the_status_and_orders_a_rollback(
    start: Callable[[], Program], capsys: pytest.CaptureFixture[str]
) -> None:
    program = start()
    at = ["--url", program.url]
    httpx.put(f"{program.url}/api/v1/runs/demo", json=REGISTRATION).raise_for_status()
    assert main(["status", "demo", *at]) == ExitCode.DONE
    assert "demo: healthy" in capsys.readouterr().out
    assert main(["status", "radio-7", *at]) == ExitCode.NO_SUCH_RUN
    order = ["roll-back", "demo", "--reason", "maps look wrong", "--to-step", "40", *at]
    assert main([*order, "--json"]) == ExitCode.DONE
    assert json.loads(capsys.readouterr().out)["to_step"] == 40
    assert main(order) == ExitCode.REFUSED
    assert "open already" in capsys.readouterr().err
    assert program.end(signal.SIGTERM) == 0


@pytest.mark.slow
def test_a_monitor_that_is_asked_to_end_answers_the_held_reply_first(
    start: Callable[[], Program], batch: Build
) -> None:
    program = start()
    httpx.put(f"{program.url}/api/v1/runs/demo", json=REGISTRATION).raise_for_status()
    answers: list[httpx.Response] = []
    url = f"{program.url}/api/v1/runs/demo/exchange"
    waiting = threading.Thread(
        target=lambda: answers.append(httpx.post(url, json=batch(1, hold_s=10), timeout=20))
    )
    waiting.start()
    while not httpx.get(f"{program.url}/metrics").text.count(
        'ingest_requests_total{code="200",encoding="json"} 1'
    ):
        time.sleep(0.02)
    asked = time.monotonic()
    assert program.end(signal.SIGINT) == 0
    assert time.monotonic() - asked < 4
    waiting.join(10)
    assert answers[0].status_code == 200
    assert answers[0].json()["commands"] == []


@pytest.mark.slow
def test_a_sender_that_goes_away_is_counted_and_leaves_no_traceback(
    start: Callable[[], Program], capfd: pytest.CaptureFixture[str]
) -> None:
    program = start()
    host, _, port = program.url.removeprefix("http://").partition(":")
    head = "POST /api/v1/runs/demo/exchange HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection((host, int(port))) as half:
        half.sendall(f"{head}Content-Length: 1000\r\n\r\n{{".encode())
    deadline = time.monotonic() + 10
    while (
        'ingest_requests_total{code="400",encoding="json"} 1' not in httpx.get(f"{program.url}/metrics").text
    ):
        assert time.monotonic() < deadline, "it was not counted"
        time.sleep(0.02)
    assert program.end(signal.SIGTERM) == 0
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("url", ["sqlite", "postgresql"], indirect=True)
def test_a_killed_monitor_has_every_batch_that_it_acknowledged(
    start: Callable[[], Program], batch: Build
) -> None:
    program = start()
    httpx.put(f"{program.url}/api/v1/runs/demo", json=REGISTRATION).raise_for_status()
    acknowledged: list[int] = []

    def send_until_it_dies(program: Program) -> None:
        with httpx.Client(base_url=program.url) as client:
            for seq in range(1, 100_000):
                try:
                    client.post("/api/v1/runs/demo/exchange", json=batch(seq, [seq], loss=[float(seq)]))
                except httpx.HTTPError:
                    return
                acknowledged.append(seq)

    sending = threading.Thread(target=send_until_it_dies, args=(program,))
    sending.start()
    while len(acknowledged) < 60:
        assert sending.is_alive()
        time.sleep(0.005)
    program.end(signal.SIGKILL)
    sending.join(20)
    again = start()
    last = acknowledged[-1]
    repeat = httpx.post(
        f"{again.url}/api/v1/runs/demo/exchange", json=batch(last, [last], loss=[float(last)])
    )
    assert repeat.json()["duplicate"] is True
    told = httpx.get(f"{again.url}/api/v1/runs/demo/series?name=loss").json()["series"]["loss"]["step"]
    assert told[: len(acknowledged)] == acknowledged
    assert len(told) <= len(acknowledged) + 1  # one may have been stored whose answer never left
