"""A monitor in this process on an SQLite file, asked over ASGI, with a clock that the test turns."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from fastapi import FastAPI

from monitor_service.api.dependencies import Monitor
from monitor_service.app import create_app
from monitor_service.opening import open_database
from monitor_service.settings import Settings
from tests.kills.lived import api, lives, port

__all__ = ["api", "lives", "port"]

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Clock:
    """Stands still until the test turns it."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


class Served:
    """A running app, and plain functions to ask it."""

    def __init__(self, app: FastAPI, client: httpx.AsyncClient, portal: BlockingPortal) -> None:
        self.monitor: Monitor = app.state.monitor
        self._client, self._portal = client, portal

    def get(self, url: str, **more: Any) -> httpx.Response:
        return self._portal.call(partial(self._client.get, url, **more))

    def put(self, url: str, **more: Any) -> httpx.Response:
        return self._portal.call(partial(self._client.put, url, **more))

    def post(self, url: str, **more: Any) -> httpx.Response:
        return self._portal.call(partial(self._client.post, url, **more))

    def request(self, method: str, url: str, **more: Any) -> httpx.Response:
        return self._portal.call(partial(self._client.request, method, url, **more))

    def delete(self, url: str, **more: Any) -> httpx.Response:
        return self._portal.call(partial(self._client.delete, url, **more))

    def start_get(self, url: str, **more: Any) -> Future[httpx.Response]:
        return self._portal.start_task_soon(partial(self._client.get, url, **more))

    def start_post(self, url: str, **more: Any) -> Future[httpx.Response]:
        """The answer comes later, in the future."""
        return self._portal.start_task_soon(partial(self._client.post, url, **more))

    def register(self, run: str = "demo", **more: Any) -> httpx.Response:
        return self.put(f"/api/v1/runs/{run}", json={"started_at": NOON.isoformat(), **more})

    def send(self, batch: Mapping[str, Any], run: str = "demo") -> httpx.Response:
        return self.post(f"/api/v1/runs/{run}/exchange", json=batch)

    def tell(self, path: str = "", run: str = "demo") -> Any:
        """The JSON that GET answers."""
        answer = self.get(f"/api/v1/runs/{run}{path}")
        assert answer.status_code == 200, answer.text
        return answer.json()


