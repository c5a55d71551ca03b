"""The OpenAPI description of bodies that are read by hand (``api/body.py``)."""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from shared.commands import CommandRequest
from shared.exchange import Batch, RunSpec

_REFERENCE = "#/components/schemas/{model}"
_BODIES = (RunSpec, Batch, CommandRequest)


def body_of(model: type[BaseModel]) -> dict[str, Any]:
    """What ``openapi_extra`` says about a route that reads ``model``."""
    schema = {"$ref": _REFERENCE.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


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
        return description

    app.openapi = with_bodies  # type: ignore[method-assign]


def _schemas() -> dict[str, Any]:
    _, found = models_json_schema([(model, "validation") for model in _BODIES], ref_template=_REFERENCE)
    schemas: dict[str, Any] = found["$defs"]
    return schemas
