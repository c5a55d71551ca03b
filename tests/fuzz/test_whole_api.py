"""Whatever the description of the API allows, and much that it does not, is answered and never with 5xx.

``FUZZ_EXAMPLES=500`` asks each operation so often; the default keeps CI short.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import requests
from hypothesis import HealthCheck, given, settings

from tests.kills.lived import Api, Lives

schemathesis = pytest.importorskip("schemathesis", reason="the extra 'fuzz' is not installed")

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "6"))
ENDLESS = ("/api/v1/stream", "/api/v1/runs/{run}/stream")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@schemathesis.serializer("application/msgpack", "application/zip")
def _as_bytes(context: Any, value: Any) -> Any:
    return value if isinstance(value, bytes) else msgpack.packb(value, default=str)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(
    request: pytest.FixtureRequest, lives: Callable[..., Lives], api: Api, port: int, tmp_path: Path
) -> Iterator[str]:
    """A monitor with one run on each kind of database."""
    database = f"sqlite:///{tmp_path}/monitor.db"
    if request.param == "postgresql":
        database = request.getfixturevalue("own_postgres").url("postgres")
    lives("monitor", str(port), database).start()
    api.insist("PUT", "/runs/demo", {"started_at": "2026-03-01T12:00:00Z"})
    yield f"http://127.0.0.1:{port}"
    assert api.ask("GET", "/runs/demo"), "the monitor did not survive"


def test_no_request_is_answered_with_5xx(url: str) -> None:
    schema = schemathesis.openapi.from_dict(requests.get(f"{url}/openapi.json", timeout=10).json())
    session, asked = requests.Session(), set()
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path not in ENDLESS:
            _ask(operation, url, session)
            asked.add(operation.label)
    session.close()
    assert len(asked) > 20


def _ask(operation: Any, url: str, session: requests.Session) -> None:
    quiet = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=quiet)
    @given(case=operation.as_strategy())
    def ask(case: Any) -> None:
        if "run" in case.path_parameters and hash(str(case.query)) % 2:
            case.path_parameters["run"] = "demo"  # half of them about a run that is there
        answer = case.call(base_url=url, session=session, timeout=30)
        assert answer.status_code < 500, (operation.label, answer.status_code, answer.text[:2000])

    ask()
