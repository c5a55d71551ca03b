"""A run leaves as one file and comes back as it was; what is damaged, foreign or here already is refused."""

import asyncio
import hashlib
import io
import json
import re
import threading
import time
import zipfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from monitor_service import archive
from monitor_service.compaction import compact, due
from monitor_service.errors import MalformedBody
from monitor_service.opening import open_database

Build = Callable[..., dict[str, Any]]
ZIP = {"Content-Type": "application/zip"}
PATHS = ("", "/health", "/events", "/checkpoints", "/commands", "/incidents", "/series?name=loss&attempt=all")


@pytest.fixture
def exported(monitor: Any, batch: Build) -> bytes:
    """A run with a bit of everything."""
    events = [
        {"type": "attempt_started", "step": 0, "attempt": 1, "reason": "start"},
        {"type": "checkpoint", "step": 4, "checkpoint": "step-4", "state": "good", "probe_loss": "NaN"},
        {"type": "from-the-future", "step": 2, "what": {"a": "Infinity"}},
    ]
    monitor.send(batch(1, range(5), loss=[0.1, "NaN", -0.0, 5e-324, "-Infinity"], events=events))
    monitor.send(batch(2, range(3, 6), attempt=2, loss=[1.0, None, 3.0]))
    order = {"kind": "roll_back", "reason": "maps", "to_step": 4}
    assert monitor.post("/api/v1/runs/demo/commands", json=order).status_code == 201
    answer = monitor.get("/api/v1/runs/demo/export")
    assert answer.headers["content-type"] == "application/zip"
    assert 'filename="demo.zip"' in answer.headers["content-disposition"]
    return bytes(answer.content)


@pytest.fixture
def elsewhere(serve: Any, tmp_path: Path) -> Any:
    """Another monitor with runs of its own, so that the rows get other numbers."""
    url = f"sqlite:///{tmp_path}/elsewhere.db"
    open_database(url)
    other = serve(database_url=url)
    for name in ("a", "b"):
        other.register(name)
    return other


def import_into(monitor: Any, data: bytes, **headers: str) -> Any:
    return monitor.post("/api/v1/import", content=data, headers={**ZIP, **headers})


def without_row_numbers(told: Any) -> Any:
    items = told.get("items", []) if isinstance(told, dict) else []
    for item in items:
        if "session" not in item and isinstance(item.get("id"), int):
            del item["id"]
    return told


def test_a_run_comes_back_as_it_was(monitor: Any, elsewhere: Any, exported: bytes, batch: Build) -> None:
    answer = import_into(elsewhere, exported)
    assert answer.status_code == 201, answer.text
    for path in PATHS:
        assert without_row_numbers(elsewhere.tell(path)) == without_row_numbers(monitor.tell(path)), path
    for path in ("/series?name=loss&format=binary&attempt=all",):
        url = f"/api/v1/runs/demo{path}"
        assert elsewhere.get(url).content == monitor.get(url).content
    repeat = batch(2, range(3, 6), attempt=2, loss=[1.0, None, 3.0])
    assert elsewhere.send(repeat).json()["duplicate"] is True
    assert elsewhere.send(batch(3, [6], attempt=2, loss=[1.0])).status_code == 200


def test_a_compacted_run_comes_back_as_it_was(
    monitor: Any, elsewhere: Any, exported: bytes, batch: Build
) -> None:
    store = monitor.monitor.store
    with store.reading() as connection:
        groups = due(connection, monitor.monitor.clock() + timedelta(days=1), timedelta(0))
    assert sum(compact(store, group) for group in groups) > 0
    assert import_into(elsewhere, monitor.get("/api/v1/runs/demo/export").content).status_code == 201
    for query in ("format=binary&attempt=all", "buckets=2", "format=csv&axis=time&attempt=2"):
        url = f"/api/v1/runs/demo/series?name=loss&{query}"
        assert elsewhere.get(url).content == monitor.get(url).content, query
    repeat = batch(2, range(3, 6), attempt=2, loss=[1.0, None, 3.0])
    assert elsewhere.send(repeat).json()["duplicate"] is True


def test_a_run_that_is_here_is_not_written_over(monitor: Any, elsewhere: Any, exported: bytes) -> None:
    before = monitor.tell()
    answer = import_into(monitor, exported)
    assert (answer.status_code, answer.headers["content-type"]) == (409, "application/problem+json")
    assert "here already" in answer.text
    assert monitor.tell() == before


def rewritten(data: bytes, change: Callable[[dict[str, bytes]], None]) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return file.getvalue()


def _a_changed_event(members: dict[str, bytes]) -> None:
    members["events.jsonl"] = members["events.jsonl"].replace(b"step-4", b"step-5")


