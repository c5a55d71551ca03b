"""Upkeep: what is old leaves as the settings say, buckets stay, and the file gets shorter."""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from monitor_service import upkeep
from monitor_service.__main__ import ExitCode, main
from monitor_service.settings import StorageConfig
from monitor_service.upkeep import Done, keep_up

Build = Callable[..., dict[str, Any]]
DAY_S = 86_400.0


def test_the_monitor_compacts_by_itself(serve: Any, batch: Build) -> None:
    served = serve(compact_interval_s=0.01)
    served.register()
    for seq in range(1, 4):
        steps = range(seq * 1000, seq * 1000 + 1000)
        assert served.send(batch(seq, steps, loss=[0.5] * 1000)).status_code == 200
    with served.monitor.store.reading() as connection:
        query = "SELECT count(*) FROM blocks"
        while connection.exec_driver_sql(query).scalar() == 0:
            connection.rollback()  # look anew; the test's time limit ends this
    assert len(served.tell("/series?name=loss")["series"]["loss"]["step"]) == 3000


def test_old_points_leave_and_their_buckets_stay(monitor: Any, batch: Build, clock: Any) -> None:
    monitor.send(batch(1, range(2000), loss=[float(n) for n in range(2000)]))
    config = StorageConfig(keep_points_days=2)
    assert keep_up(monitor.monitor.store, clock(), config) == Done(batches=1)
    before = monitor.tell("/series?name=loss&buckets=2")
    clock.advance(3 * DAY_S)
    monitor.send(batch(2, [2000, 2001], loss=[1.0, 2.0]))
    assert keep_up(monitor.monitor.store, clock(), config) == Done(blocks=2)
    assert monitor.tell("/series?name=loss&buckets=2&to_step=1999") == before
    assert monitor.tell("/series?name=loss")["series"]["loss"]["step"] == [2000, 2001]
    assert monitor.send(batch(1, range(2000), loss=[float(n) for n in range(2000)])).json()["duplicate"]


def test_runs_that_ended_long_ago_leave_and_open_ones_stay(monitor: Any, batch: Build, clock: Any) -> None:
    ended = {"type": "run_ended", "step": 3, "time": clock().isoformat(), "status": "finished"}
    monitor.register("old")
    for run, events in (("demo", []), ("old", [ended])):
        answer = monitor.send(batch(1, range(3), loss=[1.0] * 3, events=events), run)
        assert answer.status_code == 200, answer.text
    clock.advance(3 * DAY_S)
    config = StorageConfig(keep_runs_days=2)
    assert keep_up(monitor.monitor.store, clock(), config) == Done(batches=2, runs=1)
    assert [one["run"] for one in monitor.get("/api/v1/runs").json()["items"]] == ["demo"]
    assert keep_up(monitor.monitor.store, clock(), config) == Done()


def test_free_pages_go_back_to_the_disk(
    monitor: Any, batch: Build, clock: Any, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "FREE_PAGES", 10)
    file = Path(url.removeprefix("sqlite:///"))
    for seq in range(1, 9):
        values = [float(n * seq) ** 0.5 for n in range(5000)]
        monitor.send(batch(seq, range(seq * 5000, seq * 5000 + 5000), loss=values))
    keep_up(monitor.monitor.store, clock(), StorageConfig())
    clock.advance(3 * DAY_S)
    config = StorageConfig(keep_points_days=1)

    def pages() -> int:
        with monitor.monitor.store.reading() as connection:
            return int(connection.exec_driver_sql("PRAGMA page_count").scalar() or 0)

    before = pages()
    for _ in range(20):
        keep_up(monitor.monitor.store, clock(), config)
    assert file.exists()
    assert pages() < 0.6 * before


def test_missing_batches_are_told(monitor: Any, batch: Build) -> None:
    for seq in (1, 2, 5):
        monitor.send({**batch(seq, [seq], loss=[1.0]), "outbox": {"dropped_steps": seq}})
    (told,) = monitor.tell("/sessions")["items"]
    assert (told["session"], told["received"], told["missing"]) == ("s1", 3, 2)
    assert told["gaps"] == [{"first_seq": 3, "last_seq": 4}]
    assert told["outbox"]["dropped_steps"] == 5


def test_compact_packs_everything_and_says_so(
    monitor: Any, batch: Build, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monitor.send(batch(1, range(10), loss=[1.0] * 10))
    capsys.readouterr()
    assert main(["compact", "--json", "--database-url", url]) == ExitCode.DONE
    assert json.loads(capsys.readouterr().out) == {"batches": 1, "blocks": 0, "runs": 0}
    assert monitor.tell("/series?name=loss")["series"]["loss"]["step"] == list(range(10))


def test_a_file_from_before_that_never_shrinks_does_after_a_vacuum(tmp_path: Path) -> None:
    file = tmp_path / "old.db"
    raw = sqlite3.connect(file)
    raw.executescript("PRAGMA auto_vacuum = NONE; CREATE TABLE ballast AS SELECT zeroblob(4000000);")
    raw.executescript("DROP TABLE ballast")
    raw.close()
    before = file.stat().st_size
    compact = ["compact", "--database-url", f"sqlite:///{file}"]
    assert main(compact) == ExitCode.DONE
    assert file.stat().st_size >= before
    assert main([*compact, "--vacuum"]) == ExitCode.DONE
    assert file.stat().st_size < before / 4
    raw = sqlite3.connect(file)
    assert raw.execute("PRAGMA auto_vacuum").fetchone() == (2,)  # incremental: upkeep shortens it from now on
    raw.close()


@pytest.mark.parametrize("url", ["sqlite", "postgresql"], indirect=True)
def test_a_vacuum_beside_a_running_monitor_harms_nothing(url: str, monitor: Any, batch: Build) -> None:
    monitor.send(batch(1, [1, 2], loss=[1.0, 2.0]))
    with monitor.monitor.store.reading() as connection:
        connection.exec_driver_sql("SELECT count(*) FROM runs").scalar()
        assert main(["compact", "--vacuum", "--database-url", url]) == ExitCode.DONE
    assert monitor.send(batch(2, [3], loss=[3.0])).status_code == 200
    assert monitor.tell("/series?name=loss")["series"]["loss"]["value"] == [1.0, 2.0, 3.0]
