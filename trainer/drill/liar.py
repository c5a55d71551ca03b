"""A monitor on a real socket that tells the truth, lies, floods, or is not there: whatever it is told."""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from shared.base import utc_now

Words = bytes | None
"""The body of an answer; None hangs up without one."""


class Liar:
    """Answers each exchange by ``answer(batch)``, remembers every batch, and can die and come back.

    ``events`` are all events of all batches, each once; ``steps`` the steps of all columns.
    """

    def __init__(self) -> None:
        self.answer: Callable[[dict[str, Any]], Words] = self.truth
        self.events: list[dict[str, Any]] = []
        self.steps: set[int] = set()
        self.most_spooled = 0
        self.told = threading.Event()
        """Set when an order has been handed out."""
        self._orders: list[dict[str, Any]] = []
        self._seen: set[tuple[str, int]] = set()
        self._lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """Where it listens, or would."""
        return f"http://127.0.0.1:{self.port}"

    def live(self) -> None:
        """Listen; on the same port as before."""
        self._server = _Server(("127.0.0.1", self.port), _handler_of(self))
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def die(self) -> None:
        """Close the socket: the next connection is refused."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def order(self, *orders: dict[str, Any]) -> None:
        """Hand these out with the next honest reply, all at once."""
        with self._lock:
            self.told.clear()
            self._orders += orders

    def truth(self, batch: dict[str, Any]) -> bytes:
        """What a monitor in its senses answers: the orders that wait."""
        with self._lock:
            orders, self._orders = self._orders, []
        if orders:
            self.told.set()
        return reply(batch["seq"], orders)

    def hear(self, batch: dict[str, Any]) -> None:
        """Remember a batch; a repeat changes nothing."""
        with self._lock:
            key = (batch["session"], batch["seq"])
            if key not in self._seen:
                self._seen.add(key)
                self.events += batch["events"]
            self.steps |= set(batch["columns"]["step"])
            self.most_spooled = max(self.most_spooled, batch["outbox"]["spooled_batches"])

    def updates(self) -> list[dict[str, Any]]:
        """What the trainer said of commands."""
        return [one for one in self.events if one["type"] == "command"]


@contextmanager
def alive() -> Iterator[Liar]:
    """One that listens on a free port, until the block ends."""
    liar = Liar()
    liar.live()
    try:
        yield liar
    finally:
        liar.die()


def order(id: str, kind: str, attempt: int, **more: Any) -> dict[str, Any]:
    """A command as the exchange carries it."""
    now = utc_now()
    usual = {"reason": "a drill", "issued_by": "drill", "issued_at": now.isoformat()}
    expires = {"expires_at": (now + timedelta(minutes=5)).isoformat()}
    return {"id": id, "kind": kind, "attempt": attempt, **usual, **expires, **more}


def reply(seq: int, commands: Sequence[Any] = ()) -> bytes:
    """A reply that the trainer understands."""
    return json.dumps({"seq": seq, "commands": [*commands], "server_time": utc_now().isoformat()}).encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A trainer that hangs up on a lie does what it should."""


def _handler_of(liar: Liar) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self) -> None:
            self._body()
            self._say(b"{}")

        def do_POST(self) -> None:
            batch = json.loads(self._body())
            words = liar.answer(batch)
            if words is not None:
                with suppress(ValueError):
                    if json.loads(words).get("seq") == batch["seq"]:
                        liar.hear(batch)  # what was confirmed will not come again
            self._say(words)

        def log_message(self, format: str, *args: Any) -> None:
            """The drill's table tells what matters."""

        def _body(self) -> bytes:
            return self.rfile.read(int(self.headers["Content-Length"]))

        def _say(self, words: Words) -> None:
            if words is None:
                self.close_connection = True
                return
            with suppress(OSError):  # whoever hangs up before the end of 10 MB is right
                self.send_response(200)
                self.send_header("Content-Length", str(len(words)))
                self.end_headers()
                self.wfile.write(words)

    return Handler
