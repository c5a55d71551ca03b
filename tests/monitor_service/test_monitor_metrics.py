"""Metrics: named as Prometheus wants, at 0 from registration on, and gone when a run is over."""

import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from monitor_service.app import create_app
from monitor_service.metrics import disk_bytes
from monitor_service.settings import Settings
from monitor_service.upkeep import keep_up
from monitor_service.watchdog import look_once

Build = Callable[..., dict[str, Any]]


def samples(monitor: Any) -> dict[tuple[str, ...], float]:
    """Value by name, run and the other labels' values in the order of their names; without ``project``."""
    text = monitor.get("/metrics").text
    return {
        _key(sample.name, dict(sample.labels)): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def _key(name: str, labels: dict[str, str]) -> tuple[str, ...]:
    labels.pop("project", None)
    run = [labels.pop("run")] if "run" in labels else []
    return (name, *run, *(value for _, value in sorted(labels.items())))


def test_a_fresh_run_has_every_counter_at_zero(monitor: Any) -> None:
    seen = samples(monitor)
    for name in (
        ("trainhealth_steps_total", "demo"),
        ("trainhealth_findings_total", "demo", "nonfinite", "critical"),
        ("trainhealth_skipped_steps_total", "demo", "nonfinite_grad"),
        ("trainhealth_rollbacks_total", "demo", "applied", "rule"),
        ("trainhealth_rollback_lost_steps_total", "demo"),
        ("trainhealth_nonfinite_total", "demo", "nan", "loss"),
        ("trainhealth_last_nonfinite_timestamp_seconds", "demo", "loss"),
        ("trainhealth_command_pending_oldest_timestamp_seconds", "demo", "roll_back"),
        ("trainhealth_checkpoints_total", "demo", "valid"),
        ("trainhealth_last_step_timestamp_seconds", "demo"),
    ):
        assert seen[name] == 0, name
    assert ("trainhealth_loss", "demo", "total") not in seen
    assert seen["trainhealth_run_state", "demo", "healthy"] == 1
    assert sum(value for key, value in seen.items() if key[0] == "trainhealth_run_state") == 1


def test_what_a_run_reports_is_counted(monitor: Any, batch: Build, clock: Any) -> None:
    finding = {"type": "finding", "step": 2, "guard": "spike", "severity": "error", "message": "m"}
    good = {"type": "checkpoint", "step": 2, "checkpoint": "c", "state": "good"}
    monitor.send(batch(1, [1, 2], loss=[0.5, "NaN"], grad_norm=[1, "Infinity"], events=[finding, good]))
    monitor.send(batch(1, [1, 2], loss=[0.5, "NaN"], grad_norm=[1, "Infinity"], events=[finding, good]))
    seen = samples(monitor)
    assert seen["trainhealth_steps_total", "demo"] == 2
    assert seen["trainhealth_step", "demo"] == 2
    assert math.isnan(seen["trainhealth_loss", "demo", "total"])
    assert seen["trainhealth_grad_norm", "demo", "raw"] == math.inf
    assert seen["trainhealth_findings_total", "demo", "spike", "error"] == 1
    assert seen["trainhealth_nonfinite_total", "demo", "nan", "loss"] == 1
    assert seen["trainhealth_nonfinite_total", "demo", "inf", "grad"] == 1
    assert seen["trainhealth_last_nonfinite_timestamp_seconds", "demo", "grad"] == clock.now.timestamp()
    assert seen["trainhealth_loss_ema", "demo"] == 0.5
    assert seen["trainhealth_checkpoint_last_valid_step", "demo"] == 2
    assert seen["trainhealth_last_step_timestamp_seconds", "demo"] == clock.now.timestamp()
    assert seen["trainhealth_run_state", "demo", "suspect"] == 1
    assert seen["trainhealth_ingest_requests_total", "200", "json"] == 2
    assert seen["trainhealth_ingest_points_total", "accepted"] == 4
    assert seen["trainhealth_ingest_points_total", "duplicate"] == 4
    assert seen["trainhealth_ingest_request_duration_seconds_count",] == 2


def test_a_refused_batch_counts_by_its_code(monitor: Any, batch: Build) -> None:
    monitor.send(batch(1), run="radio-7")
    monitor.send({})
    seen = samples(monitor)
    assert seen["trainhealth_ingest_requests_total", "404", "json"] == 1
    assert seen["trainhealth_ingest_requests_total", "422", "json"] == 1


def test_a_run_leaves_some_time_after_its_end(monitor: Any, batch: Build, clock: Any) -> None:
    monitor.send(batch(1, events=[{"type": "run_ended", "step": 1, "status": "failed"}]))
    clock.advance(899)
    assert samples(monitor)["trainhealth_run_state", "demo", "failed"] == 1
    clock.advance(1)
    assert ("trainhealth_run_state", "demo", "failed") not in samples(monitor)


def test_runs_beyond_the_limit_are_left_out_and_counted(serve: Any) -> None:
    monitor = serve(metrics_max_runs=2)
    for n in range(3):
        monitor.register(f"run-{n}")
    seen = samples(monitor)
    assert seen["trainhealth_metrics_runs_omitted",] == 1
    assert ("trainhealth_steps_total", "run-0") not in seen
    assert ("trainhealth_steps_total", "run-2") in seen


def test_the_disk_of_an_sqlite_database_is_told_and_one_that_is_gone_breaks_no_scrape(
    monitor: Any, tmp_path: Path
) -> None:
    seen = samples(monitor)
    whole = shutil.disk_usage(tmp_path)
    assert seen["trainhealth_store_disk_bytes", "free"] == pytest.approx(whole.free, rel=0.05)
    assert seen["trainhealth_store_disk_bytes", "used"] == pytest.approx(whole.used, rel=0.05)
    assert math.isnan(disk_bytes(tmp_path / "gone", "free"))


def test_of_a_server_s_disk_nothing_is_told_rather_than_zero() -> None:
    url = "postgresql+psycopg://u:p@127.0.0.1:9/none"
    told = create_app(Settings(database_url=url)).state.monitor.meters.registry
    assert "trainhealth_store_disk_bytes{" not in generate_latest(told).decode()


def test_ended_commands_are_counted_for_ever(monitor: Any, batch: Build, clock: Any) -> None:
    """A counter that falls looks to Prometheus like a restart, and every rate after it is wrong."""
    orders = "/api/v1/runs/demo/commands"
    wish = {"kind": "stop", "reason": "r", "valid_for_s": 60}

    def seen() -> dict[str, float]:
        found = samples(monitor)
        return {
            key[-1]: value
            for key, value in found.items()
            if key[:2] == ("trainhealth_commands_total", "stop")
        }

    command = monitor.post(orders, json=wish).json()["id"]
    monitor.send(batch(1))
    clock.advance(61)
    look_once(monitor.monitor.store, clock(), monitor.monitor.settings)
    assert seen() == {"applied": 0, "cancelled": 0, "expired": 1, "failed": 0, "refused": 0}
    late = {"type": "command", "step": 1, "command": command, "state": "succeeded"}
    monitor.send(batch(2, events=[late]))
    command = monitor.post(orders, json=wish).json()["id"]
    assert monitor.delete(f"{orders}/{command}?reason=mistake").status_code == 200
    everything = {"applied": 1, "cancelled": 1, "expired": 1, "failed": 0, "refused": 0}
    assert seen() == everything
    monitor.send(batch(3, events=[{"type": "run_ended", "step": 1, "status": "finished"}]))
    for _ in range(2):  # the second time there is nothing left to keep
        clock.advance(2 * 86_400)
        keep_up(
            monitor.monitor.store, clock(), monitor.monitor.settings.model_copy(update={"keep_runs_days": 1})
        )
        assert monitor.get("/api/v1/runs/demo").status_code == 404
        assert seen() == everything
        monitor.register("other")
    assert seen() == everything


def test_a_rollback_that_was_refused_does_not_count_as_the_way_to_the_next_attempt(
    monitor: Any, batch: Build, clock: Any
) -> None:
    """A rollback of the trainer's own, an hour later, is not what the refused command led to."""
    for number, state in enumerate(("refused", "failed", "succeeded")):
        seq, attempt = 10 * number + 1, number + 1
        order = {"kind": "roll_back", "reason": "r"}
        command = monitor.post("/api/v1/runs/demo/commands", json=order).json()["id"]
        monitor.send(batch(seq, [seq], loss=[1.0], attempt=attempt))
        answer = {"type": "command", "step": seq, "command": command, "state": state}
        monitor.send(batch(seq + 1, events=[answer], attempt=attempt))
        clock.advance(60)
        monitor.send(batch(seq + 2, [seq + 2], loss=[1.0], attempt=attempt + 1))
    assert samples(monitor)["trainhealth_rollback_duration_seconds_count",] == 1
    assert samples(monitor)["trainhealth_rollback_duration_seconds_sum",] == 60


def test_names_follow_the_conventions_of_prometheus(monitor: Any, batch: Build) -> None:
    monitor.send(batch(1, [1, 2], loss=[1, 1], grad_norm=[1, 1]))
    families = list(text_string_to_metric_families(monitor.get("/metrics").text))
    assert len(families) > 20
    for family in families:
        assert re.fullmatch(r"trainhealth_[a-z_]+[a-z]", family.name)
        assert family.documentation
        assert family.type != "unknown", family.name
        for sample in family.samples:
            assert sample.name.endswith("_total") is (family.type == "counter"), sample.name
            assert "le" not in sample.labels or family.type == "histogram"
    per_run = [s for f in families for s in f.samples if s.labels.get("run") == "demo"]
    assert len(per_run) <= 120


def test_two_monitors_in_one_process_count_for_themselves(serve: Any, monitor: Any, batch: Build) -> None:
    other = serve()
    monitor.send(batch(1))
    assert samples(monitor)["trainhealth_ingest_requests_total", "200", "json"] == 1
    assert samples(other)["trainhealth_ingest_requests_total", "200", "json"] == 0
