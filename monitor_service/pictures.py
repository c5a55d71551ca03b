"""Pictures of a run: kept apart from their events, and of each kind only so many of the newest."""

import base64
from collections.abc import Collection
from typing import Literal

from sqlalchemy import Connection, delete, insert, select

from monitor_service import tables
from monitor_service.errors import NotFound
from monitor_service.queries import run_row
from shared.base import Message, Moment
from shared.events import AnyEvent, Picture, Reading

MAX_OF_A_KIND = 400
"""Of each run; 25 MiB at most. The oldest go first."""


class Details(Message):
    """What is said about a picture; JSON, because a reading may be NaN."""

    title: str
    tiles: tuple[str, ...]
    reading: dict[str, Reading]


class PictureView(Details):
    """A picture of a run; the PNG itself is at ``/runs/{run}/pictures/{picture}``."""

    picture: str
    kind: Literal["drawn", "sample"]
    attempt: int
    step: int
    time: Moment
    incident: str | None


class PicturePage(Message):
    """Pictures of a run, the newest first."""

    items: list[PictureView]


def without_png(event: AnyEvent) -> AnyEvent:
    """The event as it is kept: a list of events must stay short."""
    return event.model_copy(update={"png": ""}) if isinstance(event, Picture) else event


def note(connection: Connection, run_id: int, attempt: int, event: Picture) -> None:
    """Keep a picture, unless one of its name is here already."""
    png = base64.b64decode(event.png)
    known = tables.pictures.c
    is_known = connection.scalar(
        select(known.picture).where(known.run_id == run_id, known.picture == event.picture)
    )
    if is_known is not None or not png:
        return
    details = Details(title=event.title, tiles=event.tiles, reading=event.reading)
    row = {name: getattr(event, name) for name in ("picture", "step", "time", "kind", "incident")}
    row |= {"run_id": run_id, "attempt": attempt, "details": details.model_dump_json(), "png": png}
    connection.execute(insert(tables.pictures).values(row))
    of_kind = (known.run_id == run_id) & (known.kind == event.kind)
    old = (
        select(known.picture)
        .where(of_kind)
        .order_by(known.attempt.desc(), known.step.desc())
        .offset(MAX_OF_A_KIND)
    )
    too_many = list(connection.scalars(old))
    if too_many:
        connection.execute(delete(tables.pictures).where(of_kind, known.picture.in_(too_many)))


def pictures(
    connection: Connection,
    run: str,
    *,
    kinds: Collection[str] = (),
    incident: str | None = None,
    limit: int = 100,
) -> PicturePage:
    """The newest pictures of a run: of the last attempt first, and of its last steps."""
    known = tables.pictures.c
    named = [column for column in known if column.name not in ("run_id", "png")]
    query = select(*named).where(known.run_id == run_row(connection, run).id)
    if kinds:
        query = query.where(known.kind.in_(kinds))
    if incident is not None:
        query = query.where(known.incident == incident)
    order = (known.attempt.desc(), known.step.desc(), known.picture)
    rows = connection.execute(query.order_by(*order).limit(limit)).mappings()
    return PicturePage(
        items=[
            PictureView(
                **{name: value for name, value in row.items() if name != "details"},
                **Details.model_validate_json(row["details"]).model_dump(),
            )
            for row in rows
        ]
    )


def png(connection: Connection, run: str, picture: str) -> bytes:
    """The picture itself. Raises NotFound."""
    known = tables.pictures.c
    found = connection.scalar(
        select(known.png).where(known.run_id == run_row(connection, run).id, known.picture == picture)
    )
    if found is None:
        raise NotFound.picture(run, picture)
    return bytes(found)
