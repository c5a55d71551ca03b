"""Live news over a real connection: what comes, where it goes on after a break, and when it ends."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from monitor_service.news import Position
from monitor_service.store import open_engine, writing
from monitor_service.tokens import Scope, create, revoke
from shared.base import utc_now

Build = Callable[..., dict[str, Any]]
ROOT = Path(__file__).parents[3]
REGISTRATION = {"started_at": "2026-03-01T12:00:00Z"}


@pytest.fixture
def program(url: str) -> Iterator[Callable[..., httpx.Client]]:
    """Start the real monitor; returns who asks it."""
    processes: list[subprocess.Popen[str]] = []
    clients: list[httpx.Client] = []

    def start(**settings: Any) -> httpx.Client:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in settings.items():
                patch.setenv(f"TRAINHEALTH_{name.upper()}", str(value))
            words = ["serve", "--port", "0", "--database-url", url, "--json"]
            command = [sys.executable, "-m", "monitor_service", *words]
            processes.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True))
        assert processes[-1].stdout is not None
        address = json.loads(processes[-1].stdout.readline())["url"]
        clients.append(httpx.Client(base_url=f"{address}/api/v1", timeout=10))
        return clients[-1]

    start.processes = processes  # type: ignore[attr-defined]
    yield start
    for client in clients:
        client.close()
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert process.stdout is not None
        process.stdout.close()


class Heard:
    """Events of one stream, as they come."""

    def __init__(self, answer: httpx.Response) -> None:
        self._lines = answer.iter_lines()
        self.id = self.next()["id"]

    def next(self) -> dict[str, Any]:
        """The next event; a heartbeat is one without a kind."""
        event: dict[str, Any] = {}
        for line in self._lines:
            if not line:
                return event
            name, _, value = line.partition(":")
            event[name] = value.strip()
        raise EOFError("the stream has ended")

    def take(self, count: int) -> list[tuple[str, dict[str, Any]]]:
        """The next so many that are no steps."""
        found: list[tuple[str, dict[str, Any]]] = []
        while len(found) < count:
            event = self.next()
            if event.get("event", "step") != "step":
                self.id = event["id"]
                found.append((event["event"], json.loads(event["data"])))
        return found


@contextmanager
def listening(client: httpx.Client, path: str, **headers: str) -> Iterator[Heard]:
    with client.stream("GET", path, headers=headers) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        heard = Heard(answer)  # kept here: without it the connection would close
        yield heard


def finding(step: int, loss: Any = 1.0) -> dict[str, Any]:
    where = {"type": "finding", "step": step, "guard": "g", "severity": "error", "message": f"at {step}"}
    return {**where, "reading": {"loss": loss}}


@pytest.mark.slow
def test_a_stream_tells_findings_transitions_commands_and_steps(
    program: Callable[..., httpx.Client], batch: Build
) -> None:
    client = program()
    for run in ("demo", "other"):
        client.put(f"/runs/{run}", json=REGISTRATION).raise_for_status()
    with listening(client, "/runs/demo/stream") as heard, listening(client, "/stream") as fleet:
        client.post("/runs/other/exchange", json=batch(1, events=[finding(9)])).raise_for_status()
        client.post("/runs/demo/exchange", json=batch(1, [1], loss=[2.5], events=[finding(1, "NaN")]))
        client.post("/runs/demo/commands", json={"kind": "stop", "reason": "enough"}).raise_for_status()
        told = dict(heard.take(3))
        assert told["transition"]["to_status"] == "suspect"
        assert told["finding"]["data"]["reading"] == {"loss": "NaN"}
        assert (told["command"]["kind"], told["command"]["state"]) == ("stop", "pending")
        assert {event["run"] for _, event in fleet.take(5)} == {"demo", "other"}
        step = heard.next()
        assert step["event"] == "step"
        assert json.loads(step["data"])["loss"] == 2.5


@pytest.mark.slow
def test_who_comes_back_with_the_last_id_misses_nothing_and_hears_nothing_twice(
    program: Callable[..., httpx.Client], batch: Build
) -> None:
    client = program()
    client.put("/runs/demo", json=REGISTRATION).raise_for_status()
    seen: list[int] = []
    last: dict[str, str] = {}
    for turn in range(4):
        with listening(client, "/runs/demo/stream", **last) as heard:
            events = [finding(turn * 10 + n) for n in range(10)]
            client.post("/runs/demo/exchange", json=batch(turn * 2 + 1, events=events)).raise_for_status()
            while len(seen) < turn * 15 + 7:  # and leaves in the middle
                seen += [event["data"]["step"] for kind, event in heard.take(1) if kind == "finding"]
            last = {"Last-Event-ID": heard.id}
        away = [finding(1000 + turn * 10 + n) for n in range(5)]
        client.post("/runs/demo/exchange", json=batch(turn * 2 + 2, events=away)).raise_for_status()
    with listening(client, "/runs/demo/stream", **last) as heard:
        while len(seen) < 60:
            seen += [event["data"]["step"] for kind, event in heard.take(1) if kind == "finding"]
    stored = client.get("/runs/demo/findings?limit=1000").json()["items"]
    assert seen == [event["step"] for event in stored]


@pytest.mark.slow
def test_streams_are_bounded_and_a_wrong_id_is_refused(
    program: Callable[..., httpx.Client],
) -> None:
    client = program(max_streams=1)
    client.put("/runs/demo", json=REGISTRATION).raise_for_status()
    assert client.get("/runs/nobody/stream").status_code == 404
    for wrong in ("x", "1.2", "1.2.-3", f"1.2.{2**64}"):
        answer = client.get("/stream", headers={"Last-Event-ID": wrong})
        assert answer.status_code == 422, wrong
        assert "Last-Event-ID" in answer.text
    with listening(client, "/stream"):
        answer = client.get("/stream")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    for _ in range(100):  # the server notices that the first one has left
        with client.stream("GET", "/stream") as again:
            if again.status_code == 200:
                return
        time.sleep(0.1)
    pytest.fail("the place did not become free")


@pytest.mark.slow
def test_a_stream_of_a_project_is_silent_about_others(
    program: Callable[..., httpx.Client], batch: Build, url: str
) -> None:
    engine = open_engine(url)
    with writing(engine) as connection, connection.begin():
        boss = create(connection, "boss", list(Scope), utc_now())[1]
        mine = create(connection, "mine", [Scope.READ], utc_now(), project="maps")[1]
    engine.dispose()
    client = program()
    every = {"Authorization": f"Bearer {boss}"}
    for run, project in (("a", "default"), ("b", "maps")):
        body = {**REGISTRATION, "project": project}
        client.put(f"/runs/{run}", json=body, headers=every).raise_for_status()
    with listening(client, "/stream", Authorization=f"Bearer {mine}") as heard:
        for run in ("a", "b"):
            client.post(f"/runs/{run}/exchange", json=batch(1, events=[finding(1)]), headers=every)
        assert {event["run"] for _, event in heard.take(2)} == {"b"}
    assert client.get("/runs/a/stream", headers={"Authorization": f"Bearer {mine}"}).status_code == 404


@pytest.mark.slow
def test_a_busy_stream_ends_with_its_token(
    program: Callable[..., httpx.Client], batch: Build, url: str
) -> None:
    engine = open_engine(url)
    with writing(engine) as connection, connection.begin():
        boss = create(connection, "boss", list(Scope), utc_now())[1]
        gone, mine = create(connection, "mine", [Scope.READ], utc_now())
    client = program()
    every = {"Authorization": f"Bearer {boss}"}
    client.put("/runs/a", json=REGISTRATION, headers=every).raise_for_status()
    with listening(client, "/runs/a/stream", Authorization=f"Bearer {mine}") as heard:
        with writing(engine) as connection, connection.begin():
            revoke(connection, gone.id, utc_now())
        engine.dispose()
        time.sleep(2.2)
        client.post("/runs/a/exchange", json=batch(1, events=[finding(1)]), headers=every)
        with pytest.raises(EOFError):
            heard.next()


@pytest.mark.slow
def test_a_monitor_that_ends_lets_its_listeners_go_and_leaves_no_traceback(
    program: Callable[..., httpx.Client], capfd: pytest.CaptureFixture[str]
) -> None:
    client = program()
    with listening(client, "/stream"):
        pass  # goes away in the middle
    with listening(client, "/stream") as heard:
        program.processes[0].send_signal(signal.SIGTERM)  # type: ignore[attr-defined]
        with pytest.raises(EOFError):
            heard.next()
    assert program.processes[0].wait(4) == 0  # type: ignore[attr-defined]
    assert "Traceback" not in capfd.readouterr().err


def test_a_position_reads_as_it_was_written() -> None:
    assert Position.parse(str(Position(1, 22, 333))) == Position(1, 22, 333)
