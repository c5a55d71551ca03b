"""What alerts and dashboards ask for is told by the monitor: a renamed metric or label silences none."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from monitor_service.metrics import Meters
from monitor_service.run_numbers import Seen
from monitor_service.run_series import FAMILIES
from monitor_service.scrape import FLEET
from shared.base import utc_now
from tests.deploy.cases import CASES

ROOT = Path(__file__).parents[2]
FILES = [
    *sorted((ROOT / "deploy/prometheus/rules").glob("*.yml")),
    *sorted((ROOT / "deploy/grafana/dashboards").glob("*.json")),
]
SELECTOR = re.compile(r"(?<!run:)\b(trainhealth_\w+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')
MENTIONED = re.compile(r"\b(?:by|on|without|ignoring|group_left|group_right) *\(([^)]*)\)")
LEGEND = re.compile(r"\{\{ *(?:\$labels\.)?(\w+) *\}\}")
OF_A_RUN = {"project", "run"}
OF_OTHERS = {"job", "instance", "le", "alertname", "alertstate"}
"""Labels of ``up``, of histograms, and of ``ALERTS``."""


def told() -> dict[str, set[str]]:
    """The labels of each series, by its name."""
    found = {f"trainhealth_{family.name}": {*family.labels, *OF_A_RUN} for family in FAMILIES}
    found |= {f"trainhealth_{family.name}": set(family.labels) for family in FLEET.values()}
    for collector in Meters(CollectorRegistry()).registry._collector_to_names:
        labels = set(getattr(collector, "_labelnames", ()))
        for metric in collector.describe():
            endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
            for ending in endings.get(metric.type, ("",)):
                found[metric.name + ending] = labels | ({"le"} if ending == "_bucket" else set())
    return found


def values() -> dict[tuple[str, str], set[str]]:
    """The values of a run's labels that are there before anything has happened, by metric and label."""
    row = SimpleNamespace(
        status="healthy", total_steps=None, started_at=utc_now(), checkpoint_interval_steps=None
    )
    seen = Seen(row, {}, {"latest": {"loss": 1.0, "grad_norm": 1.0}})
    found: dict[tuple[str, str], set[str]] = {}
    for family in FAMILIES:
        keys = family.tell(family.read(seen)) if family.labels else None
        for key in keys if isinstance(keys, dict) else ():
            for label, value in zip(family.labels, key.rsplit("/", len(family.labels) - 1), strict=True):
                found.setdefault((f"trainhealth_{family.name}", label), set()).add(value)
    return found


TOLD, VALUES = told(), values()


def texts(part: Any) -> Iterator[str]:
    """Every text in a file, however deep."""
    if isinstance(part, str):
        yield part
    for one in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from texts(one)


def complaints(text: str) -> Iterator[str]:
    """What a query or a legend names that is not there."""
    for name, inside in SELECTOR.findall(text):
        yield from _of_selector(name, inside)
    mentioned = [label.strip() for group in MENTIONED.findall(text) for label in group.split(",")]
    known = set().union(*TOLD.values()) | OF_OTHERS
    yield from (f"label {one}" for one in [*mentioned, *LEGEND.findall(text)] if one not in known)


def _of_selector(name: str, inside: str) -> Iterator[str]:
    if name not in TOLD:
        yield f"metric {name}"
        return
    for label, operator, value in MATCHER.findall(inside):
        if label not in TOLD[name]:
            yield f"label {label} of {name}"
        known = VALUES.get((name, label), set())
        asked = value.split("|") if "~" in operator else [value]
        yield from (f"{label}={one} of {name}" for one in asked if known and one not in known)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_names_only_metrics_labels_and_values_that_the_monitor_tells(path: Path) -> None:
    content = path.read_text()
    asked = list(texts(json.loads(content) if path.suffix == ".json" else yaml.safe_load(content)))
    assert any(SELECTOR.search(text) for text in asked)
    assert [found for text in asked for found in complaints(text)] == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("rate(trainhealth_renamed_total[5m])", ["metric trainhealth_renamed_total"]),
        ('trainhealth_loss{part="total"}', ["label part of trainhealth_loss"]),
        ('trainhealth_run_state{state=~"healthy|ill"}', ["state=ill of trainhealth_run_state"]),
        ("sum by (module) (trainhealth_step)", ["label module"]),
        ("{{module}}", ["label module"]),
        (
            "trainhealth_ingest_request_duration_seconds",
            ["metric trainhealth_ingest_request_duration_seconds"],
        ),
    ],
)
def test_a_name_that_is_gone_is_found(text: str, found: list[str]) -> None:
    assert list(complaints(text)) == found


def test_the_cases_of_the_rules_use_series_as_the_monitor_tells_them() -> None:
    series = {one for case in CASES for one in case.series if one.startswith("trainhealth_")}
    given = {one: {label for label, _, _ in MATCHER.findall(one)} for one in series}
    wrong = {one for one, labels in given.items() if labels != TOLD.get(one.partition("{")[0])}
    assert sorted(wrong) == []
