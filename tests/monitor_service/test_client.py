"""The commands and the client against the real program: lists, files, and news over a restart."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from monitor_service.__main__ import ExitCode, main
from monitor_service.client import Client, OrderUncertain, Refused, Unreachable

Build = Callable[..., dict[str, Any]]
ROOT = Path(__file__).parents[2]
REGISTRATION = {"started_at": "2026-03-01T12:00:00Z"}


class Program:
    """``serve`` on a port that stays its own over a restart."""

    def __init__(self, url: str) -> None:
        self._url, self._port = url, 0
        self.start()

    def start(self) -> None:
        words = ["serve", "--port", str(self._port), "--database-url", self._url, "--json"]
        command = [sys.executable, "-m", "monitor_service", *words]
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ)
        assert self._process.stdout is not None
        self.url: str = json.loads(self._process.stdout.readline())["url"]
        self._port = int(self.url.rpartition(":")[2])

    def end(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(20) == 0
        assert self._process.stdout is not None
        self._process.stdout.close()

    def register(self, run: str, **more: Any) -> None:
        httpx.put(f"{self.url}/api/v1/runs/{run}", json={**REGISTRATION, **more}).raise_for_status()

    def send(self, run: str, batch: dict[str, Any]) -> None:
        httpx.post(f"{self.url}/api/v1/runs/{run}/exchange", json=batch).raise_for_status()


@pytest.fixture
def program(url: str) -> Iterator[Program]:
    program = Program(url)
    yield program
    program.end()


def finding(step: int) -> dict[str, Any]:
    return {"type": "finding", "step": step, "guard": "g", "severity": "error", "message": f"at {step}"}


@pytest.mark.slow
def test_a_person_lists_runs_and_carries_one_to_a_file_and_back(
    program: Program, batch: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = ["--url", program.url]
    for name in ("b", "a"):
        program.register(name, project="maps")
    program.send("a", batch(1, [1], loss=["NaN"]))
    assert main(["runs", "--sort", "name", *at]) == ExitCode.DONE
    assert capsys.readouterr().out == "a  maps  healthy  step 1\nb  maps  healthy  step -\n"
    assert main(["runs", "--search", "A", "--json", *at]) == ExitCode.DONE
    assert json.loads(capsys.readouterr().out)["loss"] == "NaN"
    assert main(["status", "a", "--json", *at]) == ExitCode.DONE
    assert json.loads(capsys.readouterr().out)["step"] == 1
    file = tmp_path / "a.zip"
    assert main(["export", "a", "--out", str(file), "--json", *at]) == ExitCode.DONE
    told = json.loads(capsys.readouterr().out)
    assert told == {"run": "a", "file": str(file), "size_bytes": file.stat().st_size}
    assert main(["export", "a", "--out", str(file), *at]) == ExitCode.USAGE
    assert "File exists" in capsys.readouterr().err
    assert main(["import", str(file), *at]) == ExitCode.REFUSED
    assert "here already" in capsys.readouterr().err
    assert main(["import", str(tmp_path / "nowhere.zip"), *at]) == ExitCode.USAGE
    assert "nowhere.zip" in capsys.readouterr().err
    other = Program(f"sqlite:///{tmp_path}/other.db")
    try:
        assert main(["import", str(file), "--url", other.url]) == ExitCode.DONE
        captured = capsys.readouterr()
        assert captured.out == "a: stored, healthy\n"
        assert captured.err == ""
        with Client(other.url) as client:
            assert np.isnan(client.series("a", "loss")["loss"]["value"]).tolist() == [True]
            assert client.run("a").project == "maps"
            assert client.events("a").items == []
            assert client.incidents("a").cost.incidents == 0
    finally:
        other.end()


@pytest.mark.slow
def test_tensorboard_itself_reads_a_run_that_was_written_for_it(
    program: Program, batch: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_file_loader",
        reason="pip install 'trainhealth[tensorboard]'",
    )
    program.register("a")
    program.send("a", batch(1, [1, 2, 3], loss=[2.5, "NaN", "-Infinity"], lr=[0.5, None, 0.25]))
    folder = tmp_path / "board"
    assert main(["to-tensorboard", "a", str(folder), "--json", "--url", program.url]) == ExitCode.DONE
    assert json.loads(capsys.readouterr().out) == {"run": "a", "folder": str(folder), "points": 5}
    (file,) = folder.iterdir()
    events = [event for event in loader.LegacyEventFileLoader(str(file)).Load() if event.summary.value]
    found = [
        (event.summary.value[0].tag, event.step, event.summary.value[0].simple_value) for event in events
    ]
    assert found[:1] == [("loss", 1, 2.5)]
    assert np.isnan(found[1][2])
    assert found[2:] == [("loss", 3, -np.inf), ("lr", 1, 0.5), ("lr", 3, 0.25)]


@pytest.mark.slow
def test_a_watch_goes_on_after_a_restart_of_the_monitor_and_ends_with_the_run(
    program: Program, batch: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    program.register("demo")
    with Client(program.url, sleep=lambda seconds: threading.Event().wait(0.05)) as client:
        news = (happened for happened in client.watch("demo") if happened.kind != "step")
        first: list[Any] = []
        listening = threading.Thread(target=lambda: first.append(next(news)))
        listening.start()
        seq = 0
        while listening.is_alive():  # until the stream is open
            seq += 1
            program.send("demo", batch(seq, events=[finding(0)]))
            listening.join(0.2)
        program.end()
        program.start()
        program.send("demo", batch(seq + 1, events=[finding(77)]))
        for happened in news:
            if happened.kind == "finding" and happened.data["data"]["step"] == 77:
                break
    watching = subprocess.Popen(
        [sys.executable, "-m", "monitor_service", "watch", "demo", "--url", program.url],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert watching.stdout is not None
    assert watching.stdout.readline().startswith("step ")
    end = {"type": "run_ended", "step": 80, "status": "finished", "message": "done"}
    program.send("demo", batch(seq + 2, [79], loss=[0.5], events=[end]))
    said, _ = watching.communicate(timeout=20)
    assert watching.returncode == 0
    assert "finished: the trainer reported finished: done" in said
    assert main(["watch", "demo", "--json", "--url", program.url]) == ExitCode.DONE
    assert json.loads(capsys.readouterr().out)["to_status"] == "finished"


def test_a_client_says_what_went_wrong() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"surprise": True})

    transport = httpx.MockTransport(answer)
    with (
        Client("http://x", transport=transport) as client,
        pytest.raises(Refused, match="does not understand"),
    ):
        client.health("demo")
    with Client("http://127.0.0.1:9") as client, pytest.raises(Unreachable, match=r"127\.0\.0\.1:9"):
        next(client.watch("demo"))


class Swallowing(httpx.HTTPTransport):
    """Every request reaches the monitor, and the first answers are lost on their way back."""

    def __init__(self, answers: int) -> None:
        super().__init__()
        self._left = answers

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = super().handle_request(request)
        self._left -= 1
        if self._left >= 0:
            answer.read()
            raise httpx.ReadError("connection reset by peer")
        return answer


@pytest.mark.slow
def test_an_order_whose_answers_are_lost_is_ordered_once(
    program: Program, batch: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    program.register("demo")
    slept: list[float] = []
    wish = {"kind": "roll_back", "reason": "x"}
    with Client(program.url, sleep=slept.append, transport=Swallowing(answers=2)) as client:
        ordered = client.order("demo", wish)
    assert slept == [0.5, 1.0]
    with Client(program.url) as client:
        assert [one.id for one in client.commands("demo").items] == [ordered.id]
        assert main(["cancel", "demo", "--reason", "mistake", "--url", program.url]) == ExitCode.DONE
        assert f"roll_back {ordered.id}: cancelled" in capsys.readouterr().out
        assert main(["cancel", "demo", "--reason", "mistake", "--url", program.url]) == ExitCode.USAGE
        assert "0 commands that can be cancelled: none" in capsys.readouterr().err
    unheard = "whether the command is ordered is not known"
    with (
        Client(program.url, sleep=slept.append, transport=Swallowing(answers=5)) as client,
        pytest.raises(OrderUncertain, match=unheard) as uncertain,
    ):
        client.order("demo", wish)
    words = ["roll-back", "demo", "--reason", "x", "--json", "--url", program.url]
    assert main([*words, "--key", "another"]) == ExitCode.REFUSED
    with Client(program.url) as client:
        assert client.order("demo", wish, uncertain.value.key).state == "pending"
        assert len(client.commands("demo").items) == 2


def refusing(status: int, keys: list[str], headers: dict[str, str] | None = None) -> httpx.MockTransport:
    """What stands before a monitor and answers in its place."""

    def answer(request: httpx.Request) -> httpx.Response:
        keys.append(request.headers["Idempotency-Key"])
        return httpx.Response(status, headers=headers)

    return httpx.MockTransport(answer)


@pytest.mark.parametrize("status", [500, 502, 504])
def test_an_order_that_a_proxy_gave_up_on_is_sent_again_and_then_uncertain(status: int) -> None:
    keys: list[str] = []
    slept: list[float] = []
    with (
        Client("http://x", sleep=slept.append, transport=refusing(status, keys)) as client,
        pytest.raises(OrderUncertain, match=str(status)) as uncertain,
    ):
        client.order("demo", {"kind": "stop", "reason": "x"})
    assert keys == [uncertain.value.key] * 5
    assert f"--key {keys[0]}" in str(uncertain.value)
    assert slept == [0.5, 1.0, 2.0, 4.0]


@pytest.mark.parametrize(
    ("told", "pauses"),
    [
        ("3", [3.0, 3.0, 3.0, 4.0]),
        ("9000", [15.0] * 4),
        ("Wed, 21 Oct 2026 07:28:00 GMT", [0.5, 1.0, 2.0, 4.0]),
    ],
)
def test_an_order_that_came_too_often_is_refused_after_the_pauses_asked_for(
    told: str, pauses: list[float]
) -> None:
    slept: list[float] = []
    transport = refusing(429, [], {"Retry-After": told})
    with (
        Client("http://x", sleep=slept.append, transport=transport) as client,
        pytest.raises(Refused) as refused,
    ):
        client.order("demo", {"kind": "stop", "reason": "x"})
    assert refused.value.status == 429
    assert slept == pauses


def test_an_export_that_breaks_leaves_no_half_of_a_file(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer_half() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf of a file")

        thread = threading.Thread(target=answer_half)
        thread.start()
        with Client(f"http://127.0.0.1:{server.getsockname()[1]}") as client, pytest.raises(Unreachable):
            client.export("a", tmp_path / "a.zip")
        thread.join()
    assert list(tmp_path.iterdir()) == []