def _forged(table: str, column: str, value: Any) -> Callable[[dict[str, bytes]], None]:
    """A row that is not what it should be, with a manifest that says it is."""

    def change(members: dict[str, bytes]) -> None:
        member = f"{table}.jsonl"
        first, _, rest = members[member].partition(b"\n")
        members[member] = json.dumps({**json.loads(first), column: value}).encode() + b"\n" + rest
        manifest = json.loads(members["manifest.json"])
        manifest["sha256"][member] = hashlib.sha256(members[member]).hexdigest()
        members["manifest.json"] = json.dumps(manifest).encode()

    return change


def _another_revision(members: dict[str, bytes]) -> None:
    members["manifest.json"] = json.dumps(
        {**json.loads(members["manifest.json"]), "revision": "0000"}
    ).encode()


def _no_manifest(members: dict[str, bytes]) -> None:
    del members["manifest.json"]


def _no_batches(members: dict[str, bytes]) -> None:
    del members["batches.jsonl"]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (_a_changed_event, "not as it was written"),
        (_another_revision, "revision"),
        (_no_manifest, "manifest.json"),
        (_no_batches, "batches.jsonl"),
        (_forged("runs", "name", "another"), "another run"),
        (_forged("runs", "facts", "{}"), "can be read"),
        (_forged("runs", "started_at", "yesterday"), "yesterday"),
        (_forged("runs", "status", "splendid"), "splendid"),
        (_forged("events", "data", "[]"), "can be read"),
        (_forged("events", "step", "1"), "step is '1'"),
        (_forged("events", "run_id", 999), "can be read"),
        (_forged("events", "colour", "red"), "other columns"),
        (_forged("batches", "payload", "%%%"), "can be read"),
        (_forged("attempts", "attempt", 2**70), "attempt is 1180591620717411303424"),
    ],
)
def test_a_file_that_was_changed_is_refused_whole(
    elsewhere: Any, exported: bytes, change: Callable[[dict[str, bytes]], None], word: str
) -> None:
    answer = import_into(elsewhere, rewritten(exported, change))
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
    assert re.search(word, answer.text), answer.text
    assert elsewhere.get("/api/v1/runs/demo").status_code == 404


@pytest.mark.parametrize("cut", [0, 1, 100, -1, -30])
def test_a_file_that_is_cut_is_refused(elsewhere: Any, exported: bytes, cut: int) -> None:
    assert import_into(elsewhere, exported[:cut]).status_code == 400
    assert elsewhere.get("/api/v1/runs/demo").status_code == 404


def test_a_file_that_is_too_large_or_of_another_kind_is_refused(serve: Any, exported: bytes) -> None:
    small = serve(max_import_bytes=1024)
    assert import_into(small, exported * 10).status_code == 413
    assert import_into(small, exported, **{"Content-Type": "application/json"}).status_code == 415


def test_there_is_no_export_of_a_run_that_is_not_there(monitor: Any) -> None:
    assert monitor.get("/api/v1/runs/nobody/export").status_code == 404


def test_a_run_whose_name_no_address_could_hold_is_refused() -> None:
    names = [f"{table.name}.jsonl" for table in archive.belonging()]
    nothing = hashlib.sha256().hexdigest()
    manifest = {"format": archive.FORMAT, "run": "a/../b", "revision": "1"}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for name in names:
            made.writestr(name, "")
        made.writestr(archive.MANIFEST, json.dumps({**manifest, "sha256": dict.fromkeys(names, nothing)}))
    with pytest.raises(MalformedBody, match="should match pattern"):
        archive.check(file, "1")


def test_many_slow_imports_keep_nobody_else_waiting(
    monitor: Any, exported: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, begun, check = threading.Event(), threading.Semaphore(0), archive.check

    def slow_check(file: Any, revision: str) -> str:
        begun.release()
        assert go_on.wait(60)
        return check(file, revision)

    async def threads_of_the_watchdog() -> None:
        async with asyncio.timeout(10):
            await asyncio.gather(*(asyncio.to_thread(time.monotonic) for _ in range(6)))

    monkeypatch.setattr(archive, "check", slow_check)
    imports = [monitor.start_post("/api/v1/import", content=exported, headers=ZIP) for _ in range(40)]
    assert begun.acquire(timeout=60)
    monitor._portal.call(asyncio.sleep, 0.5)  # all of them have come as far as they get
    try:
        monitor._portal.call(threads_of_the_watchdog)
        assert monitor.get("/api/v1/runs/demo/health").status_code == 200
    finally:
        go_on.set()
    assert {one.result(60).status_code for one in imports} == {409}
