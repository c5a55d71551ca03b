"""The OpenAPI description of bodies that are read by hand (``api/body.py``)."""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from monitor_service.api.body import PACKED
from monitor_service.api.examples import ANSWERS, BODIES, PROBLEM
from monitor_service.api.problems import MEDIA_TYPE
from monitor_service.concerns import Acceptance
from monitor_service.rulebook import RulesRequest
from monitor_service.webhook import Webhook
from shared.commands import CommandRequest
from shared.exchange import Batch, RunSpec

_REFERENCE = "#/components/schemas/{model}"
_TEXT = {"type": "string"}
_PROBLEM = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        **{"type": _TEXT, "title": _TEXT, "detail": _TEXT, "status": {"type": "integer"}},
        "errors": {"type": "array", "items": {"type": "object"}},
    },
}
_PACKED = {"type": "string", "format": "binary", "description": "The same as MessagePack (docs/protocol.md)."}
_BODIES = (RunSpec, Batch, CommandRequest, Acceptance, RulesRequest, Webhook)


def body_of(model: type[BaseModel]) -> dict[str, Any]:
    """What ``openapi_extra`` says about a route that reads ``model``."""
    schema = {"$ref": _REFERENCE.format(model=model.__name__)}
    body = {"schema": schema, "example": BODIES[model.__name__]}
    return {
        "requestBody": {"required": True, "content": {"application/json": body, PACKED: {"schema": _PACKED}}}
    }


def describe_bodies(app: FastAPI) -> None:
    """Add the models of these bodies to the app's description."""
    describe = app.openapi

    def with_bodies() -> dict[str, Any]:
        is_first = app.openapi_schema is None
        description = describe()
        if is_first:
            schemas = description.setdefault("components", {}).setdefault("schemas", {})
            for name, schema in _schemas().items():
                schemas.setdefault(name, schema)
            for operations in description["paths"].values():
                for operation in operations.values():
                    _illustrate(operation["responses"])
        return description

    app.openapi = with_bodies  # type: ignore[method-assign]


def _illustrate(responses: dict[str, Any]) -> None:
    """Give every answer of an operation its example, and describe how it refuses."""
    for response in responses.values():
        found = response.get("content", {}).get("application/json", {})
        schema = found.get("schema", {})
        name = str(schema.get("$ref") or schema.get("anyOf", [{}])[0].get("$ref", "")).rpartition("/")[2]
        if name in ANSWERS:
            found.setdefault("example", ANSWERS[name])
    responses.pop("422", None)  # the framework's own form of it, which is never sent
    content = {MEDIA_TYPE: {"schema": _PROBLEM, "example": PROBLEM}}
    responses["default"] = {"description": "Refused: what was found, and what would do.", "content": content}


def _schemas() -> dict[str, Any]:
    _, found = models_json_schema([(model, "validation") for model in _BODIES], ref_template=_REFERENCE)
    schemas: dict[str, Any] = found["$defs"]
    return schemas
