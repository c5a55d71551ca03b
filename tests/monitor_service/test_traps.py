"""Traps that a monitor of trainings falls into, by their numbers; ``ELSEWHERE`` says who holds the others."""

import ast
import http.client
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from monitor_service import compaction, file_systems, upkeep
from monitor_service.__main__ import ExitCode, main
from monitor_service.upkeep import keep_up
from tests.kills.lived import Api, Lives

Build = Callable[..., dict[str, Any]]
TESTS = Path(__file__).parents[1]
DAY_S = 86_400.0

ELSEWHERE = {
    "1: the first NaN of a run must fire, so counters begin at 0": (
        "monitor_service/test_monitor_metrics.py",
        "test_a_fresh_run_has_every_counter_at_zero",
    ),
    "2: a NaN loss must not hide a divergence": (
        "monitor_service/test_facts.py",
        "test_non_finite_losses_in_a_row_are_counted_over_batches",
    ),
    "3: the same batch twice, out of order, and after a restart": (
        "monitor_service/test_compaction.py",
        "test_any_order_repetition_and_compaction_of_batches_gives_the_same_series",
    ),
    "4: SIGKILL between commit and answer": (
        "kills/test_kills.py",
        "test_a_monitor_on_sqlite_killed_70_times_has_every_acknowledged_batch_once",
    ),
    "5: a full disk": (
        "monitor_service/test_full_disk.py",
        "test_while_the_disk_is_full_it_is_503_and_then_all_goes_on",
    ),
    "8: two trainers with one run's name": (
        "monitor_service/api/test_fencing.py",
        "test_another_training_under_the_name_is_refused_and_nothing_of_it_stays",
    ),
    "10: a webhook that is repeated, reordered, resolved first": (
        "monitor_service/api/test_alerts.py",
        "test_an_alert_becomes_one_command_however_often_it_is_repeated",
    ),
    "9: a rollback ordered for an attempt that is over": (
        "monitor_service/api/test_control.py",
        "test_a_rollback_that_a_crash_cut_short_is_closed_when_the_trainer_is_back",
    ),
}


@pytest.mark.parametrize("trap", ELSEWHERE)
def test_the_other_traps_have_their_tests(trap: str) -> None:
    file, name = ELSEWHERE[trap]
    tree = ast.parse((TESTS / file).read_text())
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_trap_6_what_comes_after_an_outage_is_news_of_today_and_alarms_nobody(
    monitor: Any, batch: Build, clock: Any
) -> None:
    """Two hours of reports arrive at once: judged by when they came, drawn by when they happened."""
    monitor.send(batch(1, [0], loss=[1.0]))
    clock.advance(2 * 3600)
    for seq in range(2, 102):
        assert monitor.send(batch(seq, [seq], loss=[1.0])).status_code == 200
        clock.advance(0.01)
    told = monitor.tell()
    assert (told["status"], told["step"]) == ("healthy", 101)
    assert [move["to_status"] for move in told["transitions"]] == []
    points = monitor.tell("/series?name=loss")["series"]["loss"]
    assert points["step"] == [0, *range(2, 102)]
    assert points["time"] == sorted(points["time"])


@pytest.mark.parametrize("days", [-1, 1])
def test_trap_7_a_trainers_clock_that_is_off_by_a_day_changes_no_verdict(
    monitor: Any, batch: Build, clock: Any, days: int
) -> None:
    for seq in range(1, 4):
        told = batch(seq, [seq], loss=[1.0])
        told["columns"]["time"] = [told["columns"]["time"][0] + days * DAY_S]
        assert monitor.send(told).status_code == 200
        clock.advance(1)
    assert monitor.tell()["status"] == "healthy"
    kept = monitor.tell("/series?name=loss")["series"]["loss"]["time"]
    assert kept == [clock().timestamp() - 3 + seq + days * DAY_S for seq in range(1, 4)]


