"""Programs that are killed, senders that do not give up, and how often and when to kill."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FACTOR = float(os.environ.get("KILL_FACTOR", "1"))
"""So many times the kills that the tests name."""
SEED = int(os.environ.get("KILL_SEED", "1"))
AT = "2026-03-01T12:00:00Z"


def kills(count: int) -> list[float]:
    """Moments of so many kills: seconds after each start."""
    chance = random.Random(SEED * 1000 + count)
    return [chance.uniform(0.0, 0.25) for _ in range(max(1, round(count * FACTOR)))]


class Lives:
    """A program with many lives, one after another."""

    def __init__(self, *arguments: str, log: Path) -> None:
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("lives.py")), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=out,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                text=True,
            )
        self._pid: int | None = None

    def start(self, word: object = "") -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        self._pid = int(self._line())

    def kill(self, how: int = signal.SIGKILL) -> None:
        """End this life, and wait until it has ended."""
        if self._pid is not None:
            os.kill(self._pid, how)
            while "ended" not in self._line():
                pass
            self._pid = None

    def wait(self) -> None:
        """Until this life has ended by itself."""
        while self._pid is not None and "ended" not in self._line():
            pass
        self._pid = None

    def close(self) -> None:
        self.kill()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the program is gone"
        return line


class Api:
    """Asks a monitor that may be away."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._connection: HTTPConnection | None = None

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any] | None:
        """Status and answer; ``None`` when no answer came."""
        connection = self._connection or HTTPConnection("127.0.0.1", self.port, timeout=20)
        self._connection = None
        try:
            text = None if body is None else json.dumps(body)
            connection.request(method, f"/api/v1{path}", text, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            status, told = answer.status, answer.read()
        except (OSError, HTTPException):
            connection.close()
            return None
        self._connection = connection
        return status, json.loads(told)

    def insist(self, method: str, path: str, body: Any = None, within_s: float = 60) -> Any:
        """The answer of 2xx, however often it takes."""
        deadline = time.monotonic() + within_s
        while True:
            found = self.ask(method, path, body)
            if found is not None and found[0] < 300:
                return found[1]
            assert found is None or found[0] == 503, found
            assert time.monotonic() < deadline, f"no answer for {within_s} s: {found}"
            time.sleep(0.01)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


class Sender(threading.Thread):
    """One run that sends batch after batch, each until it is acknowledged; some it sends again afterwards."""

    def __init__(self, port: int, run: str) -> None:
        super().__init__(daemon=True)
        self.run_name, self.acknowledged = run, 0
        self._api, self._is_over, self._chance = Api(port), threading.Event(), random.Random(run)

    def run(self) -> None:
        self._api.insist("PUT", f"/runs/{self.run_name}", {"started_at": AT})
        while not self._is_over.is_set():
            self._send(self.acknowledged + 1)
            self.acknowledged += 1
            if self._chance.random() < 0.1:
                self._send(self._chance.randint(1, self.acknowledged))
        self._api.close()

    def _send(self, seq: int) -> None:
        steps = [2 * seq, 2 * seq + 1]
        columns = {"step": steps, "time": [1.0 * step for step in steps], "series": {"loss": steps}}
        finding = {"type": "finding", "step": 2 * seq, "time": AT, "guard": "spike", "severity": "warning"}
        batch = {"session": "s", "seq": seq, "attempt": 1, "columns": columns}
        batch["events"] = [{**finding, "message": f"batch {seq}"}]
        self._api.insist("POST", f"/runs/{self.run_name}/exchange", batch)

    def finish(self) -> None:
        self._is_over.set()
        self.join(90)
        assert not self.is_alive()


def check(sender: Sender, api: Api) -> None:
    """Every acknowledged batch is there once: its points, its event, and what it added to the counts."""
    count, run = sender.acknowledged, sender.run_name
    assert count, f"{run} could send nothing"
    told = api.insist("GET", f"/runs/{run}/series?name=loss&attempt=all")["series"]["loss"]
    expected = list(range(2, 2 * count + 2))
    assert told["step"] == expected
    assert told["value"] == expected
    (session,) = api.insist("GET", f"/runs/{run}/sessions")["items"]
    assert (session["received"], session["missing"]) == (count, 0)
    with_each = [event["data"]["message"] for event in events_of(api, run)]
    assert sorted(with_each) == sorted(f"batch {seq}" for seq in range(1, count + 1))
    assert api.insist("GET", f"/runs/{run}")["findings"] == count


def events_of(api: Api, run: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    after = 0
    while items := api.insist("GET", f"/runs/{run}/events?after={after}&limit=200")["items"]:
        found += items
        after = items[-1]["id"]
    return found


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        found: int = free.getsockname()[1]
        return found


@pytest.fixture
def api(port: int) -> Iterator[Api]:
    api = Api(port)
    yield api
    api.close()


@pytest.fixture
def lives(tmp_path: Path) -> Iterator[Callable[..., Lives]]:
    """Programs that end with the test."""
    with ExitStack() as stack:

        def make(*arguments: str) -> Lives:
            made = Lives(*arguments, log=tmp_path / "lives.log")
            stack.callback(made.close)
            return made

        yield make
