"""The description of the API: an example for every route, and each example is what its model says."""

from typing import Any

import pytest
from pydantic import TypeAdapter

from monitor_service import comparing, incidents, pictures, rulebook, views, webhook
from monitor_service.api.examples import ANSWERS, BODIES
from shared.exchange import Reply

BINARY = ("application/zip", "application/msgpack", "image/png")
MODELS: dict[str, Any] = {
    **vars(views),
    **vars(comparing),
    **vars(incidents),
    **vars(webhook),
    **vars(pictures),
    **vars(rulebook),
    "Reply": Reply,
}


@pytest.fixture
def described(monitor: Any) -> dict[str, Any]:
    found: dict[str, Any] = monitor.get("/openapi.json").json()
    return found


def test_every_route_of_the_api_has_an_example(described: dict[str, Any]) -> None:
    for path, operations in described["paths"].items():
        if not path.startswith("/api/"):
            continue
        for method, operation in operations.items():
            for status, response in operation["responses"].items():
                content = response["content"]
                is_shown = any("example" in form or kind in BINARY for kind, form in content.items())
                assert is_shown, f"{method} {path} {status}"
            body = operation.get("requestBody", {"content": {}})["content"]
            assert all("example" in form or kind in BINARY for kind, form in body.items()), path
            assert "application/problem+json" in operation["responses"]["default"]["content"]


@pytest.mark.parametrize("name", ANSWERS)
def test_an_example_is_what_its_model_says(name: str) -> None:
    TypeAdapter(MODELS[name]).validate_python(ANSWERS[name], strict=False)


def test_the_bodies_of_the_examples_are_taken(monitor: Any) -> None:
    assert monitor.put("/api/v1/runs/shown", json=BODIES["RunSpec"]).status_code == 201
    batch = {**BODIES["Batch"], "hold_s": 0}
    assert monitor.post("/api/v1/runs/shown/exchange", json=batch).status_code == 200
    answer = monitor.post("/api/v1/runs/shown/commands", json=BODIES["CommandRequest"])
    assert answer.status_code == 201, answer.text