@pytest.mark.slow
def test_trap_11_a_connection_that_was_quiet_for_longer_than_five_seconds_is_still_good(
    lives: Callable[..., Lives], port: int, api: Api, tmp_path: Path
) -> None:
    lives("monitor", str(port), f"sqlite:///{tmp_path}/monitor.db").start()
    api.insist("GET", "/runs")
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    for pause_s in (6.0, 0.0):
        connection.request("GET", "/healthz")
        assert connection.getresponse().read()
        time.sleep(pause_s)
    connection.close()


@pytest.mark.slow
def test_trap_12_ten_thousand_series_in_one_run_are_kept_and_do_not_slow_it_down(
    monitor: Any, batch: Build, clock: Any
) -> None:
    took = []
    for seq in range(1, 51):
        names = {f"layer.{seq}.{number}/norm": [float(seq)] for number in range(200)}
        started = time.perf_counter()
        assert monitor.send(batch(seq, [seq], **names)).status_code == 200
        took.append(time.perf_counter() - started)
    assert len(monitor.tell()["series"]) == 10_000
    compaction.compact(monitor.monitor.store, compaction.Group(1, 1))
    assert monitor.tell("/series?name=layer.50.199/norm")["series"]["layer.50.199/norm"]["value"] == [50.0]
    assert sorted(took[-10:])[5] < 20 * sorted(took[:10])[5] + 0.05


def test_trap_13_a_number_beyond_all_doubles_is_infinity_as_ieee_754_rounds_it(
    monitor: Any, batch: Build
) -> None:
    text = json.dumps(batch(1, [1, 2], loss=[12345.5, 0.5]))
    json_ = {"content-type": "application/json"}
    sent = monitor.post("/api/v1/runs/demo/exchange", content=text.replace("12345.5", "1e400"), headers=json_)
    assert sent.status_code == 200, sent.text
    assert monitor.tell("/series?name=loss")["series"]["loss"]["value"] == ["Infinity", 0.5]
    word = monitor.send(batch(1, [1, 2], loss=["Infinity", 0.5]))
    assert word.json()["duplicate"]


def test_trap_14_the_log_that_grew_under_a_long_read_is_short_again_when_the_read_has_ended(
    monitor: Any, batch: Build, clock: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "LOG_PAGES", 50)
    store, log = monitor.monitor.store, tmp_path / "monitor.db-wal"
    with store.reading() as connection:
        seen = connection.exec_driver_sql("SELECT count(*) FROM batches").scalar()
        for seq in range(1, 101):
            noise = [hash((seq, n)) / 7.0 for n in range(500)]
            assert monitor.send(batch(seq, range(seq * 500, seq * 500 + 500), loss=noise)).status_code == 200
        keep_up(store, clock(), monitor.monitor.settings)
        assert log.stat().st_size > 500_000
        assert connection.exec_driver_sql("SELECT count(*) FROM batches").scalar() == seen
    keep_up(store, clock(), monitor.monitor.settings)
    assert log.stat().st_size == 0
    assert len(monitor.tell("/series?name=loss")["series"]["loss"]["step"]) == 50_000


MOUNTS = "/dev/vda / ext4 rw 0 0\nserver:/home {place} {kind} rw,vers=4.2 0 0\n"


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "fuse.sshfs"])
def test_trap_15_an_sqlite_file_on_a_network_disk_is_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(MOUNTS.format(place=tmp_path, kind=kind))
    monkeypatch.setattr(file_systems, "MOUNTS", mounts)
    assert main(["migrate", "--database-url", f"sqlite:///{tmp_path}/x.db"]) == ExitCode.DATABASE_UNUSABLE
    said = capsys.readouterr().err
    assert f"network disk ({kind})" in said
    assert "PostgreSQL" in said
    assert not (tmp_path / "x.db").exists()


def test_trap_15_a_disk_inside_of_a_network_disk_is_no_network_disk() -> None:
    mounts = MOUNTS.format(place="/home", kind="nfs4") + "/dev/vdb /home/my\\040disk ext4 rw 0 0\n"
    assert file_systems.network_kind(Path("/home/ana"), mounts) == "nfs4"
    assert file_systems.network_kind(Path("/home/my disk/db"), mounts) is None
    assert file_systems.network_kind(Path("/homestead"), mounts) is None
