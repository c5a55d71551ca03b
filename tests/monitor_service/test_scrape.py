"""One scrape: what Prometheus' own tools say to it, OpenMetrics, and who tells the runs' series."""

import shutil
import subprocess
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_families
from prometheus_client.parser import text_string_to_metric_families as plain_families

from monitor_service.exposition import RunWriter

Build = Callable[..., dict[str, Any]]

EVENTFUL: list[dict[str, Any]] = [
    {"type": "step_skipped", "step": 2, "reason": "nonfinite_loss", "loss": "Infinity", "grad_norm": "NaN"},
    {
        "type": "finding",
        "step": 2,
        "guard": "nonfinite",
        "severity": "critical",
        "message": "the state is corrupt: main optimizer exp_avg of a has 3 NaN",
        "reading": {"bad_tensors": 2.0, "first": "main optimizer exp_avg of a"},
    },
    {"type": "checkpoint", "step": 2, "checkpoint": "c", "state": "good", "size_bytes": 5, "seconds": 0.5},
]


@pytest.fixture
def eventful(serve: Any, batch: Build) -> Any:
    """A monitor with a run that has sent something for most metrics, under a name with odd characters."""
    monitor = serve()
    monitor.register(project="night.shift_2", checkpoint_interval_steps=10)
    numbers = {
        "loss": [1.0, "NaN"],
        "loss/a/b": [1, 1],
        "grad_norm": [4, 4],
        "clip": [2, 2],
        "lr": [0.1, 0.1],
    }
    monitor.send(batch(1, [1, 2], events=EVENTFUL, **numbers))
    order = {"kind": "stop", "reason": "r", "issued_by": "p"}
    assert monitor.post("/api/v1/runs/demo/commands", json=order).status_code < 300
    return monitor


def samples_of(text: str) -> dict[str, tuple[str, list[tuple[Any, ...]]]]:
    """Type and samples of each family, as the library reads them; NaN as text, since it equals nothing."""
    return {
        family.name: (family.type, [(one.name, one.labels, str(float(one.value))) for one in family.samples])
        for family in plain_families(text)
    }


def written_by_the_library(text: str) -> str:
    """The same series, read and written again by prometheus_client."""
    given: Any = SimpleNamespace(collect=lambda: plain_families(text))
    return generate_latest(given).decode()


def test_the_text_is_what_the_library_would_write(eventful: Any) -> None:
    text = eventful.get("/metrics").text
    again = written_by_the_library(text)
    assert samples_of(again) == samples_of(text)
    heads = [line for line in text.splitlines() if line.startswith("#")]
    assert sorted(heads) == sorted(line for line in again.splitlines() if line.startswith("#"))


def test_what_is_kept_from_scrape_to_scrape_is_what_a_new_writer_writes(eventful: Any, batch: Build) -> None:
    scraper = eventful.monitor.scraper
    sent: list[dict[str, Any]] = [
        batch(2, [3], loss=["NaN"]),
        batch(3, [4], loss=["NaN"], events=EVENTFUL),
        batch(4),
        batch(5, [5], loss=[0.5], grad_norm=[1.0]),
    ]
    for one in sent:
        eventful.send(one)
        with eventful.monitor.store.reading() as connection:
            found = scraper._find(connection)
        told = found.rows, found.rollbacks, found.pending
        for is_open in (False, True):
            kept = scraper._writer.write(*told, is_open_metrics=is_open)
            assert kept == RunWriter().write(*told, is_open_metrics=is_open)


def of_demo(text: str, name: str) -> dict[str, str]:
    """Value by the labels of the family's own."""
    head = f'trainhealth_{name}{{project="night.shift_2",run="demo"'
    lines = [line.removeprefix(head) for line in text.splitlines() if line.startswith(head)]
    return {labels.strip(",}"): value for labels, _, value in (line.rpartition(" ") for line in lines)}


def test_promtool_finds_nothing_to_say(eventful: Any) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool here: install the package prometheus")
    text = eventful.get("/metrics").text
    said = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True)
    assert (said.returncode, said.stdout, said.stderr) == (0, "", "")


def test_who_accepts_openmetrics_gets_it_with_exemplars(eventful: Any) -> None:
    answer = eventful.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    families = {family.name: family for family in open_families(answer.text)}  # refuses what breaks a rule
    samples = families["trainhealth_ingest_request_duration_seconds"].samples
    assert {"run": "demo"} in [sample.exemplar.labels for sample in samples if sample.exemplar]
    assert families["trainhealth_steps"].type == "counter"
    plain = eventful.get("/metrics").text
    assert "# EOF" not in plain
    assert "# {" not in plain


