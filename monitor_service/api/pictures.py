"""Pictures of a run: the list, and each as a PNG."""

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Response

from monitor_service import pictures
from monitor_service.api.answers import answer
from monitor_service.api.dependencies import ConnectionDep
from monitor_service.api.ingest import RunName
from monitor_service.api.paths import API
from monitor_service.api.permissions import needs
from monitor_service.pictures import PicturePage
from monitor_service.tokens import Scope
from shared.base import Name

MEDIA_TYPE = "image/png"
_PNG = {"schema": {"type": "string", "format": "binary"}}

router = APIRouter(prefix=API, tags=["query"], dependencies=[needs(Scope.READ)])


@router.get("/runs/{run}/pictures", response_model=PicturePage)
def of_run(
    run: RunName,
    connection: ConnectionDep,
    kind: Annotated[list[Literal["drawn", "sample"]], Query(default_factory=list)],
    incident: Annotated[str | None, Query(max_length=100)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Response:
    """Maps that the model drew at checkpoints, and samples that incidents name, the newest first."""
    return answer(pictures.pictures(connection, run, kinds=kind, incident=incident, limit=limit))


@router.get(
    "/runs/{run}/pictures/{picture}",
    response_class=Response,
    responses={200: {"content": {MEDIA_TYPE: _PNG}}},
)
def one(
    run: RunName, picture: Annotated[Name, Path(description="The picture's name.")], connection: ConnectionDep
) -> Response:
    """The picture. It never changes under its name."""
    found = pictures.png(connection, run, picture)
    return Response(found, media_type=MEDIA_TYPE, headers={"Cache-Control": "private, max-age=86400"})
