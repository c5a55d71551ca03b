"""What trainers send: a run's registration, and the exchange."""

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from sqlalchemy import Connection

from monitor_service import queries, runs
from monitor_service.access import refuse_foreign
from monitor_service.api import bounds
from monitor_service.api.answers import answer
from monitor_service.api.body import read_message
from monitor_service.api.dependencies import Monitor, MonitorDep
from monitor_service.api.headers import fields_of
from monitor_service.api.openapi import body_of
from monitor_service.api.paths import API
from monitor_service.api.permissions import PrincipalDep, needs
from monitor_service.api.problems import status_of
from monitor_service.batches import Incoming
from monitor_service.bell import hear
from monitor_service.errors import Forbidden, MonitorError
from monitor_service.metrics import Meters
from monitor_service.runs import Exchanged
from monitor_service.tokens import Scope
from monitor_service.views import RunDetail
from shared.base import Name
from shared.exchange import Batch, Reply, RunSpec

router = APIRouter(prefix=API, tags=["ingest"], dependencies=[needs(Scope.INGEST)])

INLINE_VALUES = 10_000
"""Up to so many values are packed in the event loop; more would keep the others waiting."""

RunName = Annotated[Name, Path(description="The run's name.")]


@router.put(
    "/runs/{run}",
    response_model=RunDetail,
    responses={201: {"model": RunDetail, "description": "New."}},
    openapi_extra=body_of(RunSpec),
)
async def register(run: RunName, request: Request, monitor: MonitorDep, principal: PrincipalDep) -> Response:
    """Make a run known, or update its config and length."""
    spec = await read_message(request, RunSpec, monitor.settings)
    bounds.check(spec)
    if not principal.sees(spec.project):
        raise Forbidden(
            f"token {principal.name!r} is for project {principal.project!r}, not {spec.project!r}"
        )
    now = monitor.clock()

    def write(connection: Connection) -> tuple[bool, RunDetail]:
        refuse_foreign(connection, principal, run)  # again, now that nobody else writes
        return runs.register(connection, run, spec, now), queries.run_detail(connection, run)

    is_new, detail = await monitor.store.commit(write)
    return answer(detail, 201 if is_new else 200)


@router.post("/runs/{run}/exchange", response_model=Reply, openapi_extra=body_of(Batch))
async def exchange(run: RunName, request: Request, monitor: MonitorDep) -> Response:
    """Store a batch, and answer with the commands that wait for the run.

    2xx means committed. With nothing to tell, the reply waits up to ``hold_s`` for a command to appear.
    """
    with monitor.bell.listen(run) as heard:
        with _counted(monitor.meters, fields_of(request.scope), run):
            batch = await read_message(request, Batch, monitor.settings)
            bounds.check(batch)
            done = await _commit(monitor, run, batch)
        waiting = done.waiting
        hold_s = min(batch.hold_s, monitor.settings.max_hold_s)
        if not done.is_urgent and hold_s > 0 and await hear(heard, hold_s):
            now = monitor.clock()
            waiting = await monitor.store.commit(
                lambda connection: runs.deliver(connection, run, batch.session, now)
            )
    if waiting.commands:
        monitor.meters.journeys.delivered(run, waiting.commands, monitor.clock())
    reply = Reply(
        seq=batch.seq,
        duplicate=done.is_duplicate,
        commands=waiting.commands,
        withdrawn=waiting.withdrawn,
        server_time=monitor.clock(),
    )
    return answer(reply)


async def _commit(monitor: Monitor, run: str, batch: Batch) -> Exchanged:
    num_values = len(batch.columns.step) * len(batch.columns.series)
    if num_values <= INLINE_VALUES:
        incoming = Incoming.of(batch)
    else:
        incoming = await asyncio.to_thread(Incoming.of, batch)
    now = monitor.clock()
    store, settings = monitor.store, monitor.settings
    done = await store.commit(
        lambda connection: runs.exchange(connection, run, incoming, now, settings, store.recall)
    )
    result = "duplicate" if done.is_duplicate else "accepted"
    monitor.meters.note_content(num_values, batch.events, result)
    monitor.meters.journeys.received(run, batch, now)
    return done


@contextmanager
def _counted(meters: Meters, fields: Mapping[str, str], run: str) -> Iterator[None]:
    """Count the request by its outcome and form, and measure what happens in this block."""
    started, form = time.perf_counter(), form_of(fields)
    size = fields.get("content-length", "")
    meters.note_size(form, int(size) if size.isdecimal() else 0)
    try:
        yield
    except MonitorError as error:
        meters.note_batch(status_of(error), form)
        raise
    except Exception:
        meters.note_batch(500, form)
        raise
    meters.note_batch(200, form)
    meters.request_seconds.observe(time.perf_counter() - started, {"run": run})


def form_of(fields: Mapping[str, str]) -> str:
    """How a batch travels, in one of few words."""
    kind = "msgpack" if "msgpack" in fields.get("content-type", "") else "json"
    coding = fields.get("content-encoding", "")
    return f"{kind}+{coding}" if coding in ("gzip", "zstd") else kind