def test_numbers_of_a_run_are_where_they_belong(eventful: Any, clock: Any) -> None:
    text = eventful.get("/metrics").text
    assert of_demo(text, "loss") == {'component="total"': "NaN", 'component="a/b"': "1.0"}
    assert of_demo(text, "grad_norm") == {'stage="raw"': "4.0", 'stage="clipped"': "2.0"}
    assert of_demo(text, "learning_rate") == {'group="default"': "0.1"}
    nonfinite = {key: value for key, value in of_demo(text, "nonfinite_total").items() if value != "0"}
    assert nonfinite == {
        'tensor="loss",kind="nan"': "1",
        'tensor="loss",kind="inf"': "1",
        'tensor="grad",kind="nan"': "1",
        'tensor="optimizer",kind="nan"': "2",
    }
    assert of_demo(text, "checkpoint_last_valid_timestamp_seconds") == {"": str(clock.now.timestamp())}
    assert of_demo(text, "checkpoint_save_seconds") == {"": "0.5"}
    pending = of_demo(text, "command_pending_oldest_timestamp_seconds")
    assert pending['kind="stop"'] == str(clock.now.timestamp())
    assert pending['kind="roll_back"'] == "0"


def test_a_rollback_that_an_alert_ordered_with_a_token_counts_as_one_of_alerts(
    monitor: Any, batch: Build
) -> None:
    monitor.register(project="night.shift_2")
    monitor.send(batch(1, [1], loss=[1.0]))
    order = {"kind": "roll_back", "reason": "Nonfinite", "issued_by": "alertmanager (token pager)"}
    command = monitor.post("/api/v1/runs/demo/commands", json=order).json()["id"]
    monitor.send(batch(2, events=[{"type": "command", "step": 1, "command": command, "state": "succeeded"}]))
    counts = of_demo(monitor.get("/metrics").text, "rollbacks_total")
    assert counts['trigger="alert",outcome="applied"'] == "1"
    assert sum(map(float, counts.values())) == 1


@pytest.mark.parametrize("url", ["sqlite", "postgresql"], indirect=True)
def test_of_two_monitors_one_tells_the_runs_and_the_other_takes_over(
    serve: Any, batch: Build, until: Any
) -> None:
    one = serve(metrics_lease_s=3.0)
    two = serve(metrics_lease_s=3.0)
    one.register()
    steps = "trainhealth_steps_total{"
    until(lambda: steps in one.get("/metrics").text, "the first tells", within_s=20)
    assert steps not in two.get("/metrics").text
    one.monitor.lead._length_s = -1.0  # it goes on asking, and gets nothing any more: as if it were gone
    one.monitor.lead._holder = "somebody who is gone"
    one.monitor.lead._until = 0.0
    until(lambda: steps in two.get("/metrics").text, "the other tells", within_s=20)
    assert steps not in one.get("/metrics").text


def test_many_scrapes_at_once_are_rendered_once_and_take_one_thread(
    eventful: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scraper, rendered, go_on = eventful.monitor.scraper, [], threading.Event()
    render = scraper.answer

    def slowly(accept: str) -> Any:
        rendered.append(threading.current_thread().name)
        assert go_on.wait(20)
        return render(accept)

    monkeypatch.setattr(scraper, "answer", slowly)
    waiting = [eventful.start_get("/metrics") for _ in range(100)]
    turned_away = eventful.start_get("/metrics")
    until(lambda: rendered, "the first is rendered")
    turned_away.cancel()
    assert eventful.tell()["run"] == "demo"  # there are threads left for other questions
    go_on.set()
    answers = [one.result(20) for one in waiting]
    assert len(rendered) == 1
    assert len({answer.content for answer in answers}) == 1
    assert b"trainhealth_steps_total{" in answers[0].content
    assert eventful.get("/metrics").status_code == 200
    assert len(rendered) == 2


def test_without_the_database_the_services_own_numbers_are_told(monitor: Any) -> None:
    engine = monitor.monitor.store.engine
    with engine.connect() as connection:
        connection.exec_driver_sql("ALTER TABLE runs RENAME TO gone")
        connection.commit()
    text = monitor.get("/metrics").text
    assert 'trainhealth_store_errors_total{operation="scrape"} 1.0' in text
    assert "trainhealth_run_state" not in text
