"""A monitor that can lie (a real HTTP peer on loopback with scripted answers), and ready-made links."""

import json
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pydantic import ValidationError

from shared.base import utc_now
from shared.commands import Command
from shared.exchange import Batch, Reply, RunSpec
from trainer.link import Link, LinkConfig

SPEC = RunSpec(started_at=datetime(2026, 1, 31, 12, tzinfo=UTC), config={"lr": float("nan")})


class Exchange(BaseHTTPRequestHandler):
    """One connection to the lying monitor."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: "LyingMonitor"

    def do_PUT(self) -> None:
        body = self._body()
        if self.server.on_register is not None:
            return self.server.on_register(self, body)
        self.server.puts.append(self.path)
        self.server.tokens.append(self.headers.get("Authorization"))
        self.server.is_registered = True
        return self.answer(201, b"{}")

    def do_POST(self) -> None:
        body = self._body()
        with self.server.changed:
            self.server.posts.append(body)
            script = self.server.script.popleft() if self.server.script else self.server.always
        (script or Exchange.tell_the_truth)(self, body)

    def tell_the_truth(self, body: bytes) -> None:
        """Store it once, hold the reply until a command comes, answer."""
        if not self.server.is_registered:
            return self.answer(404, b'{"detail": "no such run"}')
        try:
            batch = Batch.model_validate_json(body)
        except ValidationError as error:
            return self.answer(422, json.dumps({"detail": str(error)}).encode())
        seen = self.server.store(batch, body)
        if seen not in (None, body):
            return self.answer(409, b'{"detail": "seq-conflict"}')
        commands = self.server.wait_for_commands(batch.hold_s)
        reply = Reply(seq=batch.seq, duplicate=seen is not None, commands=commands, server_time=utc_now())
        return self.answer(200, reply.model_dump_json().encode())

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def store_and_hang_up(self, body: bytes) -> None:
        """Commit, but let the answer get lost."""
        self.server.store(Batch.model_validate_json(body), body)
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def handle(self) -> None:
        with suppress(ConnectionError, ValueError):  # the trainer, or the test's end, closed the connection
            super().handle()

    def setup(self) -> None:
        super().setup()
        self.server.connections.append(self.connection)

    def log_message(self, *args: object) -> None:
        """Silent."""


class LyingMonitor(ThreadingHTTPServer):
    """Truthful unless told otherwise: ``script`` for the next exchanges, ``always`` for all others."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Exchange)
        self.changed = threading.Condition()
        self.is_registered = False
        self.on_register: Callable[[Exchange, bytes], None] | None = None
        self.puts: list[str] = []
        self.tokens: list[str | None] = []
        self.posts: list[bytes] = []
        self.stored: dict[tuple[str, int], bytes] = {}
        self.batches: list[Batch] = []
        self.commands: list[Command] = []
        self.script: deque[Callable[[Exchange, bytes], None]] = deque()
        self.always: Callable[[Exchange, bytes], None] | None = None
        self.connections: list[socket.socket] = []
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def store(self, batch: Batch, body: bytes) -> bytes | None:
        with self.changed:
            seen = self.stored.setdefault((batch.session, batch.seq), body)
            if seen is not body:
                return seen
            self.batches.append(batch)
            return None

    def wait_for_commands(self, hold_s: float) -> list[Command]:
        with self.changed:
            self.changed.wait_for(lambda: bool(self.commands), timeout=hold_s)
            return list(self.commands)

    def order(self, *commands: Command) -> None:
        with self.changed:
            self.commands.extend(commands)
            self.changed.notify_all()

    def steps(self) -> list[int]:
        """Steps in the order of their arrival."""
        return [step for batch in self.batches for step in batch.columns.step]

    def messages(self) -> list[str]:
        """Messages of the findings that arrived."""
        return [event.message for batch in self.batches for event in batch.events if event.type == "finding"]

    def reported_commands(self) -> list[str]:
        """Ids of the commands whose outcome was reported."""
        return [event.command for batch in self.batches for event in batch.events if event.type == "command"]

    def die(self) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()
        for connection in self.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()


def a_command(name: str = "c1", valid_for_s: float = 60.0) -> Command:
    now = utc_now()
    return Command(
        id=name,
        kind="roll_back",
        reason="test",
        issued_by="test",
        issued_at=now - timedelta(hours=1),
        expires_at=now + timedelta(seconds=valid_for_s),
        attempt=1,
    )


@pytest.fixture
def command() -> Callable[..., Command]:
    return a_command


@pytest.fixture
def start_monitor() -> Iterator[Callable[..., LyingMonitor]]:
    monitors: list[LyingMonitor] = []

    def start(port: int = 0) -> LyingMonitor:
        monitors.append(LyingMonitor(port))
        return monitors[-1]

    yield start
    for monitor in monitors:
        monitor.die()


@pytest.fixture
def monitor(start_monitor: Callable[..., LyingMonitor]) -> LyingMonitor:
    return start_monitor()


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def quick() -> Callable[..., LinkConfig]:
    """A config with short times."""

    def make(url: str, **changes: object) -> LinkConfig:
        times = {
            "flush_s": 0.05,
            "hold_s": 0.1,
            "answer_timeout_s": 0.5,
            "back_off_first_s": 0.02,
            "back_off_max_s": 0.05,
        }
        return LinkConfig(url=url, **{**times, **changes})

    return make


@pytest.fixture
def link_to(tmp_path: Path, quick: Callable[..., LinkConfig]) -> Iterator[Callable[..., Link]]:
    """Start links; those that a test leaves open are closed without delay."""
    links: list[Link] = []

    def start(url: str, directory: Path | None = None, **changes: object) -> Link:
        link = Link(quick(url, **changes), "radio-7", SPEC, directory or tmp_path / "spool")
        links.append(link)
        link.start()
        return link

    yield start
    for link in links:
        link.close(0.0)


@pytest.fixture
def until() -> Callable[..., None]:
    """Wait for a condition, with a deadline."""

    def wait(condition: Callable[[], object], within_s: float = 5.0) -> None:
        deadline = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < deadline, "it did not come true in time"
            time.sleep(0.005)

    return wait