@asynccontextmanager
async def _running(app: FastAPI, portal: BlockingPortal) -> Any:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(app.router.lifespan_context(app))
        transport = httpx.ASGITransport(app)
        client = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=30)
        yield Served(app, await stack.enter_async_context(client), portal)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Migrated once, copied for each test."""
    file = tmp_path_factory.mktemp("database") / "empty.db"
    open_database(f"sqlite:///{file}")
    return file


@pytest.fixture(scope="session")
def empty_postgres(postgres: Any) -> Any:
    """The same on PostgreSQL: a server whose database ``empty`` is a template."""
    postgres.ask("CREATE DATABASE empty")
    open_database(postgres.url("empty"))
    return postgres


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database on SQLite, or where the test's parameter says."""
    if getattr(request, "param", "sqlite") == "sqlite":
        shutil.copy(request.getfixturevalue("empty_database"), tmp_path / "monitor.db")
        yield f"sqlite:///{tmp_path}/monitor.db"
        return
    server, name = request.getfixturevalue("empty_postgres"), f"test_{uuid4().hex}"
    server.ask(f"CREATE DATABASE {name} TEMPLATE empty")
    yield server.url(name)
    server.ask(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def serve(url: str, clock: Clock) -> Iterator[Callable[..., Served]]:
    """Start a monitor on the test's database; each has its own event loop and ends with the test.

    Background looks are far apart unless a test asks otherwise: it looks when it wants to.
    """
    with ExitStack() as stack:

        def start(**chosen: Any) -> Served:
            settings = Settings(**{"database_url": url, "watchdog_interval_s": 3600.0, **chosen})
            portal = stack.enter_context(start_blocking_portal())
            app = create_app(settings, clock)
            served: Served = stack.enter_context(portal.wrap_async_context_manager(_running(app, portal)))
            return served

        yield start


@pytest.fixture
def monitor(serve: Callable[..., Served]) -> Served:
    """One monitor with the run ``demo``."""
    served = serve()
    assert served.register(total_steps=1000).status_code == 201
    return served


@pytest.fixture
def batch() -> Callable[..., dict[str, Any]]:
    """A batch as JSON; ``loss`` and other series are lists as long as ``steps``."""

    def build(
        seq: int,
        steps: Sequence[int] = (),
        *,
        attempt: int = 1,
        session: str = "s1",
        events: Sequence[Mapping[str, Any]] = (),
        hold_s: float = 0.0,
        **series: Sequence[Any],
    ) -> dict[str, Any]:
        columns = {
            "step": list(steps),
            "time": [NOON.timestamp() + step for step in steps],
            "series": {name: list(values) for name, values in series.items()},
        }
        return {
            "session": session,
            "seq": seq,
            "attempt": attempt,
            "columns": columns,
            "events": list(events),
            "hold_s": hold_s,
        }

    return build


class Alertmanager:
    """Debian's ``prometheus-alertmanager`` on a free port, which sends everything to a webhook at once.

    It repeats after a second what still fires, where in production that takes hours.
    """

    def __init__(self, program: str, folder: Path, webhook_url: str) -> None:
        config = {
            "route": {
                "receiver": "trainhealth",
                "group_by": ["alertname", "project", "run"],
                "group_wait": "0s",
                "group_interval": "1s",
                "repeat_interval": "1s",
            },
            "receivers": [
                {"name": "trainhealth", "webhook_configs": [{"url": webhook_url, "send_resolved": True}]}
            ],
        }
        file = folder / "alertmanager.yml"
        file.write_text(json.dumps(config))  # JSON is YAML
        flags = ["--web.listen-address=127.0.0.1:0", "--cluster.listen-address=", "--log.format=json"]
        self._log = folder / "alertmanager.log"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [program, f"--config.file={file}", f"--storage.path={folder}", *flags], stdout=log, stderr=log
            )
        until(lambda: '"Listening on"' in self._log.read_text(), "Alertmanager listens")
        said = [json.loads(line) for line in self._log.read_text().splitlines()]
        (address,) = [line["address"] for line in said if line.get("msg") == "Listening on"]
        self.url = f"http://{address}"
        until(lambda: httpx.get(f"{self.url}/-/ready").status_code == 200, "Alertmanager is ready")

    def alerts(self) -> list[dict[str, Any]]:
        """What it knows to fire now."""
        found: list[dict[str, Any]] = httpx.get(f"{self.url}/api/v2/alerts").json()
        return found

    def send(self, *alerts: Mapping[str, Any]) -> None:
        httpx.post(f"{self.url}/api/v2/alerts", json=list(alerts)).raise_for_status()

    def count(self, metric: str) -> float:
        """A number of its own about its webhooks."""
        name = f'alertmanager_{metric}{{integration="webhook"'
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)


def until(is_so: Callable[[], Any], what: str, within_s: float = 60.0) -> Any:
    """Wait until ``is_so`` answers something true, and answer it."""
    deadline = time.monotonic() + within_s
    while not (answer := is_so()):
        assert time.monotonic() < deadline, f"still not so after {within_s:g} s: {what}"
        time.sleep(0.02)
    return answer


@pytest.fixture(name="until")
def until_() -> Callable[..., Any]:
    return until


@pytest.fixture
def alertmanager(tmp_path: Path) -> Iterator[Callable[[str], Alertmanager]]:
    """Start one that sends to an address; all end with the test."""
    program = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
    if program is None:
        pytest.skip("no Alertmanager here: install the package prometheus-alertmanager")
    with ExitStack() as stack:

        def start(webhook_url: str = "http://127.0.0.1:9/") -> Alertmanager:
            folder = Path(tempfile.mkdtemp(dir=tmp_path))
            started = Alertmanager(program, folder, webhook_url)
            stack.callback(started.close)
            return started

        yield start


class Program:
    """``python -m monitor_service serve`` in a process of its own, with settings from its environment."""

    def __init__(self, database_url: str, settings: Mapping[str, str]) -> None:
        words = [sys.executable, "-m", "monitor_service", "serve", "--port", "0", "--json"]
        self.process = subprocess.Popen(
            [*words, "--database-url", database_url],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **settings},
        )
        assert self.process.stdout is not None
        self.url: str = json.loads(self.process.stdout.readline())["url"]

    def ask(self, method: str, path: str, **more: Any) -> Any:
        answer = httpx.request(method, f"{self.url}/api/v1{path}", timeout=30, **more)
        answer.raise_for_status()
        return answer.json()

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def program(url: str) -> Iterator[Callable[..., Program]]:
    """Start a monitor as a program on the test's database; all end with the test."""
    with ExitStack() as stack:

        def start(**settings: str) -> Program:
            started = Program(url, settings)
            stack.callback(started.close)
            return started

        yield start
